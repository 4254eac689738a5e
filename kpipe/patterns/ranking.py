"""Exact counts: how many entries go, and which are the lowest."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from kpipe.errors import KpipeError

_SMALL = 4096


def drop_count(size: int, sparsity: float) -> int:
    """Give how many of `size` entries a sparsity drops: round(sparsity * size).

    Raises:
        KpipeError: When the sparsity is no number in [0, 1).

    Example:
        >>> drop_count(10, 0.86)
        9
    """
    number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)  # a NumPy float is a Real too
    if not number or not 0 <= sparsity < 1:
        raise KpipeError(f"The sparsity is {sparsity!r}; expected a fraction of zeros in [0, 1), such as 0.8.")
    return round(sparsity * size)


def keep_highest(scores: Sequence[np.ndarray], drop: int) -> list[np.ndarray]:
    """Drop exactly `drop` entries of lowest score from several arrays together.

    Among equal scores those of the first arrays go first, and within an array those of the lowest index.

    Example:
        >>> [keep.tolist() for keep in keep_highest([np.array([5, 1]), np.array([1, 7])], 1)]
        [[True, False], [True, True]]
    """
    flat = [np.ravel(values) for values in scores]
    if drop == 0:
        refuse_nan(flat)
        return [np.ones(values.shape, bool) for values in scores]
    threshold = smallest(flat, drop)
    lower = [int(np.count_nonzero(values < threshold)) for values in flat]
    ties_left, keeps = drop - sum(lower), []
    for values, given, below in zip(flat, scores, lower, strict=True):
        keep = values > threshold
        ties = np.flatnonzero(values == threshold)
        if below + len(ties) + np.count_nonzero(keep) < len(values):  # NaN is none of the three
            refuse_nan(flat)
        keep[ties[ties_left:]] = True
        ties_left -= min(ties_left, len(ties))
        keeps.append(keep.reshape(given.shape))
    return keeps


def keep_sized(
    scores: Sequence[np.ndarray], sizes: Sequence[np.ndarray], drop: int, at_most: bool = False
) -> list[np.ndarray]:
    """Drop units of several entries, those of lowest score, until about `drop` entries are gone.

    Args:
        scores: Of the units, one array a weight. Equal ones go by the order of the arrays, then by index.
        sizes: Number of entries of each unit, shaped like the scores.
        drop: Number of entries to drop.
        at_most: Stay at `drop` or below; else come as near as can be, below it when two are equally near.

    Returns:
        Keep-masks, boolean, shaped like the scores.

    Example:
        >>> keep_sized([np.array([3.0, 1.0]), np.array([2.0])], [np.array([4, 4]), np.array([2])], 7)
        [array([ True, False]), array([False])]
    """
    smallest_size, largest_size = min(map(np.min, sizes)), max(map(np.max, sizes))
    if smallest_size == largest_size:
        count, rest = divmod(drop, int(largest_size))
        return keep_highest(scores, count + (not at_most and 2 * rest > largest_size))
    flat = np.concatenate([np.ravel(values) for values in scores])
    refuse_nan([flat])
    order = np.argsort(flat, kind="stable")
    gone = np.r_[0, np.cumsum(np.concatenate([np.ravel(size) for size in sizes])[order])]  # after 0, 1, 2, ... units
    count = int(np.searchsorted(gone, drop, side="right")) - 1
    if not at_most and count < len(flat) and gone[count + 1] - drop < drop - gone[count]:
        count += 1
    keep = np.ones(flat.shape, bool)
    keep[order[:count]] = False
    ends = np.cumsum([values.size for values in scores])[:-1]
    return [part.reshape(values.shape) for part, values in zip(np.split(keep, ends), scores, strict=True)]


def smallest(arrays: Sequence[np.ndarray], k: int) -> Any:
    """Give the k-th smallest value (k from 1) over several flat arrays, which hold no NaN.

    A random sample says between which two values the answer very likely lies; counting proves it, and only what lies
    between is partitioned. Should the proof fail, everything is sorted: the result is exact in any case.

    Example:
        >>> int(smallest([np.array([4, 2]), np.array([9, 1])], 3))
        4

    References:
        Floyd and Rivest, Expected time bounds for selection (1975).
    """
    size = sum(len(values) for values in arrays)
    if size > _SMALL:
        low, high = _bracket(arrays, size, k)
        above, parts = 0, []
        for values in arrays:
            chosen = values > low
            above += int(np.count_nonzero(chosen))
            chosen &= values < high
            # Strictly between: what was dropped before has one score, and must not be sorted through again.
            parts.append(values[np.flatnonzero(chosen)])
        between, further = np.concatenate(parts), k - (size - above)
        if 0 < further <= len(between):
            return np.partition(between, further - 1)[further - 1]
        if further <= 0 and sum(int(np.count_nonzero(values < low)) for values in arrays) < k:
            return low
        if low < high and 0 < further <= len(between) + sum(int(np.count_nonzero(values == high)) for values in arrays):
            return high
    # NumPy's partition is slower than its sort where many values are equal, and no faster on a few.
    everything = np.concatenate(arrays)
    everything.sort()
    return everything[k - 1]


def refuse_nan(scores: Sequence[np.ndarray]) -> None:
    """Refuse scores of which one is NaN.

    Raises:
        KpipeError: When one is.
    """
    for values in scores:
        if values.size and np.isnan(np.max(values)):
            raise KpipeError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN; a ranking needs numbers.")


def _bracket(arrays: Sequence[np.ndarray], size: int, k: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    wanted = min(1024 + size // 128, 1 << 16)
    parts = [values[rng.integers(0, len(values), 1 + wanted * len(values) // size)] for values in arrays if len(values)]
    sample = np.sort(np.concatenate(parts))
    share, count = k / size, len(sample)
    margin = 4 * np.sqrt(share * (1 - share) / count) + 1 / count
    first, last = int(np.floor((share - margin) * count)), int(np.ceil((share + margin) * count))
    low = sample[first] if first >= 0 else min(np.min(values) for values in arrays if len(values))
    high = sample[last] if last < count else max(np.max(values) for values in arrays if len(values))
    return low, high
