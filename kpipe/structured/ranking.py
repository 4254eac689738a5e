"""Pure functions from scores to the channels that go."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace
from kpipe.saliency import Criterion, Passes, criterion_of, gather, score


def channel_scores(
    model: keras.Model,
    trace: Trace,
    criterion: str | Criterion,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    passes: Passes | None = None,
    observed: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> list[np.ndarray]:
    """Score every channel of every group: elementwise scores summed over all weights and axes that the channel has.

    Args:
        model: The traced model.
        trace: Its trace.
        criterion: A registered name, or a function of `Evidence`.
        data: Labelled data, for criteria that need gradients.
        loss: For those too; None: the one the model was compiled with.
        seed: Of the criterion's randomness.
        passes: Those over the data that earlier calls have prepared.
        observed: Path of a weight -> field -> array: what a training has shown already.

    Returns:
        For each group scores of shape (channels,), higher: keep.

    Raises:
        KpipeError: When the criterion judges none of a group's weights, or lacks data.
    """
    function, facts = criterion_of(criterion)
    weights = [weight for weight in trace.weights if weight.axes]
    named = [(w.path, w.role, w.variable) for w in weights]
    evidence = gather(model, named, facts["needs"], data, loss, seed, observed, passes)
    totals = np.zeros(trace.class_count)
    judged = np.zeros(trace.class_count, bool)
    for weight in weights:
        scores = score(function, evidence[weight.path], weight.path)
        if scores is None:
            continue
        for axis, ids in weight.axes.items():
            others = tuple(i for i in range(scores.ndim) if i != axis)
            classes = trace.class_of[ids]
            totals += np.bincount(
                classes, weights=scores.sum(axis=others, dtype="float64"), minlength=trace.class_count
            )
            judged[classes] = True
    for group in trace.groups:
        if not judged[group.classes].all():
            raise KpipeError(f"The criterion judges no weight of the group {group.name!r} (layers {group.layers}).")
    scores = [totals[group.classes] for group in trace.groups]
    return scores if facts["comparable"] else [s / max(s.mean(), np.finfo(float).tiny) for s in scores]


def step_of(group: Group, round_to: int) -> int:
    """Give the number of channels whose removal keeps each producing layer's width a multiple of `round_to`.

    Example:
        >>> [step_of(Group("g", ("g",), np.arange(6), (width,)), 8) for width in (1, 3, 4, 16)]
        [8, 8, 2, 1]
    """
    return math.lcm(*(round_to // math.gcd(round_to, width) for width in group.width))


def round_kept(kept: float, channels: int, step: int) -> int:
    """Round a number of kept channels to the nearest multiple of `step`, ties up; never to zero, never past all.

    Example:
        >>> [round_kept(kept, 20, 8) for kept in (1, 11, 12, 20)], round_kept(3, 6, 8)
        ([8, 8, 16, 20], 6)
    """
    rounded = math.floor(kept / step + 0.5) * step
    return min(max(rounded, step), channels)


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Give the places of the `count` lowest scores, ties by place, in ascending order.

    Example:
        >>> lowest(np.array([3.0, 1.0, 2.0, 1.0]), 2).tolist()
        [1, 3]
    """
    return np.sort(np.argsort(scores, kind="stable")[:count])


def choose(scores: Sequence[np.ndarray], ratio: float, scope: str, steps: Sequence[int]) -> list[np.ndarray]:
    """Choose the channels that go at one ratio.

    Args:
        scores: For each group, shape (channels,); higher: keep. In the global scope they are compared between groups.
        ratio: Fraction of the channels to remove, in [0, 1).
        scope: "layer" removes it from every group, "global" from all the groups together.
        steps: For each group the multiple that the number of kept channels is rounded to.

    Returns:
        For each group the places that go, ascending.

    Example:
        >>> choose([np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0])], 0.5, "layer", [1, 1])
        [array([0, 1]), array([1])]
        >>> choose([np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0])], 0.5, "global", [1, 1])
        [array([0, 1, 2]), array([], dtype=int64)]
    """
    sizes = [len(s) for s in scores]
    if scope == "layer":
        gone = [math.floor(ratio * n + 0.5) for n in sizes]
    else:
        owner = np.repeat(np.arange(len(sizes)), sizes)
        total = math.floor(ratio * sum(sizes) + 0.5)
        everything = np.concatenate(scores) if scores else np.zeros(0)
        gone = np.bincount(owner[lowest(everything, total)], minlength=len(sizes)).tolist()
    kept = [round_kept(n - g, n, step) if g else n for n, g, step in zip(sizes, gone, steps, strict=True)]
    return [lowest(s, n - k) for s, n, k in zip(scores, sizes, kept, strict=True)]


def keep_of(trace: Trace, removed: Sequence[np.ndarray]) -> np.ndarray:
    """Turn the places that go in each group into what stays of each class, shape (classes,), bool."""
    keep = np.ones(trace.class_count, bool)
    for group, places in zip(trace.groups, removed, strict=True):
        keep[group.classes[places]] = False
    return keep


def choose_for_target(
    trace: Trace, scores: Sequence[np.ndarray], target: tuple[str, float], scope: str, steps: Sequence[int]
) -> list[np.ndarray]:
    """Choose the fewest channels that bring the model down to a budget: reached, never above.

    A bisection finds the smallest ratio that meets it; then the best of the removed channels come back, one step of a
    group at a time, as long as the budget holds.

    Args:
        trace: Of the model.
        scores: For each group, shape (channels,).
        target: "macs" or "params", and the fraction of the original that may remain.
        scope: As in `choose`.
        steps: As in `choose`.

    Returns:
        For each group the places that go, ascending.

    Raises:
        KpipeError: When even the smallest model that can be left is above the budget.
    """
    kind, fraction = target
    count = trace.macs if kind == "macs" else trace.params
    before = count()
    if before is None:
        raise KpipeError("The MACs of this model are not known (an open input size). Use target={'params': ...}.")
    budget = fraction * before

    def fits(removed: Sequence[np.ndarray]) -> bool:
        return (count(keep_of(trace, removed)) or 0) <= budget

    low, high = 0.0, 1.0
    if not fits(choose(scores, high, scope, steps)):
        least = (count(keep_of(trace, choose(scores, high, scope, steps))) or 0) / before
        raise KpipeError(
            f"The target {kind}: {fraction:g} cannot be reached: with one channel (or one round_to) left in every "
            f"group, {least:.3f} of the original {kind} remain. Ask for more than that, or lower round_to."
        )
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(choose(scores, middle, scope, steps)) else (middle, high)
    return _give_back(choose(scores, high, scope, steps), scores, steps, fits)


def _give_back(removed: list[np.ndarray], scores: Sequence[np.ndarray], steps: Sequence[int], fits: Any) -> list:
    """Restore removed channels, best first, while the budget holds."""
    open_groups = {g for g, places in enumerate(removed) if len(places)}
    while open_groups:
        best = {g: removed[g][np.argsort(scores[g][removed[g]], kind="stable")] for g in open_groups}
        group = max(open_groups, key=lambda g: (scores[g][best[g][-steps[g] :]].mean(), -g))
        trial = list(removed)
        trial[group] = np.sort(best[group][: -steps[group]])
        if fits(trial):
            removed = trial
        if not fits(trial) or not len(removed[group]):
            open_groups.discard(group)
    return removed
