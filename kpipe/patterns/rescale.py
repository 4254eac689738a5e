"""Make the scores of different weights comparable, without changing their order within a weight."""

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.pattern import Rescale


def mean(scores: np.ndarray) -> np.ndarray:
    """Divide by the mean of the absolute scores; what was dropped before (-inf) counts as nothing in it.

    Example:
        >>> mean(np.array([1.0, 3.0, -np.inf, 4.0])).tolist()
        [0.5, 1.5, -inf, 2.0]
    """
    live = scores > -np.inf
    total = np.sum(np.abs(scores), where=live, dtype="float64")
    return scores if total == 0 else scores / scores.dtype.type(total / scores.size)


def lamp(scores: np.ndarray) -> np.ndarray:
    """Divide the square of each score by the sum of the squares of all that are no lower.

    The highest score becomes 1. What was dropped before (-inf) stays so and counts as nothing.

    Raises:
        KpipeError: When a score is negative or infinite: squares would change the order.

    Example:
        >>> lamp(np.array([1.0, 2.0, 2.0, -np.inf])).tolist()  # 1/9, 4/8, 4/8
        [0.1111111111111111, 0.5, 0.5, -inf]

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning (2021), https://arxiv.org/abs/2010.07611
    """
    flat = scores.reshape(-1)
    order = np.argsort(flat, kind="stable")
    dropped = int(np.searchsorted(flat[order], -np.inf, side="right"))
    order = order[dropped:]
    values = flat[order].astype("float64")
    if len(values) and (values[0] < 0 or not np.isfinite(values[-1])):
        raise KpipeError(
            f"LAMP needs scores that are finite and not negative. Received: {values[0]:.4g} to {values[-1]:.4g}. Use "
            "normalise='mean', or a criterion such as magnitude."
        )
    squares = np.square(values / values[-1]) if len(values) and values[-1] > 0 else values  # no overflow
    above = np.cumsum(squares[::-1])[::-1]  # the sum of those at this place and after it
    first = np.r_[True, values[1:] > values[:-1]] if len(values) else np.zeros(0, bool)
    above = above[np.maximum.accumulate(np.where(first, np.arange(len(values)), 0))]  # equal scores share one sum
    found = np.full(flat.shape, -np.inf)
    found[order] = np.divide(squares, above, out=np.zeros_like(squares), where=above > 0)
    return found.reshape(scores.shape)


RESCALES: dict[str, Rescale | None] = {"none": None, "mean": mean, "lamp": lamp}
"""Name -> function; None leaves the scores as they are."""
