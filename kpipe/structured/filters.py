"""Plan filter pruning and carry it out, as pure functions of a model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.fake_quant import is_quantized
from kpipe.graph import Trace, trace
from kpipe.registry import nearest
from kpipe.saliency import Criterion
from kpipe.structured.budget import Choice, choose_for_target
from kpipe.structured.channels import check_removal, remove_channels
from kpipe.structured.composition import gone_before
from kpipe.structured.plan import FilterPlan, describe
from kpipe.structured.ranking import rank
from kpipe.structured.request import PARTS, Ignore, Request, freeze_ignored, freeze_parts
from kpipe.structured.scopes import Ratio, Scope, partition, ratios, refine
from kpipe.structured.scores import judge_groups
from kpipe.structured.targets import Measure


def plan_filters(
    model: keras.Model,
    ratio: Ratio | None = None,
    target: Mapping[str, float] | None = None,
    criterion: str | Criterion = "l1",
    data: Any = None,
    loss: Any = None,
    scope: Scope = "layer",
    round_to: int = 1,
    ignore: Ignore = None,
    seed: int = 0,
    *,
    reduction: str | None = None,
    normalise: str | None = None,
    max_ratio: float | None = None,
    min_channels: int = 1,
    parts: Sequence[str] | None = PARTS,
    measure: Measure | None = None,
    after: FilterPlan | None = None,
) -> FilterPlan:
    """Plan which channels to remove, without touching the model.

    Channels that must have one fate (both inputs of an Add, a depthwise convolution and what feeds it, the same place
    of all the groups of a grouped convolution) form a group and are ranked by what their scores come to together.

    Args:
        model: A built Functional or Sequential model.
        ratio: Fraction of the channels to remove, in [0, 1); or regex on the paths of layers and the names of groups
            ("attention:heads") -> fraction: the first that finds one of a group counts, and what none finds is not cut.
            Give this or `target`.
        target: One budget, never exceeded, and filled with the channels that are worth most as far as whole ones fit
            in (a note in the plan says where it stays more than 2 % below): {"macs": f} or {"params": f}, the fraction
            of the original that may remain, in (0, 1); {"bytes": b} of the exported int8 file, a fraction below 1,
            bytes above; {"latency_ms": t}, milliseconds for one sample in LiteRT on this machine, float32, one thread.
        criterion: A name that `kpipe ls criteria` lists for channels, or a function of `Evidence`.
        data: Data for criteria that need some, labelled for gradients: what `model.fit` takes.
        loss: For those with gradients; None: the one the model was compiled with.
        scope: "layer" takes the ratio from every group, "global" ranks all the channels together, "isomorphic" those of
            groups of the same structure and size; or a mapping from names to regexes on the paths of layers that are
            ranked together (others each for itself). A mapping of ratios ranks only groups of one ratio together.
        round_to: The widths of layers that are cut become multiples of this, the nearest to what is asked, never zero.
        ignore: Layers whose channels stay: a regex on the path, several, or a function of the layer.
        seed: Of the criterion's randomness.
        reduction: How the scores of a channel by several weights become one: "sum", "mean", "max", "first". None: the
            criterion's own, in most cases "sum".
        normalise: How groups are made to compare: "none", "mean", "max" (each group is divided by it), "standardise".
            None: "none" for a criterion whose scores compare between layers as they are (taylor, ...), else "mean".
        max_ratio: No group loses a larger fraction than this.
        min_channels: No group keeps fewer than this, if it had them. Where a channel of a group is several of a layer's
            own, as in front of a GroupNormalization, those of the group count; the plan says how many each is.
        parts: Which parts of layers may go: "channels", "heads", and of attentions also "key_dim", "value_dim" and
            "head_dim"; None: all.
        measure: For targets that are measured: a function of a candidate that gives its bytes or milliseconds, such as
            on another device; None: as `target` says. The search for candidates then goes by MACs.
        after: The plan by which the model has been cut already: ratio, max_ratio and min_channels then count the
            channels that it had before, so that cuts in rounds come to just what is asked. A target is one of the model
            as it is.

    Returns:
        The plan.

    Raises:
        KpipeError: When an argument is out of range, a regex matches nothing, the criterion judges nothing, or the
            target cannot be reached.
        SurgeryError: When the model's channels cannot be followed; it names the layer.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")]
        >>> plan = plan_filters(keras.Sequential(layers), ratio=0.5)
        >>> [(group.name, group.kept) for group in plan.groups], plan.after["macs"]
        ([('a', 3)], 18)
    """
    refuse_quantized(model)
    if measure is not None and target is None:
        raise KpipeError(
            "measure measures a target, and none is given: give target={'bytes': ...} or the like with it."
        )
    limits: dict[str, Any] = {"max_ratio": max_ratio, "min_channels": min_channels, "parts": parts}
    asked = Request(ratio, target, criterion, scope, round_to, reduction, normalise, **limits)
    traced = freeze_parts(freeze_ignored(trace(model, unknown="freeze"), ignore), parts)
    how: dict[str, Any] = {"reduction": reduction, "normalise": normalise}
    traced, scores = judge_groups(model, traced, criterion, data, loss, seed, **how)
    gone = gone_before(traced.groups, after)
    steps, least = asked.limits(traced.groups, gone)
    pools = partition(traced, scope, gone)
    if asked.ratio is None:
        found = choose_for_target(model, traced, rank(scores, pools, steps, least), asked, measure)
    else:
        each = ratios(traced.groups, asked.ratio)
        pools = refine(pools, each)
        ranking = rank(scores, pools, steps, least, gone)
        blocks = [pool.nearest(each[members[0]]) for pool, members in zip(ranking.pools, pools, strict=True)]
        found = Choice(ranking.removed(blocks))
    if not any(len(places) for places in found.removed) and (ratio or target):
        warnings.warn(f"The plan for {model.name!r} removes no channel. {_why(traced)}", NoEffectWarning, stacklevel=2)
    return describe(traced, found.removed, asked.to_dict(), found.costs, found.notes, gone)


def prune_filters(model: keras.Model, plan: FilterPlan, check: bool = True) -> keras.Model:
    """Carry out a plan: a new, smaller model.

    It equals the original with the planned channels zeroed in every layer that sums over them; this is checked on
    random input before it is returned.

    Args:
        model: The model that was planned for, or a fresh one of the same architecture; it is not changed.
        plan: What `plan_filters` gave.
        check: Compare the new model with the masked original: two forward passes of two samples.

    Returns:
        A new model, not compiled, with the same layer names and input names.

    Raises:
        SurgeryError: When the plan does not fit the model, or the check fails: a wrong model is never returned.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential(layers)
        >>> [layer.units for layer in prune_filters(model, plan_filters(model, ratio=0.5)).layers]
        [3, 2]
    """
    refuse_quantized(model)
    traced = trace(model, unknown="freeze")
    keep = _match(traced, plan, model.name)
    if keep.all():
        warnings.warn(
            f"The plan removes no channel of {model.name!r}: the result is a copy.", NoEffectWarning, stacklevel=2
        )
    small = remove_channels(model, traced, keep)
    if check:
        check_removal(model, small, traced, keep)
    return small


def _match(traced: Trace, plan: FilterPlan, name: str) -> np.ndarray:
    """Find the plan's groups in a model; what does not fit is named."""
    if not isinstance(plan, FilterPlan):
        raise KpipeError(f"Expected a FilterPlan, as plan_filters gives it. Received: {type(plan).__name__}.")
    by_name = {group.name: group for group in traced.groups}
    keep = np.ones(traced.class_count, bool)
    for group in plan.groups:
        if not group.removed:
            continue
        found = by_name.get(group.name)
        if found is None:
            hint = nearest(group.name, by_name)
            raise SurgeryError(f"The plan speaks of channels of {group.name!r}, which {name!r} does not have.{hint}")
        if len(found) != group.channels or found.layers != group.layers:
            raise SurgeryError(
                f"The plan does not fit {name!r}: it expects {group.channels} channels of {group.layers}; the model "
                f"has {len(found)} of {found.layers}."
            )
        if not 0 < group.kept or max(group.removed) >= group.channels or min(group.removed) < 0:
            raise SurgeryError(f"The plan removes {group.removed} of {group.channels} channels of {group.name!r}.")
        keep[found.classes[list(group.removed)]] = False
    return keep


def refuse_quantized(model: keras.Model) -> None:
    """Refuse a quantized model: its ranges were found for the channels that it has.

    Raises:
        SurgeryError: When it is one.
    """
    if is_quantized(model):
        raise SurgeryError(f"Model {model.name!r} is quantized already. Cut its filters first, then quantize.")


def _why(traced: Trace) -> str:
    if not traced.groups:
        return "All its channels are frozen: " + "; ".join(f"{k}: {v}" for k, v in traced.frozen.items()) + "."
    return "Ask for a larger ratio, or a smaller round_to."
