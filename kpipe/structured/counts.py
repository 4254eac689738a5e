"""Counts of what a choice of channels leaves, fast enough to be asked for thousands of choices."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpipe.graph import Trace, TracedWeight


@dataclass(frozen=True)
class Total:
    """A sum of products of constants and numbers of kept channels, prepared for any choice.

    Args:
        classes: The classes of all the axes that count, one axis behind the other.
        starts: Where each axis begins in it.
        terms: The numbers of the axes that each product has, shape (terms, factors); the last axis counts 1 always.
        constants: The constant factor of each, shape (terms,); whole numbers or not.
    """

    classes: np.ndarray
    starts: np.ndarray
    terms: np.ndarray
    constants: np.ndarray

    def __call__(self, keep: np.ndarray) -> Any:
        """Count, where `keep` says which classes stay, shape (classes,), bool."""
        kept = np.add.reduceat(np.r_[keep[self.classes], True].astype(np.int64), self.starts)
        return (self.constants * kept[self.terms].prod(axis=1)).sum().item()


def total(trace: Trace, products: Iterable[tuple[Any, ...]]) -> Total:
    """Prepare a sum of products.

    Args:
        trace: Of the model.
        products: Each a tuple of ids, of which the kept ones are counted, and plain numbers.

    Returns:
        The total.

    Example:
        >>> import keras
        >>> from kpipe.graph import trace
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2)])
        >>> found = trace(net)
        >>> ids = found.weights[0].axes[1]
        >>> total(found, [(ids, 4), (ids, 2), (3,)])(np.arange(found.class_count) != found.groups[0].classes[0])
        33
    """
    axes: dict[bytes, int] = {}
    arrays: list[np.ndarray] = []
    terms: list[list[int]] = []
    constants: list[float] = []
    for product in products:
        constant, found = 1, []
        for factor in product:
            if not isinstance(factor, np.ndarray):
                constant *= factor
                continue
            classes = trace.class_of[factor].reshape(-1)
            number = axes.setdefault(classes.tobytes(), len(axes))
            if number == len(arrays):
                arrays.append(classes)
            found.append(number)
        terms.append(found)
        constants.append(constant)
    width = max(map(len, terms), default=0)
    padded = [found + [len(arrays)] * (width - len(found)) for found in terms]
    starts = np.cumsum([0, *(len(array) for array in arrays)])
    classes = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    factors = np.asarray(padded, np.int64).reshape(len(terms), width)
    whole = all(float(constant).is_integer() for constant in constants)
    return Total(classes, starts, factors, np.asarray(constants, np.int64 if whole else np.float64))


def entries(weight: TracedWeight, *factors: Any) -> tuple[Any, ...]:
    """Give a weight's number of entries as a product, with further factors."""
    return (*factors, *(weight.axes.get(axis, size) for axis, size in enumerate(weight.variable.shape)))


def macs(trace: Trace) -> Total | None:
    """Prepare the multiply-accumulates for one sample, as `Trace.macs` counts them; None when they are not known."""
    if trace.macs() is None:
        return None
    weighed = [entries(weight, weight.reuse) for weight in trace.weights if weight.reuse]
    return total(trace, [*weighed, *(product for layer in trace.layers for product in layer.products)])


def params(trace: Trace) -> Total:
    """Prepare the number of parameters, as `Trace.params` counts them."""
    return total(trace, [entries(weight) for weight in trace.weights])
