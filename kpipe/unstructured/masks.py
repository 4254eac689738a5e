"""Pure functions from scores to masks that only ever lose entries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout
from kpipe.patterns import (
    Global,
    MaskFunction,
    Pattern,
    Scope,
    Unstructured,
    drop_count,
    keep_highest,
    pattern_of,
    scope_of,
)
from kpipe.saliency import Criterion, Evidence, blame

Masks = Mapping[str, np.ndarray]
Scores = Mapping[str, np.ndarray]

_SMALL = 8192


def due(
    shapes: Mapping[str, tuple[int, ...]],
    dropped: Mapping[str, int],
    sparsity: float,
    scope: str | Mapping[str, Any] | Scope,
    pattern: str | Pattern | MaskFunction = "unstructured",
) -> list[str]:
    """List the weights that have to be ranked: all but those of which the counts alone say that nothing can change.

    What is dropped stays dropped, so nothing can where as many entries are dropped as asked for. Where the pattern
    counts other units than entries, the scores have to tell.

    Args:
        shapes: Path -> shape of the scores, (*positions, inputs, outputs).
        dropped: Path -> number of entries that are dropped.
        sparsity: Fraction of zeros asked for, in [0, 1).
        scope: Where it judges each weight by itself, those that lack zeros are listed; else all, if any lacks some.
        pattern: What goes together.

    Example:
        >>> shapes, dropped = {"a": (2, 2), "b": (2, 1)}, {"a": 0, "b": 1}
        >>> due(shapes, dropped, 0.5, "layer"), due(shapes, dropped, 0.5, "erk")
        (['a'], ['a', 'b'])
        >>> due({"a": (5, 8)}, {"a": 24}, 0.5, "layer"), due({"a": (5, 8)}, {"a": 24}, 0.5, "layer", "block:4x1")
        ([], ['a'])
    """
    scope, pattern = scope_of(scope), pattern_of(pattern)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    shares = scope.sparsities(shapes, sparsity, pattern)
    if shares is None:
        reached = scope.ranks and pattern.reached(sum(sizes.values()), sum(dropped.values()), sparsity)
        return [] if reached else list(shapes)
    lacking = [path for path in shapes if not pattern.reached(sizes[path], dropped[path], shares[path])]
    return lacking if scope.alone or not lacking else list(shapes)


def drop_more(
    keeps: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str | Mapping[str, Any] | Scope = "layer",
    pattern: str | Pattern | MaskFunction = "unstructured",
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, np.ndarray]:
    """Drop entries of lowest score until the sparsity is reached; what was dropped before stays dropped.

    Args:
        keeps: Path -> keep-mask so far.
        scores: Path -> scores of the same shape.
        sparsity: Fraction of zeros, in [0, 1), counting those dropped before.
        scope: How it is shared out among the weights.
        pattern: What goes together.
        layouts: Path -> which axes a pattern of several entries is to see as inputs and outputs; None: those of most
            kernels.

    Returns:
        Path -> new keep-mask; an unstructured one has exactly max(round(sparsity * n), dropped before) zeros.

    Raises:
        KpipeError: When a score of what is kept is NaN; when the sparsity, the scope and the pattern do not fit.

    Example:
        >>> keep = {"a": np.array([True, True, False, True])}
        >>> drop_more(keep, {"a": np.array([3.0, 1.0, 9.0, 2.0])}, 0.5)["a"].tolist()
        [True, False, False, True]
    """
    scope, pattern = scope_of(scope), pattern_of(pattern)
    given = layouts or {}
    layout = {path: given.get(path, NATURAL) for path in keeps}
    try:
        if isinstance(pattern, Unstructured):  # single entries lie anywhere: nothing is turned for them
            shapes = {p: given[p].turned_shape(keep.shape) if p in given else keep.shape for p, keep in keeps.items()}
            return _drop_entries(keeps, scores, sparsity, scope, shapes)
        alive = {path: _turned(layout[path], keep) for path, keep in keeps.items()}
        found = _shrunk(alive, {path: _turned(layout[path], scores[path]) for path in keeps}, sparsity, scope, pattern)
    except KpipeError:
        _refuse_nan(keeps, scores)  # which says of what weight it is
        raise
    return {path: _back(layout[path], found[path], keep.shape) for path, keep in keeps.items()}


def _drop_entries(
    keeps: Masks, scores: Scores, sparsity: float, scope: Scope, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    shares = scope.sparsities(shapes, sparsity, Unstructured())
    if shares is not None:
        drops = {path: drop_count(keep.size, shares[path]) for path, keep in keeps.items()}
        return {path: drop_lowest([keep], [scores[path]], drops[path])[0] for path, keep in keeps.items()}
    if scope == Global():
        drop = drop_count(sum(keep.size for keep in keeps.values()), sparsity)
        new = drop_lowest(list(keeps.values()), [scores[path] for path in keeps], drop)
        return dict(zip(keeps, new, strict=True))
    return _shrunk(keeps, scores, sparsity, scope, Unstructured())


def _shrunk(keeps: Masks, scores: Scores, sparsity: float, scope: Scope, pattern: Pattern) -> dict[str, np.ndarray]:
    marked = {p: scores[p] if keep.all() else np.where(keep, scores[p], -np.inf) for p, keep in keeps.items()}
    found = scope.keep(marked, sparsity, pattern)
    return {path: np.logical_and(found[path], keep) for path, keep in keeps.items()}


def _turned(layout: Layout, values: np.ndarray) -> np.ndarray:
    return values if layout == NATURAL else layout.turn(values)


def _back(layout: Layout, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values if layout == NATURAL else layout.back(values, shape)


def _refuse_nan(keeps: Masks, scores: Scores) -> None:
    for path, keep in keeps.items():
        wrong = int(np.count_nonzero(np.isnan(scores[path]) & keep))
        if wrong:
            raise KpipeError(
                f"{wrong} of the scores of {path!r} are NaN, {keep.size} in all; a ranking needs numbers. Look whether "
                "the weight has become NaN in training; a lower learning rate may help. Else the criterion makes them."
            )


def drop_lowest(keeps: Sequence[np.ndarray], scores: Sequence[np.ndarray], drop: int) -> list[np.ndarray]:
    """Drop the lowest of what is kept of several weights together, until `drop` entries are gone.

    Training drops a few entries at a time, so only these are looked for: a sample gives a bound that very likely has
    enough below it, and what lies below is ranked. Should it not have, all that is kept is ranked.

    Args:
        keeps: Keep-masks.
        scores: Of the same shapes; of what is dropped they say nothing.
        drop: Number of entries to be gone, counting those dropped before.

    Returns:
        New keep-masks; the given ones when as many are gone already. Among equal scores those of the first weight, and
        in it those of the lowest index, go first.

    Raises:
        KpipeError: When a score of what is kept is NaN.

    Example:
        >>> drop_lowest([np.array([True, False]), np.array([True, True])], [np.array([3, 0]), np.array([1, 2])], 2)
        [array([ True, False]), array([False,  True])]
    """
    flat = [(np.ravel(keep), np.ravel(values)) for keep, values in zip(keeps, scores, strict=True)]
    kept = sum(int(np.count_nonzero(keep)) for keep, _ in flat)
    size = sum(keep.size for keep, _ in flat)
    more = drop - (size - kept)
    if more <= 0:
        return list(keeps)
    bound = _bound(flat, kept, more)
    if bound is None and kept == size:
        return keep_highest(scores, drop)  # no index of every entry: a first pruning takes little memory
    below = [np.flatnonzero(keep if bound is None else _not_above(bound, keep, values)) for keep, values in flat]
    if sum(map(len, below)) < more:
        below = [np.flatnonzero(keep) for keep, _ in flat]
    stay = keep_highest([values[places] for (_, values), places in zip(flat, below, strict=True)], more)
    found = []
    for keep, places, stays in zip(keeps, below, stay, strict=True):
        new = keep.copy()
        new.reshape(-1)[places[~stays]] = False
        found.append(new)
    return found


def _not_above(bound: Any, keep: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Tell what is kept and not above the bound: NaN is among it, and is refused where these few are ranked."""
    above = values > bound
    return np.greater(keep, above, out=above)


def _bound(flat: Sequence[tuple[np.ndarray, np.ndarray]], kept: int, more: int) -> Any:
    """Give a score that more than `more` of the kept entries very likely do not exceed; None when most would not."""
    size = sum(keep.size for keep, _ in flat)
    if size <= _SMALL or 8 * more > kept:
        return None
    # Every so many entries: an odd distance, so that few sizes of an axis let the same column come again and again.
    apart = size // (1024 + size // 128) | 1
    parts = [values[::apart][keep[::apart]] for keep, values in flat]
    sample = np.concatenate(parts)
    rank = more / kept * len(sample)
    last = int(rank + 4 * np.sqrt(rank) + 4)
    return np.partition(sample, last)[last] if last < len(sample) else None


def judge(criterion: Criterion, evidence: Mapping[str, Evidence]) -> dict[str, np.ndarray]:
    """Score several weights by a criterion.

    Raises:
        KpipeError: When it does not judge one of them, or gives scores of another shape, or NaN for what is not finite.

    Example:
        >>> evidence = {"a": Evidence("kernel", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))}
        >>> judge(lambda known: abs(known.weight), evidence)["a"].tolist()
        [1.0, 2.0]
    """
    scores = {}
    for path, known in evidence.items():
        found = criterion(known)
        if found is None or np.shape(found) != known.weight.shape:
            received = "None" if found is None else f"scores of shape {np.shape(found)}"
            raise KpipeError(
                f"The criterion gave {received} for {path!r} (role {known.role!r}); expected scores of shape "
                f"{known.weight.shape}. Choose another criterion, or leave the weight out with layers=..."
            )
        found = np.asarray(found)
        if np.isnan(found).any() and (culprit := blame(known, path)):
            raise KpipeError(culprit)
        scores[path] = found if found.dtype.kind == "f" and found.itemsize >= 4 else found.astype("float32")
    return scores
