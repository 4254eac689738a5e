"""Criteria: how much each entry of a weight matters. A new criterion is one function of `Evidence`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.layers import KERNEL_ROLES
from kpipe.registry import Registry
from kpipe.saliency.evidence import Evidence, fields_of

Criterion = Callable[[Evidence], np.ndarray | None]
"""Evidence -> elementwise scores shaped like the weight (higher: keep), or None: not mine to judge."""

CRITERIA: Registry[Criterion] = Registry("criterion")
"""Facts of a criterion: `needs`, the names of the fields of `Evidence` that it looks at beside the weight (a name or
several), and `comparable`: its scores compare between layers as they are. `criterion_of` reads them."""

_UNSAID = {"needs": (), "comparable": False}


@CRITERIA("magnitude", needs=(), comparable=False)
@CRITERIA("l1", needs=(), comparable=False)
def l1(evidence: Evidence) -> np.ndarray | None:
    """Score by |w|: the L1 norm once summed over a channel (Li et al. 2017); "magnitude" is its name for weights.

    Example:
        >>> import numpy as np
        >>> l1(Evidence("kernel", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))).tolist()
        [1.0, 2.0]
    """
    return np.abs(evidence.weight) if evidence.role in KERNEL_ROLES else None


@CRITERIA("l2", needs=(), comparable=False)
def l2(evidence: Evidence) -> np.ndarray | None:
    """Score by w²: the squared L2 norm once summed over a channel.

    Example:
        >>> import numpy as np
        >>> l2(Evidence("kernel", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))).tolist()
        [1.0, 4.0]
    """
    return np.square(evidence.weight) if evidence.role in KERNEL_ROLES else None


@CRITERIA("random", needs=(), comparable=True)
def random(evidence: Evidence) -> np.ndarray | None:
    """Score by seeded uniform chance: the floor that any other criterion has to beat."""
    return evidence.rng.random(evidence.weight.shape) if evidence.role in KERNEL_ROLES else None


@CRITERIA("taylor", needs=("grad",), comparable=True)
def taylor(evidence: Evidence) -> np.ndarray | None:
    """Score by |w · dL/dw|: the first-order change of the loss when the entry goes (Molchanov et al. 2017).

    Example:
        >>> import numpy as np
        >>> w, g = np.array([1.0, -2.0]), np.array([-3.0, 0.5])
        >>> taylor(Evidence("kernel", w, g, g**2, np.random.default_rng(0))).tolist()
        [3.0, 1.0]
    """
    if evidence.grad is None or evidence.role == "statistic":
        return None
    return np.abs(evidence.weight * evidence.grad)


def criterion_of(criterion: str | Criterion) -> tuple[Criterion, dict[str, Any]]:
    """Give a criterion by name or as it is, with its facts; a plain function may ask for more by `.needs`.

    Args:
        criterion: A registered name, or a function of `Evidence`. A function that wants more than the weight carries
            an attribute `needs`: the name of a field of `Evidence`, or several.

    Returns:
        The function, and its facts: `needs`, a tuple of names of fields, and `comparable`.

    Raises:
        KpipeError: When the name is not known, or it is neither a name nor a function.
    """
    if isinstance(criterion, str):
        function, facts = CRITERIA[criterion], CRITERIA.facts(criterion)
    elif callable(criterion):
        function, facts = criterion, {"needs": getattr(criterion, "needs", None)}
    else:
        raise KpipeError(f"Expected a criterion's name or a function of Evidence. Received: {criterion!r}.")
    facts = _UNSAID | facts
    return function, facts | {"needs": fields_of(facts["needs"])}


def score(criterion: Criterion, evidence: Evidence, path: str) -> np.ndarray | None:
    """Ask a criterion for one weight's scores and check what it gives.

    Args:
        criterion: The function.
        evidence: Of the weight.
        path: Of the weight, for the error.

    Returns:
        Scores shaped like the weight, float64, or None where the criterion does not judge.

    Raises:
        KpipeError: When the scores have another shape or are not finite.
    """
    scores = criterion(evidence)
    if scores is None:
        return None
    scores = np.asarray(scores, dtype="float64")
    finite = bool(np.isfinite(scores).all())
    if scores.shape != evidence.weight.shape or not finite:
        raise KpipeError(
            f"The criterion gave scores of shape {scores.shape} for {path!r}, all finite: {finite}. "
            f"Expected finite scores of shape {evidence.weight.shape}, or None."
        )
    return scores
