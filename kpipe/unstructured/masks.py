"""Pure functions from scores to masks that only ever lose entries."""

from collections.abc import Mapping

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns import Pattern, Unstructured, drop_count, keep_masks, unstructured
from kpipe.saliency import Criterion, Evidence


def first_mask(weight: np.ndarray) -> np.ndarray:
    """Keep what is not zero: a weight that is sparse already stays so. All zeros is no pruning: keep all.

    Example:
        >>> first_mask(np.array([0.0, 2.0])).tolist(), first_mask(np.zeros(2)).tolist()
        ([False, True], [True, True])
    """
    keep = weight != 0
    return keep if keep.any() else ~keep


def due(keeps: Mapping[str, np.ndarray], dropped: Mapping[str, int], sparsity: float, scope: str) -> list[str]:
    """List the weights of which an unstructured mask has fewer zeros than asked for.

    What is dropped stays dropped, so where the count is reached nothing can change and no ranking is needed.

    Args:
        keeps: Path -> keep-mask.
        dropped: Path -> its number of False entries.
        sparsity: Fraction of zeros asked for, in [0, 1).
        scope: "layer" or "global".

    Example:
        >>> due({"a": np.ones(4, bool), "b": np.array([True, False])}, {"a": 0, "b": 1}, 0.5, "layer")
        ['a']
    """
    if scope == "global":
        asked = drop_count(sum(keep.size for keep in keeps.values()), sparsity)
        return list(keeps) if sum(dropped.values()) < asked else []
    return [path for path, keep in keeps.items() if dropped[path] < drop_count(keep.size, sparsity)]


def drop_more(
    keeps: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str = "layer",
    pattern: Pattern = unstructured,
) -> dict[str, np.ndarray]:
    """Drop entries of lowest score until the sparsity is reached; what was dropped before stays dropped.

    Args:
        keeps: Path -> keep-mask so far.
        scores: Path -> scores of the same shape.
        sparsity: Fraction of zeros, in [0, 1), counting those dropped before.
        scope: "layer" or "global".
        pattern: Function of (scores, sparsity).

    Returns:
        Path -> new keep-mask; an unstructured one has exactly max(round(sparsity * n), dropped before) zeros.

    Example:
        >>> keep = {"a": np.array([True, True, False, True])}
        >>> drop_more(keep, {"a": np.array([3.0, 1.0, 9.0, 2.0])}, 0.5)["a"].tolist()
        [True, False, False, True]
    """
    if isinstance(pattern, Unstructured) and all(not np.isnan(np.max(scores[path])) for path in keeps):
        chosen = keep_masks(scores, sparsity, scope, pattern)
        if not any(np.any(chosen[path] > keep) for path, keep in keeps.items()):
            return chosen  # what was dropped ranks lowest as it is: a magnitude of zero
    ranked = {path: np.where(keep, scores[path], -np.inf) for path, keep in keeps.items()}
    chosen = keep_masks(ranked, sparsity, scope, pattern)
    for path, keep in keeps.items():
        if chosen[path].shape != keep.shape:
            raise KpipeError(
                f"The pattern gave a mask of shape {chosen[path].shape} for {path!r}; expected {keep.shape}, one "
                "boolean an entry."
            )
    return {path: np.logical_and(chosen[path], keep) for path, keep in keeps.items()}


def judge(criterion: Criterion, evidence: Mapping[str, Evidence]) -> dict[str, np.ndarray]:
    """Score several weights by a criterion.

    Raises:
        KpipeError: When it does not judge one of them, or gives scores of another shape.

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
        scores[path] = found if found.dtype.kind == "f" and found.itemsize >= 4 else found.astype("float32")
    return scores
