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
    """Divide the square of each score by the sum of the squares from it on, in ascending order; ties by index.

    The last of the highest scores becomes 1. What was dropped before (-inf) stays so and counts as nothing.

    Raises:
        KpipeError: When a score is negative or infinite: squares would change the order.

    Example:
        >>> lamp(np.array([1.0, 2.0, 2.0, -np.inf])).tolist()  # 1/9, 4/8, 4/4
        [0.1111111111111111, 0.5, 1.0, -inf]

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning (2021), https://arxiv.org/abs/2010.07611
    """
    flat = scores.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[int(np.count_nonzero(flat == -np.inf)) :]
    values = flat[order].astype("float64")
    found = np.full(flat.shape, -np.inf)
    if len(values):
        lowest, highest = values[0], values[-1]
        if not (lowest >= 0 and np.isfinite(highest)):
            raise KpipeError(
                f"LAMP needs scores that are finite and not negative. Received: {lowest:.4g} to {highest:.4g}. Use "
                "normalise='mean', or a criterion such as magnitude."
            )
        squares = np.square(values / highest) if highest > 0 else values  # no overflow
        rest = np.cumsum(squares[::-1])[::-1]
        found[order] = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
    return found.reshape(scores.shape)


RESCALES: dict[str, Rescale | None] = {"none": None, "mean": mean, "lamp": lamp}
"""Name -> function; None leaves the scores as they are."""
