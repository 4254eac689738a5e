"""Scores of channels: what a criterion says of weights, brought together for each channel of each group."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.graph import Trace, TracedWeight
from kpipe.layers import KERNEL_ROLES
from kpipe.patterns.rescale import mean
from kpipe.registry import nearest
from kpipe.saliency import ChannelJudge, Criterion, Evidence, Passes, channel_criterion_of, gather, score, score_rows

REDUCTIONS = ("sum", "mean", "max", "first")
"""How the scores of a channel by several weights become one: their sum, mean or greatest, or that of the first alone.

A weight speaks once for each of its axes along which the channel lies."""


def _by_max(scores: np.ndarray) -> np.ndarray:
    top = np.abs(scores).max(initial=0.0)
    return scores / top if top > 0 else scores


def _standardised(scores: np.ndarray) -> np.ndarray:
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)


NORMALISATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda scores: scores,
    "mean": mean,
    "max": _by_max,
    "standardise": _standardised,
}
"""How scores of different groups are made to compare: left as they are, divided by the mean or the greatest of the
group's absolute scores, or shifted and scaled to mean 0 and standard deviation 1."""


def judge_groups(
    model: keras.Model,
    trace: Trace,
    criterion: str | Criterion,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    *,
    reduction: str | None = None,
    normalise: str | None = None,
) -> tuple[Trace, list[np.ndarray]]:
    """Score the channels of the groups that a criterion can judge, and freeze the others.

    Args:
        model: The traced model.
        trace: Its trace.
        criterion: As in `judge_channels`, like what follows.
        data: For criteria that need some.
        loss: For those that need gradients.
        seed: Of the criterion's randomness.
        reduction: How the scores of a channel by several weights become one.
        normalise: How groups are made to compare.

    Returns:
        The trace with the groups that are judged, and scores of shape (channels,) for each of them.

    Raises:
        KpipeError: When there are groups and none can be judged, or the criterion lacks data.
    """
    scores = judge_channels(model, trace, criterion, data, loss, seed, reduction=reduction, normalise=normalise)
    name = channel_criterion_of(criterion).name
    unjudged = [group.name for group, found in zip(trace.groups, scores, strict=True) if found is None]
    if unjudged and len(unjudged) == len(trace.groups):
        raise KpipeError(
            f"The criterion {name!r} judges no weight of any group of channels that is asked about in {model.name!r}: "
            f"{', '.join(unjudged)}. Choose another criterion (`kpipe ls criteria`)."
        )
    stay = dict.fromkeys(unjudged, f"the criterion {name!r} judges none of its weights")
    return trace.freeze(stay), [found for found in scores if found is not None]


def judge_channels(
    model: keras.Model,
    trace: Trace,
    criterion: str | Criterion,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    passes: Passes | None = None,
    observed: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    reduction: str | None = None,
    normalise: str | None = None,
) -> list[np.ndarray | None]:
    """Score the channels of every group that a criterion can judge.

    A criterion of entries is asked of every weight, and its scores are summed over the entries of a channel along each
    axis. One that judges channels whole is asked of the axes along which a weight produces channels (of all, for
    channels that come into being and end within one layer). What the weights say is reduced to one score a channel.

    Args:
        model: The traced model.
        trace: Its trace.
        criterion: A name of `CRITERIA` or `CHANNEL_CRITERIA`, or a function of `Evidence`.
        data: For criteria that need some.
        loss: For those that need gradients; None: the one the model was compiled with.
        seed: Of the criterion's randomness.
        passes: Those over the data that earlier calls have prepared.
        observed: Path of a weight -> field -> array: what a training has shown already.
        reduction: One of `REDUCTIONS`; None: the criterion's own, in most cases "sum".
        normalise: One of `NORMALISATIONS`; None: "none" for a criterion whose scores compare between layers as they
            are, else "mean".

    Returns:
        For each group scores of shape (channels,), higher: keep; None where the criterion does not judge all of them.

    Raises:
        KpipeError: When the criterion lacks data.
    """
    check_choice(reduction, normalise)
    judge = channel_criterion_of(criterion)
    weights = [weight for weight in trace.weights if weight.axes]
    named = [(w.path, w.role, w.variable) for w in weights]
    evidence = gather(model, named, judge.needs, data, loss, seed, observed, passes)
    tally = _Tally(trace.class_count, reduction or judge.reduction)
    members = _whole(trace, weights, evidence, judge) if judge.whole else _entries(trace, weights, evidence, judge)
    for classes, scores in members:
        tally.add(classes, scores)
    rescale = NORMALISATIONS[normalise or ("none" if judge.comparable else "mean")]
    scores = [tally.scores(group.classes) for group in trace.groups]
    return [None if found is None else rescale(found) for found in scores]


def check_choice(reduction: str | None, normalise: str | None) -> None:
    """Refuse a reduction or normalisation that is not known.

    Raises:
        KpipeError: When it is not.
    """
    for what, name, known in (("reduction", reduction, REDUCTIONS), ("normalise", normalise, NORMALISATIONS)):
        if name is not None and name not in known:
            hint = nearest(str(name), known)
            raise KpipeError(f"Expected {what} as one of {', '.join(known)}. Received: {name!r}.{hint}")


class _Tally:
    """Reduce the scores that classes of channels get from several weights."""

    def __init__(self, classes: int, reduction: str):
        self.reduction = reduction
        self.total, self.count = np.zeros(classes), np.zeros(classes, np.int64)

    def add(self, classes: np.ndarray, scores: np.ndarray) -> None:
        """Take the scores of some classes, each once."""
        fresh = self.count[classes] == 0
        if self.reduction in ("sum", "mean"):
            self.total[classes] += scores
        elif self.reduction == "max":
            self.total[classes] = np.where(fresh, scores, np.maximum(self.total[classes], scores))
        else:
            self.total[classes] = np.where(fresh, scores, self.total[classes])
        self.count[classes] += 1

    def scores(self, classes: np.ndarray) -> np.ndarray | None:
        """Give the scores of some classes; None when one of them has got none."""
        if not self.count[classes].all():
            return None
        return self.total[classes] / self.count[classes] if self.reduction == "mean" else self.total[classes]


Members = Iterator[tuple[np.ndarray, np.ndarray]]
"""(classes, scores of the same shape), for each weight and each of its axes."""


def _entries(
    trace: Trace, weights: list[TracedWeight], evidence: Mapping[str, Evidence], judge: ChannelJudge
) -> Members:
    """Sum what a criterion says of entries over each class along each axis."""
    for weight in weights:
        scores = score(judge.function, evidence[weight.path], weight.path)
        if scores is None:
            continue
        for axis, ids in weight.axes.items():
            others = tuple(i for i in range(scores.ndim) if i != axis)
            along = scores.sum(axis=others, dtype="float64")
            classes, places = np.unique(trace.class_of[ids], return_inverse=True)
            yield classes, np.bincount(places, weights=along)


def _whole(trace: Trace, weights: list[TracedWeight], evidence: Mapping[str, Evidence], judge: ChannelJudge) -> Members:
    """Ask a criterion that judges channels whole, group by group."""
    group_of = np.full(trace.class_count, -1)
    for number, group in enumerate(trace.groups):
        group_of[group.classes] = number
    outside = ~_produced(trace, weights)  # classes that no kernel puts out: they live within a layer
    for weight in weights:
        for axis, ids in weight.axes.items():
            classes = trace.class_of[ids]
            asked = (group_of[classes] >= 0) & (outside[classes] | (axis not in weight.summed))
            for number in np.unique(group_of[classes[asked]]):
                places = np.flatnonzero(asked & (group_of[classes] == number))
                members, index = np.unique(classes[places], return_inverse=True)
                rows = _by_rows(evidence[weight.path], axis, places, index)
                scores = score_rows(judge, rows, weight.path, evidence[weight.path].weight)
                if scores is not None:
                    yield members, scores


def _produced(trace: Trace, weights: list[TracedWeight]) -> np.ndarray:
    produced = np.zeros(trace.class_count, bool)
    for weight in weights:
        if weight.role in KERNEL_ROLES:
            for axis in set(weight.axes) - set(weight.summed):
                produced[trace.class_of[weight.axes[axis]]] = True
    return produced


def _by_rows(evidence: Evidence, axis: int, places: np.ndarray, index: np.ndarray) -> Evidence:
    """Lay all arrays of the evidence out as (channels, entries); entries that a channel lacks count as zeros.

    Args:
        evidence: On a weight.
        axis: Along which the channels lie.
        places: Those along the axis that are meant.
        index: The row of each of these places.
    """
    nth = np.zeros(len(index), np.int64)  # the how many-th place of its row each place is
    order = np.argsort(index, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(index))][:-1]
    nth[order] = np.arange(len(index)) - starts[index[order]]

    def rows(array: np.ndarray) -> np.ndarray:
        whole = np.broadcast_to(array, evidence.weight.shape)
        moved = np.moveaxis(whole, axis, 0)[places].reshape(len(places), -1)  # (places, entries of each)
        result = np.zeros((index.max() + 1, nth.max() + 1, moved.shape[1]), moved.dtype)
        result[index, nth] = moved
        return result.reshape(len(result), -1)

    arrays = {f.name: getattr(evidence, f.name) for f in fields(evidence)}
    return replace(evidence, **{name: rows(array) for name, array in arrays.items() if isinstance(array, np.ndarray)})
