"""Several schedules, one after another."""

from collections.abc import Mapping
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

    def due(self, step: int) -> bool:
        """Ask the schedule that has taken over by `step`."""
        return self._in_charge(step).due(step)

    def sparsity(self, step: int) -> float:
        """Ask the schedule that has taken over by `step`."""
        return self._in_charge(step).sparsity(step)

    def _in_charge(self, step: int) -> Schedule:
        begun = [item for item in self.schedules if item.begin_step <= step]
        return begun[-1] if begun else self.schedules[0]
