"""Schedules as text says them: a name with its arguments, or one schedule a set of weights."""

import re
from collections.abc import Mapping
from typing import Any

from kpipe.errors import KpipeError
from kpipe.registry import nearest
from kpipe.schedules.epochs import EpochSchedule
from kpipe.schedules.schedule import SCHEDULES, Schedule, fields_of, required_of

AnySchedule = Schedule | EpochSchedule
"""In steps, or in epochs."""

IN_EPOCHS = {"begin_epoch": "begin", "end_epoch": "end", "epochs": "epochs", "updates_per_epoch": "updates_per_epoch"}
"""Argument in epochs, as a mapping says it -> as `over_epochs` takes it."""


def schedule(spec: Any, steps: int | None = None) -> AnySchedule:
    """Turn a name with arguments into a schedule; a schedule is given back as it is.

    Args:
        spec: A schedule, or a mapping of one name to its arguments, such as
            `{"polynomial_decay": {"final_sparsity": 0.8, ...}}`. With `begin_epoch` and `end_epoch` (of "stepped":
            `epochs`) in place of steps it counts epochs.
        steps: Optimizer updates of the run. Given, it fills what a mapping leaves out: the sparsity starts at 0 at step
            0, ends after three quarters of the run, so that a quarter is left to recover in, and is updated about
            fifty times on the way.

    Returns:
        A `Schedule`, or an `EpochSchedule` where the arguments are in epochs.

    Raises:
        KpipeError: For an unknown name or unknown, missing or wrong arguments.

    Example:
        >>> schedule({"polynomial_decay": {"final_sparsity": 0.8}}, steps=400)
        PolynomialDecay(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=300, power=3, frequency=6)
        >>> schedule({"linear": {"final_sparsity": 0.8, "end_epoch": 2}}).in_steps(100)
        LinearSparsity(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=200, frequency=4)
    """
    if isinstance(spec, Schedule | EpochSchedule):
        return spec
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise KpipeError(
            f"The schedule is {spec!r}; expected a Schedule, such as ConstantSparsity(0.5, begin_step=0), or a mapping "
            "of one's name to its arguments, such as {'constant': {'target_sparsity': 0.5, 'begin_step': 0}}."
        )
    ((name, given),) = spec.items()
    kind = SCHEDULES[name]
    takes = arguments_of(kind)
    if not isinstance(given, Mapping):
        raise KpipeError(
            f"The schedule {name!r} has the arguments {given!r}; expected a mapping. It takes {', '.join(takes)}."
        )
    for key in given:
        if key not in takes:
            raise KpipeError(f"The schedule {name!r} has no {key!r}. It takes {', '.join(takes)}.{nearest(key, takes)}")
    return _made(name, kind, {key: _nested(key, value) for key, value in given.items()}, steps)


def schedules_of(spec: Any, steps: int | None = None) -> dict[str | None, AnySchedule]:
    """Give the schedule of each set of weights: one for all, or one for each regular expression on their paths.

    Args:
        spec: A schedule or a name with its arguments, for all weights; or a mapping of regular expressions to such. A
            weight follows the first expression that is found in its path.
        steps: Optimizer updates of the run: fills what a mapping leaves out, as `schedule` does.

    Returns:
        Expression -> schedule, in the given order; None stands for all weights.

    Raises:
        KpipeError: For what is no regular expression, or no schedule.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> schedules_of({"constant": {"target_sparsity": 0.5, "begin_step": 0}})
        {None: ConstantSparsity(target_sparsity=0.5, begin_step=0, end_step=-1, frequency=100)}
        >>> made = schedules_of({"conv": {"linear": {"final_sparsity": 0.5}}, "dense": ConstantSparsity(0.8, 0)}, 100)
        >>> {expression: one.sparsity(1000) for expression, one in made.items()}
        {'conv': 0.5, 'dense': 0.8}
    """
    if not is_by_layer(spec):
        return {None: schedule(spec, steps)}
    made: dict[str | None, AnySchedule] = {}
    for expression, one in spec.items():
        try:
            re.compile(expression)
            made[expression] = schedule(one, steps)
        except re.error as error:
            raise KpipeError(
                f"schedule has {expression!r}, which is no regular expression: {error}. Give expressions on the paths "
                "of weights, such as {'conv.*/kernel': schedule}."
            ) from error
        except KpipeError as error:
            raise KpipeError(f"The schedule of {expression!r}: {error}") from error
    return made


def is_by_layer(spec: Any) -> bool:
    """Tell a mapping of expressions to schedules from a name with its arguments.

    Example:
        >>> is_by_layer({"linear": {"final_sparsity": 0.5}}), is_by_layer({"conv": {"linear": {"final_sparsity": 0.5}}})
        (False, True)
    """
    if not isinstance(spec, Mapping) or not all(isinstance(key, str) for key in spec):
        return False
    return any(
        isinstance(value, Schedule | EpochSchedule)
        or (isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()))
        for value in spec.values()
    )


def arguments_of(kind: type[Schedule]) -> list[str]:
    """List the arguments that a mapping may give to a schedule, in steps or in epochs.

    Example:
        >>> from kpipe.schedules import SteppedSparsity
        >>> arguments_of(SteppedSparsity)
        ['sparsities', 'steps', 'epochs']
    """
    fields = fields_of(kind)
    counted = [key for key, name in IN_EPOCHS.items() if name in kind.EPOCHS]
    return fields + counted + (["updates_per_epoch"] if "frequency" in fields else [])


def _nested(key: str, value: Any) -> Any:
    """Make the schedules inside a join."""
    if key == "schedules" and isinstance(value, list | tuple):
        return tuple(schedule(item) for item in value)
    return value


def _made(name: str, kind: type[Schedule], given: dict[str, Any], steps: int | None) -> AnySchedule:
    in_epochs = [key for key in given if key in IN_EPOCHS]
    in_epochs += [key for key, value in given.items() if _holds_epochs(value)]
    if in_epochs:
        in_steps = [key for key in given if key in kind.EPOCHS.values()]
        if in_steps:
            raise KpipeError(
                f"The schedule {name!r} has {in_epochs[0]} and {in_steps[0]}; expected all of it in epochs or in steps."
            )
        for key in ("end_epoch", "epochs"):
            counted = kind.EPOCHS.get(IN_EPOCHS[key])
            if counted in required_of(kind) and key not in given:
                raise KpipeError(f"The schedule {name!r} counts epochs and was given no {key!r}.")
        return kind.over_epochs(**{IN_EPOCHS.get(key, key): value for key, value in given.items()})
    arguments = {"initial_sparsity": 0.0} if "initial_sparsity" in fields_of(kind) else {}
    arguments |= {} if steps is None else kind.laid_over(steps, given)
    arguments |= given
    missing = [key for key in required_of(kind) if key not in arguments]
    if missing:
        raise KpipeError(
            f"The schedule {name!r} was given no {missing[0]!r}. It takes {', '.join(arguments_of(kind))}."
        )
    try:
        return kind(**arguments)
    except TypeError as error:
        raise KpipeError(f"The schedule {name!r} cannot be made from {dict(given)}: {error}.") from error


def _holds_epochs(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, EpochSchedule) for item in value)
