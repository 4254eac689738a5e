"""Which entries of a weight to keep: (scores, sparsity) -> keep-mask, with exact counts."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.registry import Registry

Pattern = Callable[[np.ndarray, float], np.ndarray]
"""(scores, sparsity) -> boolean keep-mask of the scores' shape; the higher the score, the rather it is kept."""

PATTERNS: Registry[Pattern] = Registry("pattern")
"""Name -> pattern."""

SCOPES = ("layer", "global")

_SMALL = 4096


@PATTERNS("unstructured")
def unstructured(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Drop the round(sparsity * n) entries of lowest score, wherever they are.

    Args:
        scores: Any shape; NaN is refused, infinities are not.
        sparsity: Fraction of entries to drop, in [0, 1).

    Returns:
        Keep-mask, boolean, shaped like `scores`, with exactly round(sparsity * n) False. Among equal scores the lowest
        index (row-major) is dropped first.

    Raises:
        KpipeError: When a score is NaN or the sparsity lies outside [0, 1).

    Example:
        >>> unstructured(np.array([3.0, 1.0, 2.0, 1.0]), 0.5).tolist()
        [True, False, True, False]
        >>> unstructured(np.ones(4), 0.25).tolist()
        [False, True, True, True]
    """
    return keep_highest([scores], drop_count(scores.size, sparsity))[0]


def pattern_of(pattern: str | Pattern) -> Pattern:
    """Give a pattern by name or as it is.

    Raises:
        KpipeError: When the name is not known, or it is neither a name nor a function.

    Example:
        >>> pattern_of("unstructured") is unstructured
        True
    """
    if isinstance(pattern, str):
        return PATTERNS[pattern]
    if callable(pattern):
        return pattern
    raise KpipeError(f"The pattern is {pattern!r}; expected one of {', '.join(PATTERNS)} or a function of scores.")


def keep_masks(
    scores: Mapping[str, np.ndarray], sparsity: float, scope: str = "layer", pattern: str | Pattern = "unstructured"
) -> dict[str, np.ndarray]:
    """Choose what to keep of several weights, each by itself or by one ranking over all of them.

    Args:
        scores: Path -> scores of that weight.
        sparsity: Fraction to drop, in [0, 1).
        scope: "layer": the fraction is dropped from each weight; "global": from all together, where equal scores go by
            the order of the paths first. A global ranking is unstructured.
        pattern: A name or a function of (scores, sparsity).

    Returns:
        Path -> keep-mask.

    Raises:
        KpipeError: For an unknown scope or pattern, or a pattern that has no global ranking.

    Example:
        >>> scores = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, "global").items()}
        {'a': [False, False], 'b': [True, True]}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, "layer").items()}
        {'a': [False, True], 'b': [False, True]}
    """
    chosen = pattern_of(pattern)
    check_scope(scope, chosen)
    if scope == "layer":
        return {path: chosen(values, sparsity) for path, values in scores.items()}
    count = drop_count(sum(values.size for values in scores.values()), sparsity)
    return dict(zip(scores, keep_highest(list(scores.values()), count), strict=True))


def check_scope(scope: str, pattern: Pattern) -> None:
    """Refuse an unknown scope, and a global ranking of anything but single entries.

    Raises:
        KpipeError: When the scope is unknown or does not go with the pattern.

    Example:
        >>> check_scope("model", unstructured)
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The scope is 'model'; expected 'layer' or 'global'.
    """
    if scope not in SCOPES:
        raise KpipeError(f"The scope is {scope!r}; expected 'layer' or 'global'.")
    if scope == "global" and pattern is not unstructured:
        raise KpipeError(
            f"The pattern {pattern!r} has no global ranking. Use scope='layer', or pattern='unstructured'."
        )


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
    for values in flat:
        if values.size and np.isnan(np.max(values)):
            raise KpipeError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN; a ranking needs numbers.")
    if drop == 0:
        return [np.ones(values.shape, bool) for values in scores]
    threshold = smallest(flat, drop)
    ties_left = drop - sum(int(np.count_nonzero(values < threshold)) for values in flat)
    keeps = []
    for values, given in zip(flat, scores, strict=True):
        keep = values > threshold
        ties = np.flatnonzero(values == threshold)
        keep[ties[ties_left:]] = True
        ties_left -= min(ties_left, len(ties))
        keeps.append(keep.reshape(given.shape))
    return keeps


def smallest(arrays: Sequence[np.ndarray], k: int) -> Any:
    """Give the k-th smallest value (k from 1) over several flat arrays.

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
        below = sum(int(np.count_nonzero(values < low)) for values in arrays)
        up_to_low = sum(int(np.count_nonzero(values <= low)) for values in arrays)
        if below < k <= up_to_low:
            return low
        # Strictly between: what was dropped before has one score, and must not be sorted through again.
        between = np.concatenate([values[np.flatnonzero((values > low) & (values < high))] for values in arrays])
        if up_to_low < k <= up_to_low + len(between):
            return np.partition(between, k - up_to_low - 1)[k - up_to_low - 1]
    # NumPy's partition is slower than its sort where many values are equal, and no faster on a few.
    return np.sort(np.concatenate(arrays))[k - 1]


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
