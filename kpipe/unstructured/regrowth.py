"""Regrowth: a sparse weight keeps its number of zeros and moves them while it trains."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns import ByFunction, MaskFunction, Pattern, drop_count, keep_highest, pattern_of
from kpipe.registry import Registry
from kpipe.saliency import Evidence

_NEVER = 2**62

Growth = Callable[[Evidence], np.ndarray]
"""Evidence -> scores shaped like the weight; of what is dropped, the highest grow."""

GROWTHS: Registry[Growth] = Registry("regrowth")
"""Name -> how it chooses. Fact: `needs`, the fields of `Evidence` that it looks at beside the weight."""


@GROWTHS("rigl", needs=("grad",))
def rigl(evidence: Evidence) -> np.ndarray:
    """Grow where the gradient of the loss is largest (Evci et al. 2020)."""
    return np.abs(np.asarray(evidence.grad))


@GROWTHS("set", needs=())
def random(evidence: Evidence) -> np.ndarray:
    """Grow anywhere, by seeded chance (sparse evolutionary training, Mocanu et al. 2018)."""
    return evidence.rng.random(evidence.weight.shape, dtype="float32")


@dataclass(frozen=True)
class Regrowth:
    """Say how zeros move: how many, how often, and until when.

    Every `frequency` optimizer updates a fraction of the weights that are kept is dropped, those of lowest score, and
    as many grow. The fraction falls with the steps as a cosine, f(t) = fraction / 2 * (1 + cos(pi * t / end)).

    Args:
        kind: "rigl" grows where the gradient is largest, "set" at random.
        fraction: Of the kept weights, at the beginning; in (0, 1).
        frequency: Optimizer updates between two moves.
        end_step: No move from this step on. None: after three quarters of the training.
        window: Optimizer updates before a move over which "rigl" takes the mean of the gradients.

    Raises:
        KpipeError: For arguments that do not fit.

    Example:
        >>> moves = Regrowth("set", fraction=0.4, frequency=10, end_step=40)
        >>> {step: round(moves.due(step), 4) for step in range(60) if moves.due(step)}
        {10: 0.3414, 20: 0.2, 30: 0.0586}

    References:
        Evci et al., Rigging the Lottery: Making All Tickets Winners (2020), https://arxiv.org/abs/1911.11134
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science (2018), https://arxiv.org/abs/1707.04780
    """

    kind: str = "rigl"
    fraction: float = 0.3
    frequency: int = 100
    end_step: int | None = None
    window: int = 1

    def __post_init__(self) -> None:
        GROWTHS[self.kind]  # an unknown name is answered with the known ones
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float) or not 0 < self.fraction < 1:
            raise KpipeError(f"fraction is {self.fraction!r}; expected a part of the kept weights in (0, 1), as 0.3.")
        for name, least in (("frequency", 1), ("window", 1), ("end_step", 0)):
            value = getattr(self, name)
            if value is None and name == "end_step":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise KpipeError(f"{name} is {value!r}; expected a whole number of steps, {least} or more.")

    def due(self, step: int, end: int | None = None) -> float:
        """Give the fraction that moves at a step; 0 where none does.

        Args:
            step: Number of optimizer updates done.
            end: In place of `end_step` where that is None.
        """
        end = self.end_step if self.end_step is not None else end
        if end is None or step <= 0 or step >= end or step % self.frequency:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * step / end))

    def next_due(self, step: int) -> int:
        """Give the next step after `step` at which weights may move."""
        return (step // self.frequency + 1) * self.frequency

    def listens_from(self, step: int, end: int | None = None) -> int:
        """Give the step from which on gradients are of use for the next move; none is after the last one."""
        following = self.next_due(step)
        return following - self.window if self.due(following, end) else _NEVER

    def end(self, step: int, epoch: int, epochs: int | None, steps: float | None) -> int:
        """Give the step from which on nothing moves: `end_step`, or that after three quarters of a training.

        Args:
            step: Optimizer updates done.
            epoch: Epochs done of the training.
            epochs: Epochs of it in all, or None when that is not known.
            steps: Optimizer updates of an epoch, or None when that is not known.

        Raises:
            KpipeError: When neither `end_step` nor the length of the training is known.
        """
        if self.end_step is not None:
            return self.end_step
        if epochs is None or steps is None:
            raise KpipeError(
                "The length of the training is not known, so regrowth cannot end after three quarters of it. Give "
                f"Regrowth({self.kind!r}, end_step=...)."
            )
        return step - round(epoch * steps) + int(0.75 * epochs * steps)


def regrowth_of(spec: str | Regrowth | Mapping[str, Any] | None) -> Regrowth | None:
    """Give a regrowth by its kind, by its arguments, or as it is.

    Raises:
        KpipeError: For what is none of these.

    Example:
        >>> regrowth_of("set") == Regrowth("set"), regrowth_of({"kind": "rigl", "fraction": 0.5}).fraction
        (True, 0.5)
    """
    if spec is None or isinstance(spec, Regrowth):
        return spec
    if isinstance(spec, str):
        return Regrowth(spec)
    try:
        return Regrowth(**spec)
    except TypeError as error:
        raise KpipeError(
            f"regrowth is {spec!r}; expected one of {', '.join(GROWTHS)}, or a Regrowth with kind, fraction, "
            "frequency, end_step and window."
        ) from error


def replace(
    keep: np.ndarray,
    scores: np.ndarray,
    growth: np.ndarray,
    fraction: float,
    pattern: str | Pattern | MaskFunction = "unstructured",
    sparsity: float | None = None,
) -> np.ndarray:
    """Drop a fraction of what is kept, by lowest score, and grow as many where the growth is highest.

    What has just been dropped may grow again at once: it was the wrong choice then, and nothing of it is lost.

    Args:
        keep: Keep-mask so far, shape (*positions, inputs, outputs); an unstructured pattern takes any.
        scores: Of what is kept, shaped like `keep`.
        growth: Of what is dropped, shaped like `keep`.
        fraction: Of the kept units, in [0, 1].
        pattern: What goes together. One that bounds the sparsity, such as "2:4", has no free units to move.
        sparsity: Afterwards; None for that of before.

    Returns:
        New keep-mask; with None for the sparsity it has as many zeros as before.

    Raises:
        KpipeError: For a pattern whose units are not free, and for NaN.

    Example:
        >>> keep = np.array([True, True, False, False])
        >>> replace(keep, np.array([5.0, 1.0, 0.0, 0.0]), np.array([9.0, 9.0, 1.0, 2.0]), 0.0).tolist()
        [True, True, False, False]
        >>> replace(keep, np.array([5.0, 1.0, 0.0, 0.0]), np.array([0.0, 1.5, 1.0, 2.0]), 0.5).tolist()
        [True, False, False, True]
    """
    chosen = pattern_of(pattern)
    check_free(chosen)
    units = chosen.pool(np.where(keep, scores, -np.inf))
    alive = units > -np.inf
    kept = int(np.count_nonzero(alive))
    gone = units.size - kept if sparsity is None else drop_count(units.size, sparsity)
    drop = max(gone, units.size - kept) + round(fraction * min(kept, units.size - gone))
    (stay,) = keep_highest([units], min(drop, units.size))
    grown = chosen.pool(np.asarray(growth, dtype="float32"))
    (found,) = keep_highest([np.where(stay & alive, np.inf, grown)], gone)
    return chosen.spread(found, keep.shape)


def check_free(pattern: Pattern) -> None:
    """Refuse a pattern whose units cannot move one by one.

    Raises:
        KpipeError: When it bounds the sparsity, or is a function.
    """
    if pattern.limit < 1 or isinstance(pattern, ByFunction):
        raise KpipeError(
            f"The pattern '{pattern}' says which weights may go, so none can grow freely. Use regrowth with "
            "'unstructured' or 'block:RxC', or leave it out."
        )
