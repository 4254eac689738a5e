"""Smooth ways from an initial to a final sparsity; p is the fraction of the way, (t - begin) / (end - begin)."""

import math
from dataclasses import dataclass

import keras

from kpipe.schedules.checks import check_above
from kpipe.schedules.schedule import SCHEDULES, Ramp


@SCHEDULES("polynomial_decay")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class PolynomialDecay(Ramp):
    """Go from the initial to the final sparsity, fast at first and ever slower.

    s(t) = final + (initial - final) * (1 - p)^power, p = clip((t - begin) / (end - begin), 0, 1).
    With begin_step == end_step it is the final sparsity from that step on.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Step at which the final sparsity is reached.
        power: Exponent of the decay, above 0.
        frequency: Steps between two updates.

    Example:
        >>> decay = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, frequency=30)
        >>> [step for step in range(200) if decay(step)[0]]
        [0, 30, 60, 90, 100]
        >>> decay(100)
        (True, 0.8)

    References:
        Zhu and Gupta, To prune, or not to prune (2017), https://arxiv.org/abs/1710.01878
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("power", self.power, 0, "TFMOT's default is 3.")

    def between(self, progress: float) -> float:
        """Evaluate the formula at a fraction of the way."""
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1.0 - progress) ** self.power


@SCHEDULES("linear")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class LinearSparsity(Ramp):
    """Go from the initial to the final sparsity evenly.

    s(t) = initial + (final - initial) * p, p = clip((t - begin) / (end - begin), 0, 1).
    With begin_step == end_step it is the final sparsity from that step on.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Step at which the final sparsity is reached.
        frequency: Steps between two updates.

    Example:
        >>> LinearSparsity(0.0, 0.5, begin_step=0, end_step=100)(50)
        (False, 0.25)
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    frequency: int = 100

    def between(self, progress: float) -> float:
        """Evaluate the formula at a fraction of the way."""
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@SCHEDULES("cosine")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class CosineSparsity(Ramp):
    """Go from the initial to the final sparsity along half a cosine: slow at both ends, fast between.

    s(t) = final + (initial - final) * (1 + cos(pi * p)) / 2, p = clip((t - begin) / (end - begin), 0, 1).
    With begin_step == end_step it is the final sparsity from that step on.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Step at which the final sparsity is reached.
        frequency: Steps between two updates.

    Example:
        >>> round(CosineSparsity(0.0, 0.8, begin_step=0, end_step=100).sparsity(50), 9)
        0.4
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    frequency: int = 100

    def between(self, progress: float) -> float:
        """Evaluate the formula at a fraction of the way."""
        left = (1.0 + math.cos(math.pi * progress)) / 2.0
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * left


@SCHEDULES("one_cycle")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class OneCycleSparsity(Ramp):
    """Go from the initial to the final sparsity along a steep logistic curve: a few percent first, then most at once.

    s(t) = initial + (final - initial) * (1 + exp(-alpha + beta)) / (1 + exp(-alpha * p + beta)),
    p = clip((t - begin) / (end - begin), 0, 1). At `begin_step` the curve stands a little above the initial sparsity:
    0.7 % of the way with the alpha and beta of the paper.
    With begin_step == end_step it is the final sparsity from that step on.

    Args:
        initial_sparsity: Fraction of zeros before `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Step at which the final sparsity is reached.
        alpha: Steepness of the curve, above 0.
        beta: Lateness of the curve: half of the way lies near p = beta / alpha.
        frequency: Steps between two updates.

    Example:
        >>> cycle = OneCycleSparsity(0.0, 0.8, begin_step=0, end_step=100)
        >>> [round(cycle.sparsity(step), 3) for step in (0, 20, 50, 100)]
        [0.005, 0.08, 0.705, 0.8]

    References:
        Hubens et al., One-cycle pruning (2021), https://arxiv.org/abs/2107.02086
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    alpha: float = 14
    beta: float = 5
    frequency: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("alpha", self.alpha, 0, "The paper takes 14.")
        check_above("beta", self.beta, 0, "The paper takes 5.")

    def between(self, progress: float) -> float:
        """Evaluate the formula at a fraction of the way."""
        way = (1.0 + math.exp(self.beta - self.alpha)) / (1.0 + math.exp(self.beta - self.alpha * progress))
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * way
