"""Whole attention heads planned and cut: nothing else of the model changes its size."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from kpipe.checks import is_number, is_whole
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.graph import Trace, trace
from kpipe.registry import nearest
from kpipe.saliency import Criterion, channel_criterion_of
from kpipe.structured.composition import gone_before
from kpipe.structured.filters import prune_filters, refuse_quantized
from kpipe.structured.plan import FilterPlan, describe
from kpipe.structured.ranking import choose, lowest
from kpipe.structured.request import Ignore, freeze_ignored
from kpipe.structured.scores import judge_groups

SCOPES = ("layer", "global")
"""Each layer for itself; the heads of all of them together."""

MORE = " Other scopes and a ratio for each layer: kpipe.plan_filters(model, ratio, scope=..., parts=('heads',))."

SOUGHT = "MultiHeadAttention and GroupQueryAttention layers"


def plan_heads(
    model: keras.Model,
    ratio: float | None = None,
    count: int | None = None,
    criterion: str | Criterion = "l1",
    data: Any = None,
    loss: Any = None,
    scope: str = "layer",
    ignore: Ignore = None,
    seed: int = 0,
    *,
    after: FilterPlan | None = None,
) -> FilterPlan:
    """Plan which attention heads to remove, without touching the model.

    A head is scored by all its weights: its slices of the projections of query, key and value and of the output. In
    grouped attention a head of key and value goes with all its heads of the query, and counts as one.

    Args:
        model: A built Functional or Sequential model.
        ratio: Fraction of the heads to remove, in [0, 1). Give this or `count`.
        count: Number of heads to remove: from each layer, or in scope "global" from all of them together.
        criterion: A registered name, or a function of `Evidence`.
        data: Labelled data for criteria that need gradients: what `model.fit` takes.
        loss: For those too; None: the one the model was compiled with.
        scope: "layer" takes as much from every layer, "global" ranks the heads of all the layers together.
        ignore: Layers whose heads stay: a regex on the path, several, or a function of the layer.
        seed: Of the criterion's randomness.
        after: The plan by which the model has been cut already: the ratio then is of the heads that it had before.

    Returns:
        The plan; `prune_filters` carries it out.

    Raises:
        KpipeError: When an argument is out of range, or the model has no heads that can be cut.
        SurgeryError: When the model's channels cannot be followed; it names the layer.

    Example:
        >>> import keras
        >>> x = keras.Input((5, 8))
        >>> y = keras.layers.MultiHeadAttention(4, 2, name="attention")(x, x)
        >>> plan = plan_heads(keras.Model(x, y), count=1)
        >>> [(group.name, group.kept) for group in plan.groups]
        [('attention:heads', 3)]
    """
    refuse_quantized(model)
    _check(ratio, count, scope)
    traced = heads_of(freeze_ignored(trace(model, unknown="freeze"), ignore), model.name)
    traced, scores = judge_groups(model, traced, criterion, data, loss, seed)
    gone = gone_before(traced.groups, after)
    if count is None:
        removed = choose(scores, ratio or 0.0, scope, [1] * len(scores), gone=gone)
    else:
        removed = choose_count(scores, count, scope, [group.name for group in traced.groups])
    if not any(len(places) for places in removed) and (ratio or count):
        sizes = {group.name: len(group) for group in traced.groups}
        why = f"The heads of its layers are {sizes}; one of each stays."
        warnings.warn(f"The plan for {model.name!r} removes no head. {why}", NoEffectWarning, stacklevel=2)
    asked = {
        "ratio": None if ratio is None else float(ratio),
        "count": None if count is None else int(count),
        "scope": scope,
        "criterion": channel_criterion_of(criterion).name,
    }
    return describe(traced, removed, asked, gone=gone)


def prune_heads(
    model: keras.Model,
    ratio: float | None = None,
    count: int | None = None,
    criterion: str | Criterion = "l1",
    data: Any = None,
    loss: Any = None,
    scope: str = "layer",
    ignore: Ignore = None,
    seed: int = 0,
    check: bool = True,
) -> keras.Model:
    """Cut whole attention heads: a new, smaller model, equal to the original with these heads' outputs zeroed.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        ratio: Fraction of the heads to remove, in [0, 1). Give this or `count`.
        count: Number of heads to remove: from each layer, or in scope "global" from all of them together.
        criterion: A registered name, or a function of `Evidence`.
        data: Labelled data for criteria that need gradients: what `model.fit` takes.
        loss: For those too; None: the one the model was compiled with.
        scope: "layer" takes as much from every layer, "global" ranks the heads of all the layers together.
        ignore: Layers whose heads stay: a regex on the path, several, or a function of the layer.
        seed: Of the criterion's randomness.
        check: Compare the new model with the masked original: two forward passes of two samples.

    Returns:
        A new model, not compiled, with the same layer names and input names.

    Raises:
        KpipeError: When an argument is out of range, or the model has no heads that can be cut.
        SurgeryError: When the check fails: a wrong model is never returned.

    Example:
        >>> import keras
        >>> x = keras.Input((5, 8))
        >>> y = keras.layers.MultiHeadAttention(4, 2, name="attention")(x, x)
        >>> prune_heads(keras.Model(x, y), ratio=0.5).get_layer("attention").num_heads
        2

    References:
        Michel, Levy and Neubig, Are sixteen heads really better than one? (2019)
    """
    return prune_filters(model, plan_heads(model, ratio, count, criterion, data, loss, scope, ignore, seed), check)


def choose_count(scores: Sequence[np.ndarray], count: int, scope: str, names: Sequence[str]) -> list[np.ndarray]:
    """Choose an exact number of heads that go; one of each layer stays.

    Args:
        scores: For each layer, shape (heads,); higher: keep. In the global scope they are compared between layers.
        count: How many go, from each layer or from all of them together.
        scope: "layer" or "global".
        names: Of the groups of heads, for the error.

    Returns:
        For each layer the places that go, ascending.

    Raises:
        KpipeError: When there are not so many heads.

    Example:
        >>> scores = [np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.1])]
        >>> choose_count(scores, 1, "layer", ["a", "b"]), choose_count(scores, 2, "global", ["a", "b"])
        ([array([0]), array([1])], [array([0]), array([1])])
    """
    sizes = [len(s) for s in scores]
    most = min(sizes) - 1 if scope == "layer" else sum(sizes) - len(sizes)
    if count > most:
        where = "each layer" if scope == "layer" else "the layers together"
        raise KpipeError(
            f"count={count} heads cannot go from {where}: at most {most} can, as one head of a layer stays. Heads: "
            f"{dict(zip(names, sizes, strict=True))}."
        )
    if scope == "layer":
        return [lowest(s, count) for s in scores]
    best = [np.argsort(s, kind="stable")[-1] for s in scores]
    rest = [np.where(np.arange(len(s)) == top, np.inf, s) for s, top in zip(scores, best, strict=True)]
    gone = lowest(np.concatenate(rest), count)
    starts = np.cumsum([0, *sizes])
    return [gone[(gone >= a) & (gone < b)] - a for a, b in pairwise(starts)]


def _check(ratio: Any, count: Any, scope: Any) -> None:
    """Refuse arguments that are out of range."""
    if (ratio is None) == (count is None):
        raise KpipeError(f"Give either ratio or count. Received: ratio={ratio!r}, count={count!r}.")
    if ratio is not None and not (is_number(ratio) and 0 <= ratio < 1):
        raise KpipeError(f"Expected ratio, the fraction of heads to remove, in [0, 1). Received: {ratio!r}.{MORE}")
    if count is not None and not is_whole(count):
        raise KpipeError(f"Expected count, the number of heads to remove, as an integer of at least 0. Got: {count!r}.")
    if scope not in SCOPES:
        hint = nearest(scope, SCOPES) if isinstance(scope, str) else ""
        raise KpipeError(f"Expected scope as one of {SCOPES}. Received: {scope!r}.{hint}{MORE}")


def heads_of(traced: Trace, name: str) -> Trace:
    """Leave only the groups of heads.

    Args:
        traced: A trace.
        name: Of the model, for the error.

    Raises:
        KpipeError: When there is none that can be cut; it says what was looked for.
    """
    groups = tuple(group for group in traced.groups if group.part == "heads")
    if not groups:
        stay = {path: reason for path, reason in traced.frozen.items() if path.endswith(":heads")}
        found = f"Their heads stay: {stay}" if stay else "It has none whose channels can be followed"
        raise KpipeError(f"Model {name!r} has no heads that can be cut: looked for {SOUGHT}. {found}.")
    return replace(traced, groups=groups)
