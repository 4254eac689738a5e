"""Maps w -> w of weights, and the one that pruning holds: a mask."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kpipe.projections.host import put, view

Projection = Callable[[Any], Any]
"""w -> w of the same shape; applying it twice changes nothing more."""


def chain(*projections: Projection | None) -> Projection:
    """Apply several projections one after the other: the last one wins. None stands for no projection.

    Example:
        >>> chain(None, abs, lambda w: min(w, 2))(-3)
        2
    """
    given = [projection for projection in projections if projection is not None]

    def apply(w: Any) -> Any:
        for projection in given:
            w = projection(w)
        return w

    return apply


def masked(weight: Any, keep: Any) -> Any:
    """Give a weight with exact zeros where its keep-mask is False, whatever stands there.

    Example:
        >>> masked(np.array([1.0, np.nan]), np.array([True, False])).numpy().tolist()
        [1.0, 0.0]
    """
    weight = tf.convert_to_tensor(weight)
    # The plain kernel: tf.where takes one that can broadcast, and half as long again.
    return tf.raw_ops.Select(condition=tf.convert_to_tensor(keep), x=weight, y=tf.zeros_like(weight))


class Mask:
    """Keep the entries of a keep-mask and set all others to exactly zero, whatever they hold (NaN too).

    The keep-mask is a variable of one byte an entry, so that it can change while a compiled train step uses it.

    Example:
        >>> Mask(np.array([True, False]))(np.array([1.0, np.nan])).numpy().tolist()
        [1.0, 0.0]
    """

    def __init__(self, keep: np.ndarray):
        self.keep = tf.Variable(tf.constant(keep, tf.bool), trainable=False, name="keep")

    def __call__(self, w: Any) -> Any:
        return masked(w, self.keep)

    def assign(self, keep: np.ndarray) -> None:
        """Change the keep-mask; the array may be taken over as it is, so do not write to it afterwards."""
        put(self.keep, keep)

    def numpy(self) -> np.ndarray:
        """Give the keep-mask; it cannot be written to."""
        return view(self.keep)
