"""Several schedules, one after another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from kpipe.errors import KpipeError
from kpipe.schedules.schedule import SCHEDULES, Schedule


@SCHEDULES("join")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class Join(Schedule):
    """Follow several schedules one after another: each takes over at its own `begin_step`.

    Each keeps its own updates. All count the steps of the whole training.

    Args:
        schedules: Schedules in the order of their steps; all but the last end before, or at the step where, the next
            one begins.

    Example:
        >>> from kpipe.schedules import ConstantSparsity, PolynomialDecay
        >>> way = Join((ConstantSparsity(0.5, 0, 0), PolynomialDecay(0.5, 0.9, 100, 200, frequency=50)))
        >>> [(step, way.sparsity(step)) for step in range(300) if way.due(step)]
        [(0, 0.5), (100, 0.5), (150, 0.85), (200, 0.9)]
    """

    EPOCHS: ClassVar[Mapping[str, str]] = {}

    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        given = self.schedules
        if not isinstance(given, tuple | list) or not given:
            raise KpipeError(f"schedules is {given!r}; expected several schedules, in the order of their steps.")
        object.__setattr__(self, "schedules", tuple(given))
        for item in self.schedules:
            if not isinstance(item, Schedule):
                raise KpipeError(
                    f"Join was given {item!r}; expected schedules in steps. For schedules in epochs call "
                    "Join.over_epochs(schedules=(...))."
                )
        for first, second in zip(self.schedules, self.schedules[1:], strict=False):
            if first.end_step < 0 or first.end_step > second.begin_step or first.begin_step == second.begin_step:
                raise KpipeError(
                    f"{first} is followed by {second}; expected that it begins before that one's begin_step="
                    f"{second.begin_step} and ends there at the latest."
                )

    @classmethod
    def laid_over(cls, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill nothing: each schedule says its own steps."""
        return {}

    @property
    def begin_step(self) -> int:  # type: ignore[override]
        """The first step of the first schedule."""
        return self.schedules[0].begin_step

    @property
    def end_step(self) -> int:  # type: ignore[override]
        """The last step of the last schedule; -1 when it has no end."""
        return self.schedules[-1].end_step

    @property
    def highest(self) -> float:
        """The highest fraction of zeros that any of the schedules asks for before the next one takes over."""
        return max(self._highest(place) for place in range(len(self.schedules)))

    @property
    def settled_step(self) -> int:
        """That of the last schedule, or of one before, from which on all ask for the same."""
        *others, last = self.schedules
        settled = last.settled_step
        for one in reversed(others):
            if settled > last.begin_step or one.sparsity(one.settled_step) != last.sparsity(settled):
                break
            settled, last = one.settled_step, one
        return settled

    def updates(self) -> Iterator[tuple[int, float]]:
        """Give the updates of each schedule until the next one takes over."""
        for place in range(len(self.schedules)):
            yield from self._updates(place)

    def due(self, step: int) -> bool:
        """Ask the schedule that has taken over by `step`."""
        return self._in_charge(step).due(step)

    def sparsity(self, step: int) -> float:
        """Ask the schedule that has taken over by `step`."""
        return self._in_charge(step).sparsity(step)

    def _in_charge(self, step: int) -> Schedule:
        begun = [item for item in self.schedules if item.begin_step <= step]
        return begun[-1] if begun else self.schedules[0]

    def _updates(self, place: int) -> Iterator[tuple[int, float]]:
        until = self._until(place)
        return ((step, sparsity) for step, sparsity in self.schedules[place].updates() if until is None or step < until)

    def _highest(self, place: int) -> float:
        one, until = self.schedules[place], self._until(place)
        if until is None or one.end_step < until:
            return one.highest
        return max((sparsity for _, sparsity in self._updates(place)), default=0.0)  # its last update is the next one's

    def _until(self, place: int) -> int | None:
        """Give the step at which the next schedule takes over; None for the last."""
        return self.schedules[place + 1].begin_step if place + 1 < len(self.schedules) else None
