"""The same sparsity from a step on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kpipe.schedules.checks import check_fraction, check_frequency, check_way
from kpipe.schedules.schedule import SCHEDULES, Schedule


@SCHEDULES("constant")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """Ask for the same sparsity from `begin_step` on.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Last step of an update; -1 for no end.
        frequency: Steps between two updates.

    Example:
        >>> ConstantSparsity(0.5, begin_step=0)(0)
        (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        check_fraction("target_sparsity", self.target_sparsity)
        check_way(self.begin_step, self.end_step, endless=True)
        check_frequency(self.frequency)

    @classmethod
    def laid_over(cls, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Begin at step 0 where nothing else was given; it has no end."""
        return {} if "begin_step" in given else {"begin_step": 0}

    def sparsity(self, step: int) -> float:
        """Give the target sparsity."""
        return float(self.target_sparsity)

    @property
    def highest(self) -> float:
        """The target sparsity."""
        return float(self.target_sparsity)

    @property
    def settled_step(self) -> int:
        """The first step."""
        return self.begin_step
