"""Schedules that count epochs; who trains turns them into steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kpipe.checks import is_number
from kpipe.errors import KpipeError
from kpipe.registry import nearest
from kpipe.schedules.checks import check_above
from kpipe.schedules.schedule import UPDATES, Schedule, fields_of, from_plain, required_of, to_plain

_LONG = 10_000
"""Steps of an epoch with which a schedule is made for its checks and its highest sparsity alone."""


@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class EpochSchedule:
    """Hold a schedule whose steps are said in epochs, until the steps of an epoch are known.

    Made by `over_epochs` of a schedule's class.

    Args:
        kind: The class of the schedule.
        arguments: Its arguments, with those of `kind.EPOCHS` in epochs.

    Raises:
        KpipeError: For arguments that do not fit.

    Example:
        >>> from kpipe.schedules import SteppedSparsity
        >>> SteppedSparsity.over_epochs(sparsities=(0.5, 0.8), epochs=(1, 2.5)).in_steps(steps_per_epoch=10)
        SteppedSparsity(sparsities=(0.5, 0.8), steps=(10, 25))
    """

    kind: type[Schedule]
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in self.arguments.items()}
        self._check(given)
        object.__setattr__(self, "arguments", given)
        try:
            self.in_steps(_LONG)  # the schedule's own checks, now and not when a training begins
        except KpipeError as error:
            raise KpipeError(f"{self._what} (here with {_LONG} steps in an epoch): {error}") from error

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self._what}({given})"

    def __hash__(self) -> int:
        return hash(repr(self))

    def in_steps(self, steps_per_epoch: float) -> Schedule:
        """Give the schedule in steps: the whole updates that are done by then.

        Args:
            steps_per_epoch: Optimizer updates in an epoch.
        """
        check_above("steps_per_epoch", steps_per_epoch, 0, "It is the number of optimizer updates in an epoch.")
        takes = self.kind.EPOCHS
        made = {"begin": 0} if "begin" in takes else {}
        made |= {"initial_sparsity": 0.0} if "initial_sparsity" in fields_of(self.kind) else {}
        made |= dict(self.arguments)
        often = made.pop("updates_per_epoch", None)
        for name, field in takes.items():
            if name in made:
                made[field] = _in_steps(made.pop(name), steps_per_epoch)
        if often is not None:
            made["frequency"] = max(1, _nearest(steps_per_epoch / often))
        elif "frequency" in fields_of(self.kind) and "frequency" not in made and "end_step" in made:
            made["frequency"] = max(1, (made["end_step"] - made["begin_step"]) // UPDATES)
        return self.kind(**{name: _resolved(value, steps_per_epoch) for name, value in made.items()})

    @property
    def highest(self) -> float:
        """The highest fraction of zeros that is ever asked for at an update, in epochs of many steps.

        Example:
            >>> from kpipe.schedules import CosineSparsity
            >>> CosineSparsity.over_epochs(final_sparsity=0.9, end=4).highest
            0.9
        """
        return self.in_steps(_LONG).highest

    def get_config(self) -> dict[str, Any]:
        """Give the class by its registered name, and the arguments, as plain numbers and lists."""
        arguments = {name: to_plain(value) for name, value in self.arguments.items()}
        return {"kind": keras.saving.get_registered_name(self.kind), "arguments": arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "EpochSchedule":
        """Make the schedule from what `get_config` gave."""
        kind = keras.saving.get_registered_object(config["kind"])
        if kind is None:
            raise KpipeError(
                f"The schedule class {config['kind']!r} is not registered. Import the module that defines it, and "
                "decorate it with @keras.saving.register_keras_serializable()."
            )
        return cls(kind, {name: from_plain(value) for name, value in config["arguments"].items()})

    @property
    def _what(self) -> str:
        return f"{self.kind.__name__}.over_epochs"

    def _check(self, given: Mapping[str, Any]) -> None:
        what = self._what
        fields, counted = fields_of(self.kind), self.kind.EPOCHS
        takes = [name for name in fields if name not in counted.values()] + list(counted)
        takes += ["updates_per_epoch"] if "frequency" in fields else []
        for name in given:
            if name not in takes:
                raise KpipeError(f"{what} has no {name!r}. It takes {', '.join(takes)}.{nearest(name, takes)}")
        missing = [name for name in _needed(self.kind) if name not in given]
        if missing:
            raise KpipeError(f"{what} was given no {missing[0]!r}. It takes {', '.join(takes)}.")
        for name in counted:
            if name in given:
                self._check_epochs(name, given[name])
        if given.get("end", math.inf) < given.get("begin", 0):
            raise KpipeError(f"{what} has begin={given.get('begin', 0)} and end={given['end']}; expected end >= begin.")
        if "updates_per_epoch" in given:
            check_above(f"updates_per_epoch of {what}", given["updates_per_epoch"], 0, "Such as 10.")
            if "frequency" in given:
                raise KpipeError(f"{what} was given frequency and updates_per_epoch; expected one of them.")

    def _check_epochs(self, name: str, value: Any) -> None:
        if name == "epochs" and not isinstance(value, tuple):
            raise KpipeError(f"epochs of {self._what} is {value!r}; expected several, such as (1, 2).")
        listed: tuple[Any, ...] = value if name == "epochs" else (value,)
        for one in listed:
            if not is_number(one) or one < 0:
                raise KpipeError(f"{name} of {self._what} is {one!r}; expected epochs, 0 or more, such as 2 or 0.5.")


def resolve(schedule: "Schedule | EpochSchedule", steps_per_epoch: float | None) -> Schedule:
    """Give a schedule in steps, whichever way it counts.

    Args:
        schedule: In steps, or in epochs.
        steps_per_epoch: Optimizer updates in an epoch; None when that is not known.

    Raises:
        KpipeError: For a schedule in epochs when the steps of an epoch are not known.

    Example:
        >>> from kpipe.schedules import LinearSparsity
        >>> resolve(LinearSparsity.over_epochs(final_sparsity=0.5, end=2), steps_per_epoch=100).end_step
        200
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, EpochSchedule):
        raise KpipeError(f"The schedule is {schedule!r}; expected a Schedule, or one made by its over_epochs.")
    if steps_per_epoch is None:
        raise KpipeError(
            f"{schedule} counts epochs, and the number of steps in an epoch is not known. Give "
            "steps_per_epoch to model.fit, data that knows its length, or a schedule in steps."
        )
    return schedule.in_steps(steps_per_epoch)


def _needed(kind: type[Schedule]) -> list[str]:
    """List the arguments of `over_epochs` that have no default."""
    required = required_of(kind)
    counted = [name for name, field in kind.EPOCHS.items() if field in required and name != "begin"]
    left_out = ("initial_sparsity", *kind.EPOCHS.values())
    return [name for name in required if name not in left_out] + counted


def _in_steps(epochs: Any, steps_per_epoch: float) -> Any:
    """Give the number of updates that are done by then; where gradients are accumulated, an epoch has no whole one."""
    if isinstance(epochs, tuple):
        return tuple(_in_steps(epoch, steps_per_epoch) for epoch in epochs)
    return math.floor(epochs * steps_per_epoch + 1e-6)


def _nearest(steps: float) -> int:
    return math.floor(steps + 0.5)


def _resolved(value: Any, steps_per_epoch: float) -> Any:
    if isinstance(value, EpochSchedule):
        return value.in_steps(steps_per_epoch)
    return tuple(_resolved(item, steps_per_epoch) for item in value) if isinstance(value, tuple) else value
