"""Criteria that judge channels whole, and how every criterion comes to judge channels.

A function of `CHANNEL_CRITERIA` gets `Evidence` whose arrays have one row for each channel, (channels, entries): all
that a weight has to produce it. It gives one score a channel, shape (channels,), higher: keep; or None: not mine to
judge. Its facts are those of `CRITERIA`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kpipe.errors import KpipeError
from kpipe.layers import KERNEL_ROLES
from kpipe.patterns.rescale import lamp as layer_adaptive
from kpipe.registry import nearest
from kpipe.saliency.criteria import CHANNEL_CRITERIA, CRITERIA, Criterion, blame, criterion_of
from kpipe.saliency.evidence import Evidence, fields_of

Reduction = Literal["sum", "mean", "max", "first"]
"""How the scores of a channel by several weights become one."""


@CHANNEL_CRITERIA("random", needs=(), comparable=True, reduction="first")
def random(evidence: Evidence) -> np.ndarray | None:
    """Score by seeded uniform chance, one draw a channel: the floor that any other criterion has to beat.

    Example:
        >>> rows = Evidence("kernel", np.ones((3, 2)), None, None, np.random.default_rng(0))
        >>> random(rows).shape
        (3,)
    """
    return evidence.rng.random(len(evidence.weight)) if evidence.role in KERNEL_ROLES else None


@CHANNEL_CRITERIA("fpgm", needs=(), comparable=False)
def fpgm(evidence: Evidence) -> np.ndarray | None:
    """Score by Σ ‖F - F'‖₂ over the filters F' of the layer: low for one near the geometric median, told by others.

    Example:
        >>> rows = Evidence("kernel", np.array([[0.0], [1.0], [3.0]]), None, None, np.random.default_rng(0))
        >>> fpgm(rows).tolist()
        [4.0, 3.0, 5.0]

    References:
        He et al., Filter pruning via geometric median (2019), https://arxiv.org/abs/1811.00250
    """
    if evidence.role not in KERNEL_ROLES:
        return None
    rows = evidence.weight.astype("float64")
    squares = np.einsum("ce,ce->c", rows, rows)
    distances = squares[:, None] + squares - 2 * rows @ rows.T  # (channels, channels)
    np.fill_diagonal(distances, 0.0)
    return np.sqrt(distances.clip(0.0)).sum(axis=1)


@CHANNEL_CRITERIA("lamp", needs=(), comparable=True)
def lamp(evidence: Evidence) -> np.ndarray | None:
    """Score by ‖F‖² / Σ ‖F'‖² over the filters F' of the layer from F on, in ascending order of norm; the last gets 1.

    Example:
        >>> filters = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> rows = Evidence("kernel", filters, None, None, np.random.default_rng(0))
        >>> lamp(rows).tolist()  # 1/9, 4/8, 4/4
        [0.1111111111111111, 0.5, 1.0]

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning (2021), https://arxiv.org/abs/2010.07611
    """
    if evidence.role not in KERNEL_ROLES:
        return None
    return layer_adaptive(np.linalg.norm(evidence.weight.astype("float64"), axis=1))


@CHANNEL_CRITERIA("apoz", needs=("active",), comparable=False, reduction="first")
def apoz(evidence: Evidence) -> np.ndarray | None:
    """Score by the fraction of a channel's activations that are not zero: 1 minus its average percentage of zeros.

    Example:
        >>> active = np.array([[0.25, 0.25], [1.0, 1.0]])
        >>> apoz(Evidence("kernel", np.ones((2, 2)), None, None, np.random.default_rng(0), active=active)).tolist()
        [0.25, 1.0]

    References:
        Hu et al., Network trimming: a data-driven neuron pruning approach (2016), https://arxiv.org/abs/1607.03250
    """
    return None if evidence.active is None else evidence.active.mean(axis=1)


@CHANNEL_CRITERIA("mean_activation", needs=("outputs",), comparable=False, reduction="first")
def mean_activation(evidence: Evidence) -> np.ndarray | None:
    """Score by the mean size |a| of a channel's activations on the data.

    Example:
        >>> outputs = np.array([[0.5, 0.5], [2.0, 2.0]])
        >>> rows = Evidence("kernel", np.ones((2, 2)), None, None, np.random.default_rng(0), outputs=outputs)
        >>> mean_activation(rows).tolist()
        [0.5, 2.0]

    References:
        Molchanov et al., Pruning convolutional neural networks (2017), https://arxiv.org/abs/1611.06440
    """
    return None if evidence.outputs is None else evidence.outputs.mean(axis=1)


@dataclass(frozen=True)
class ChannelJudge:
    """How a criterion judges channels.

    Args:
        name: Of the criterion.
        function: Evidence -> scores.
        needs: The fields of `Evidence` that it looks at beside the weight.
        comparable: Its scores compare between layers as they are.
        whole: It is given one row for each channel and judges it whole; else it judges entries, which are summed.
        reduction: How scores by several weights become one when it is not said.
    """

    name: str
    function: Criterion
    needs: tuple[str, ...]
    comparable: bool
    whole: bool
    reduction: Reduction


def channel_criterion_of(criterion: str | Criterion) -> ChannelJudge:
    """Find out how a criterion judges channels: whole, or by the entries of their weights.

    Args:
        criterion: A name of `CHANNEL_CRITERIA` or of `CRITERIA`, or a function of `Evidence`. A function that judges
            channels whole carries an attribute `whole = True`; `needs` and `comparable` are read likewise.

    Returns:
        Who judges.

    Raises:
        KpipeError: When the name is not known, or it is neither a name nor a function.

    Example:
        >>> [(judge.whole, judge.reduction) for judge in map(channel_criterion_of, ("fpgm", "l1", "bn_scale"))]
        [(True, 'sum'), (False, 'sum'), (False, 'mean')]
    """
    whole = False
    if isinstance(criterion, str):
        if criterion not in list(channel_criteria()):
            known = list(channel_criteria())
            raise KpipeError(f"Unknown criterion {criterion!r}. Known: {', '.join(known)}.{nearest(criterion, known)}")
        whole = criterion in CHANNEL_CRITERIA
        registry = CHANNEL_CRITERIA if whole else CRITERIA
        function, facts = registry[criterion], registry.facts(criterion)
    else:
        function, facts = criterion_of(criterion)
        facts = {**facts, "comparable": getattr(criterion, "comparable", False)}
        whole = bool(getattr(criterion, "whole", False))
    return ChannelJudge(
        name=criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion)),
        function=function,
        needs=fields_of(facts.get("needs")),
        comparable=bool(facts.get("comparable", False)),
        whole=whole,
        reduction=facts.get("reduction", "sum"),
    )


def channel_criteria() -> Iterator[str]:
    """Name the criteria that judge channels: those of `CRITERIA`, then those that only judge them whole."""
    yield from CRITERIA
    yield from (name for name in CHANNEL_CRITERIA if name not in CRITERIA)


def score_rows(judge: ChannelJudge, rows: Evidence, path: str, weight: np.ndarray | None = None) -> Any:
    """Ask a criterion that judges channels whole, and check what it gives.

    Args:
        judge: Who judges.
        rows: Evidence with one row for each channel.
        path: Of the weight, for the error.
        weight: All of it, likewise.

    Returns:
        Scores in float64, shape (channels,), or None where the criterion does not judge.

    Raises:
        KpipeError: When the scores have another shape or are not finite.
    """
    scores = judge.function(rows)
    if scores is None:
        return None
    scores = np.asarray(scores, dtype="float64")
    finite = bool(np.isfinite(scores).all())
    if not finite and (culprit := blame(rows, path, weight)):
        raise KpipeError(culprit)
    if scores.shape != (len(rows.weight),) or not finite:
        raise KpipeError(
            f"The criterion {judge.name!r} gave scores of shape {scores.shape} for the channels of {path!r}, all "
            f"finite: {finite}. Expected finite scores of shape {(len(rows.weight),)}, or None."
        )
    return scores
