"""The part of an array that is kept to compare."""

import numpy as np

KEPT = 1 << 16


def thinned(array: np.ndarray) -> np.ndarray:
    """Give entries of an array at even distances, in order, at most about `KEPT` of them.

    Example:
        >>> thinned(np.arange(6).reshape(2, 3)).tolist(), thinned(np.zeros((300, 1000))).size
        ([0, 1, 2, 3, 4, 5], 60000)
    """
    flat = array.reshape(-1)  # (entries,)
    return flat[:: -(-flat.size // KEPT) or 1]
