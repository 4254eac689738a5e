"""What a schedule is: step -> (update now, sparsity)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from itertools import chain
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import keras

from kpipe.registry import Registry
from kpipe.schedules.checks import check_fraction, check_frequency, check_way, check_whole

if TYPE_CHECKING:
    from kpipe.schedules.epochs import EpochSchedule

SCHEDULES: Registry[type["Schedule"]] = Registry("schedule")
"""Name -> schedule class."""

UPDATES = 50
"""About how many updates are made over the way where nothing is said of them."""

_LOOK = 10_000
"""Updates for which an endless schedule is followed to see what it asks for."""


class Schedule(ABC):
    """Say at every step whether to update the masks, and to which sparsity.

    A step is the number of optimizer updates done so far. The schedule is asked once before the first batch and then
    after each, so that a run of exactly `end_step` updates ends at the final sparsity.

    A schedule of one's own is a frozen dataclass with the fields `begin_step`, `end_step` and `frequency` and a method
    `sparsity`; one that overrides `due` needs no `frequency`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Evenly(Schedule):
        ...     "Go up evenly to 0.5."
        ...     begin_step: int = 0
        ...     end_step: int = 10
        ...     frequency: int = 5
        ...     def sparsity(self, step):
        ...         return 0.5 * min(1.0, step / self.end_step)
        >>> [Evenly()(step) for step in (4, 5, 10)]
        [(False, 0.2), (True, 0.25), (True, 0.5)]
    """

    begin_step: int
    end_step: int
    frequency: int

    EPOCHS: ClassVar[Mapping[str, str]] = {"begin": "begin_step", "end": "end_step"}
    """Argument of `over_epochs` -> the field that it gives in steps."""

    @abstractmethod
    def sparsity(self, step: int) -> float:
        """Give the fraction of zeros asked for at `step`, in [0, 1)."""

    def due(self, step: int) -> bool:
        """Tell whether an update is due: every `frequency` steps from `begin_step` on, and at `end_step` itself.

        A negative `end_step` stands for no end.
        """
        inside = self.begin_step <= step and (self.end_step < 0 or step <= self.end_step)
        return inside and ((step - self.begin_step) % self.frequency == 0 or step == self.end_step)

    def __call__(self, step: int) -> tuple[bool, float]:
        """Give whether an update is due at `step`, and the fraction of zeros asked for there."""
        step = int(step)
        return self.due(step), self.sparsity(step)

    def updates(self) -> Iterator[tuple[int, float]]:
        """Give each step at which an update is due, and the fraction of zeros asked for there, in order.

        An endless schedule is followed for 10,000 updates, one that overrides `due` for as many steps.

        Example:
            >>> from kpipe.schedules import SteppedSparsity
            >>> list(SteppedSparsity((0.5, 0.75), steps=(100, 300)).updates())
            [(100, 0.5), (300, 0.75)]
        """
        every = self.frequency if type(self).due is Schedule.due else 1
        end = self.end_step if self.end_step >= 0 else self.begin_step + _LOOK * every
        steps = chain(range(self.begin_step, end, every), [end])
        return ((step, self.sparsity(step)) for step in steps if self.due(step))

    @property
    def highest(self) -> float:
        """The highest fraction of zeros that is ever asked for at an update; 0 where none is due.

        Found by following `updates`; an endless schedule that rises for longer overrides it.

        Example:
            >>> from kpipe.schedules import SteppedSparsity
            >>> SteppedSparsity((0.5, 0.75, 0.25), steps=(100, 300, 400)).highest
            0.75
        """
        return max((sparsity for _, sparsity in self.updates()), default=0.0)

    @property
    def settled_step(self) -> int:
        """The step of the first update from which on all updates ask for one sparsity.

        Found by following `updates`; an endless schedule that changes for longer overrides it.

        Example:
            >>> from kpipe.schedules import ConstantSparsity, PolynomialDecay
            >>> ConstantSparsity(0.5, begin_step=10).settled_step
            10
            >>> PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100).settled_step
            100
        """
        settled, before = self.begin_step, None
        for step, sparsity in self.updates():
            if sparsity != before:
                settled, before = step, sparsity
        return settled

    @classmethod
    def over_epochs(cls, **arguments: Any) -> "EpochSchedule":
        """Make a schedule that counts epochs; who trains turns it into steps.

        Args:
            **arguments: Those of the schedule, with `begin` (0 if left out) and `end` in epochs, fractions allowed, in
                place of `begin_step` and `end_step`. `updates_per_epoch` may stand for `frequency`; with neither,
                about fifty updates are made over the way. An `initial_sparsity` that is left out is 0.

        Returns:
            An `EpochSchedule`, taken wherever a schedule is.

        Raises:
            KpipeError: For arguments that do not fit.

        Example:
            >>> from kpipe.schedules import PolynomialDecay
            >>> decay = PolynomialDecay.over_epochs(final_sparsity=0.8, begin=0.5, end=4)
            >>> made = decay.in_steps(steps_per_epoch=100)
            >>> made.begin_step, made.end_step, made.frequency
            (50, 400, 7)
        """
        from kpipe.schedules.epochs import EpochSchedule

        return EpochSchedule(cls, arguments)

    @classmethod
    def laid_over(cls, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Lay over a training what was not given: begin at step 0, end after three quarters, update about fifty times.

        Args:
            steps: Optimizer updates of the training.
            given: Arguments that were given.

        Returns:
            Arguments for what was left out.
        """
        for name in ("begin_step", "end_step"):
            if name in given:
                check_whole(name, given[name])
        begin = given.get("begin_step", 0)
        end = given.get("end_step", max(begin, begin + 3 * (steps - begin) // 4))
        laid = {"begin_step": begin, "end_step": end, "frequency": max(1, (end - begin) // UPDATES)}
        return {name: value for name, value in laid.items() if name in fields_of(cls) and name not in given}

    def get_config(self) -> dict[str, Any]:
        """Give all the arguments, as plain numbers and lists."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: to_plain(value) for name, value in found.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Make the schedule from what `get_config` gave."""
        return cls(**{name: from_plain(value) for name, value in config.items()})


class Way(Schedule):
    """Go from an initial to a final sparsity without turning back, with updates at `begin_step` and at `end_step`."""

    initial_sparsity: float
    final_sparsity: float

    @property
    def highest(self) -> float:
        """The higher one of what the first and the last update ask for."""
        return max(self.sparsity(self.begin_step), self.sparsity(self.end_step))

    @property
    def settled_step(self) -> int:
        """The last step, or the first one where the initial sparsity is the final one already."""
        return self.begin_step if self.initial_sparsity == self.final_sparsity else self.end_step


class Ramp(Way):
    """Go from an initial to a final sparsity; a class says on which way.

    Before `begin_step` it is the initial sparsity; from `end_step` on, exactly the final one. With begin_step ==
    end_step it is the final sparsity from that step on.
    """

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit."""
        check_fraction("initial_sparsity", self.initial_sparsity)
        check_fraction("final_sparsity", self.final_sparsity)
        check_way(self.begin_step, self.end_step)
        check_frequency(self.frequency)

    @abstractmethod
    def between(self, progress: float) -> float:
        """Give the sparsity at a fraction of the way in [0, 1); it never turns back."""

    def sparsity(self, step: int) -> float:
        """Give the fraction of zeros asked for at `step`."""
        if step >= self.end_step:
            return float(self.final_sparsity)
        if step < self.begin_step:
            return float(self.initial_sparsity)
        return self.between((step - self.begin_step) / (self.end_step - self.begin_step))


def fields_of(kind: type[Schedule]) -> list[str]:
    """List the arguments of a schedule's class.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> fields_of(ConstantSparsity)
        ['target_sparsity', 'begin_step', 'end_step', 'frequency']
    """
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


def required_of(kind: type[Schedule]) -> list[str]:
    """List the arguments of a schedule's class that have no default.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> required_of(ConstantSparsity)
        ['target_sparsity', 'begin_step']
    """
    found = fields(kind)  # type: ignore[arg-type]
    return [field.name for field in found if field.default is MISSING and field.default_factory is MISSING]


def to_plain(value: Any) -> Any:
    """Turn what a schedule is made of into what JSON can hold: schedules into their configs, tuples into lists.

    Example:
        >>> to_plain((0.5, 0.8))
        [0.5, 0.8]
    """
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return keras.saving.serialize_keras_object(value)


def from_plain(value: Any) -> Any:
    """Undo `to_plain`; a list comes back as a tuple.

    Example:
        >>> from_plain([0.5, 0.8])
        (0.5, 0.8)
    """
    if isinstance(value, tuple | list):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, Mapping) and "class_name" in value:
        return keras.saving.deserialize_keras_object(dict(value))
    return value
