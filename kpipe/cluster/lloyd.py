"""Lloyd's algorithm on sorted values: clusters are stretches of them, and their sums differences of one running sum."""

import numpy as np


def lloyd(values: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    """Move centroids to the means of the values that are nearest to them, until nothing moves.

    Each round takes k log n steps for k centroids and n values, not k n: in one dimension the values nearest to a
    centroid are those between the midpoints to its neighbours. A value in the very middle goes to the lesser centroid.

    Args:
        values: In ascending order, 64-bit.
        centroids: Where they begin, in any order.
        iterations: The most rounds; 0: the centroids stay where they are.

    Returns:
        The centroids in ascending order, without those that no value is nearest to.

    Example:
        >>> lloyd(np.array([0.0, 1.0, 9.0, 10.0, 11.0]), np.array([0.0, 1.0]), 10).tolist()
        [0.5, 10.0]

    References:
        Lloyd, Least squares quantization in PCM (1982).
    """
    centroids = np.sort(centroids)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    before = None
    for _ in range(iterations):
        starts = _starts(values, centroids)
        counts = np.diff(starts)
        if not counts.all():
            centroids = _refilled(values, centroids, starts)
            starts = _starts(values, centroids)
            counts = np.diff(starts)
        elif before is not None and (starts == before).all():
            break
        held = counts > 0
        centroids[held] = np.diff(sums[starts])[held] / counts[held]
        centroids.sort()
        before = starts
    return centroids[np.diff(_starts(values, centroids)) > 0]


def midpoints(centroids: np.ndarray) -> np.ndarray:
    """Give the midpoints between neighbours.

    Example:
        >>> midpoints(np.array([0.0, 1.0, 4.0])).tolist()
        [0.5, 2.5]
    """
    return centroids[:-1] + np.diff(centroids) / 2


def _starts(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Give the place at which the values of each centroid begin, and the end of the last."""
    return np.concatenate([[0], np.searchsorted(values, midpoints(centroids), side="right"), [len(values)]])


def _refilled(values: np.ndarray, centroids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Move each centroid without values to a value that is farthest from its own.

    Where there are as many distinct values as centroids, a centroid with two of them or more is away from one of them,
    so that at least one centroid that is empty gets a value in every round.
    """
    empty = np.diff(starts) == 0
    own, first, last = centroids[~empty], starts[:-1][~empty], starts[1:][~empty] - 1
    ends = np.concatenate([values[first], values[last]])  # the farthest is the first or the last
    away = np.abs(ends - np.concatenate([own, own]))
    ends, place = np.unique(ends, return_index=True)
    order = np.argsort(-away[place], kind="stable")
    order = order[away[place][order] > 0][: np.count_nonzero(empty)]
    moved = centroids.copy()
    moved[np.flatnonzero(empty)[: len(order)]] = ends[order]
    return np.sort(moved)
