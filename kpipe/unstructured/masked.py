"""A weight with its mask as a saved variable, and the projection that holds the zeros."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.layers import Layout
from kpipe.patterns import Pattern
from kpipe.projections import Projection, chain, first_mask, masked, put, view
from kpipe.unstructured.masks import drop_more


@dataclass(frozen=True)
class MaskedWeight:
    """Hold a weight and the variables that say what is kept of it; `layout` says its axes.

    Args:
        weight: The kernel; what the mask drops is zero in it.
        mask: Boolean, shaped like the weight: True where an entry is kept.
        threshold: The lowest magnitude that was kept when the mask last changed; 0 before.
        layout: The axes of the weight.
    """

    weight: keras.Variable
    mask: keras.Variable
    threshold: keras.Variable
    layout: Layout

    def keep_zeros(self) -> None:
        """Drop what is zero already, so that it stays zero; a weight of zeros alone has not been trained and stays."""
        self._keep(view(self.mask) & first_mask(view(self.weight)))

    def drop(self, pattern: Pattern, sparsity: float) -> None:
        """Drop what is smallest until the sparsity is reached; what was dropped before stays dropped."""
        turned = self.layout.turn(np.abs(view(self.weight).astype("float32", copy=False)))
        asked = whole_pattern(pattern, sparsity, turned)
        before = self.layout.turn(view(self.mask))
        keep = drop_more({"": before}, {"": turned}, asked, pattern=pattern)[""]
        if keep is not before:  # else as much is gone already
            self._keep(np.ascontiguousarray(self.layout.back(keep, self.weight.shape)))
        else:
            self.project()
        self.threshold.assign(np.min(turned, where=keep, initial=np.inf))

    def _keep(self, keep: np.ndarray) -> None:
        put(self.mask.value, keep)
        self.project()

    def project(self) -> None:
        """Set to zero what the mask drops; on the host, where that takes less time than inside TensorFlow."""
        weight = view(self.weight).copy()
        np.copyto(weight, 0, where=~view(self.mask))
        put(self.weight.value, weight)

    @property
    def dropped(self) -> int:
        """How many entries the mask drops."""
        mask = view(self.mask)
        return mask.size - int(np.count_nonzero(mask))


class KeepMasked(keras.constraints.Constraint):
    """Apply the constraint that a variable had before, then its mask: the optimizer calls it after every update.

    Args:
        before: The constraint that the variable had.
        mask: The variable that says what is kept.

    Example:
        >>> KeepMasked(None, keras.Variable([True, False], dtype="bool"))(np.ones(2)).numpy().tolist()
        [1.0, 0.0]
    """

    def __init__(self, before: Projection | None, mask: keras.Variable):
        self.before, self.mask = before, mask

    def __call__(self, w: Any) -> Any:
        return masked(chain(self.before)(w), self.mask)


def whole_pattern(pattern: Pattern, sparsity: float, scores: np.ndarray) -> float:
    """Turn a sparsity into the one for which a pattern drops as many units as TFMOT does.

    TFMOT keeps max(round(units * (1 - sparsity)), 1) units, in 32-bit floating point with halves to the even number; a
    pattern with a limit, n:m, is made whole at once, whatever the sparsity.

    Args:
        pattern: What goes together.
        sparsity: Fraction of zeros asked for, in [0, 1).
        scores: Shape (*positions, inputs, outputs).

    Example:
        >>> from kpipe.patterns import pattern_of
        >>> scores = np.arange(5.0)
        >>> pattern_of("unstructured")(scores, whole_pattern(pattern_of("unstructured"), 0.5, scores)).tolist()
        [False, False, False, True, True]
        >>> whole_pattern(pattern_of("1:4"), 0.5, np.ones((8, 2)))
        0.75
    """
    if pattern.limit < 1:
        return pattern.limit
    sizes = pattern.sizes(scores.shape)
    units = scores.size if sizes is None else sizes.size
    kept = max(int(np.round(np.float32(units) * (np.float32(1) - np.float32(sparsity)))), 1)
    return (units - min(kept, units)) / units
