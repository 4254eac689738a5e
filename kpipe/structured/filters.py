"""Plan filter pruning and carry it out, as pure functions of a model."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.fake_quant import is_quantized
from kpipe.graph import Group, Trace, trace
from kpipe.registry import nearest
from kpipe.saliency import Criterion
from kpipe.structured.channels import check_removal, remove_channels
from kpipe.structured.plan import TARGETS, FilterPlan, describe
from kpipe.structured.ranking import channel_scores, choose, choose_for_target, step_of

SCOPES = ("layer", "global")

Ignore = str | Sequence[str] | Callable[[keras.Layer], bool] | None
"""Layers whose channels stay: a regex on the path, several, or a function of the layer."""


def plan_filters(
    model: keras.Model,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    criterion: str | Criterion = "l1",
    data: Any = None,
    loss: Any = None,
    scope: str = "layer",
    round_to: int = 1,
    ignore: Ignore = None,
    seed: int = 0,
) -> FilterPlan:
    """Plan which channels to remove, without touching the model.

    Channels that must have one fate (both inputs of an Add, a depthwise convolution and what feeds it, the same place
    of all the groups of a grouped convolution) form a group and are ranked by the sum of their scores.

    Args:
        model: A built Functional or Sequential model.
        ratio: Fraction of the channels to remove, in [0, 1). Give this or `target`.
        target: {"macs": f} or {"params": f}: the fraction of the original that may remain, in (0, 1); never exceeded.
        criterion: A registered name ("l1", "l2", "taylor", "random"), or a function of `Evidence`.
        data: Labelled data for criteria that need gradients: what `model.fit` takes.
        loss: For those too; None: the one the model was compiled with.
        scope: "layer" takes the ratio from every group, "global" ranks all the channels together; scores that do not
            compare between layers (l1, l2) are divided by their group's mean first.
        round_to: Kept channels are rounded to the nearest multiple of this, never to zero.
        ignore: Layers whose channels stay: a regex on the path, several, or a function of the layer.
        seed: Of the criterion's randomness.

    Returns:
        The plan.

    Raises:
        KpipeError: When an argument is out of range, a regex matches nothing, or the target cannot be reached.
        SurgeryError: When the model's channels cannot be followed; it names the layer.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")]
        >>> plan = plan_filters(keras.Sequential(layers), ratio=0.5)
        >>> [(group.name, group.kept) for group in plan.groups], plan.after["macs"]
        ([('a', 3)], 18)
    """
    refuse_quantized(model)
    goal = check_request(ratio, target, scope, round_to)
    traced = freeze_ignored(trace(model, unknown="freeze"), ignore)
    scores = channel_scores(model, traced, criterion, data, loss, seed)
    steps = [step_of(group, round_to) for group in traced.groups]
    if ratio is not None:
        removed = choose(scores, ratio, scope, steps)
    else:
        removed = choose_for_target(traced, scores, goal, scope, steps)
    request = {"ratio": ratio, "target": dict(target) if target else None, "scope": scope, "round_to": round_to}
    request["criterion"] = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))
    if not any(len(places) for places in removed) and (ratio or target):
        warnings.warn(f"The plan for {model.name!r} removes no channel. {_why(traced)}", NoEffectWarning, stacklevel=2)
    return describe(traced, removed, request)


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
    """Refuse a quantized model: its ranges were found for the channels that it has."""
    if is_quantized(model):
        raise SurgeryError(f"Model {model.name!r} is quantized already. Cut its filters first, then quantize.")


def check_request(ratio: Any, target: Any, scope: str, round_to: Any) -> tuple[str, float]:
    """Refuse arguments that are out of range; give the target as a pair."""
    if (ratio is None) == (target is None):
        raise KpipeError(f"Give either ratio or target. Received: ratio={ratio!r}, target={target!r}.")
    if ratio is not None and not (_is_number(ratio) and 0 <= ratio < 1):
        raise KpipeError(
            f"Expected ratio, the fraction of channels to remove, in [0, 1): a layer keeps at least one channel. "
            f"Received: {ratio!r}."
        )
    if scope not in SCOPES:
        raise KpipeError(f"Expected one of the scopes {SCOPES}. Received: {scope!r}.{nearest(scope, SCOPES)}")
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise KpipeError(f"Expected round_to, a multiple, as an integer of at least 1. Received: {round_to!r}.")
    if target is None:
        return "", 0.0
    if not isinstance(target, Mapping) or len(target) != 1 or not set(target) <= set(TARGETS):
        raise KpipeError(f"Expected target as {{'macs': f}} or {{'params': f}}. Received: {target!r}.")
    ((kind, fraction),) = target.items()
    if not (_is_number(fraction) and 0 < fraction < 1):
        raise KpipeError(f"Expected the fraction of {kind} that may remain, in (0, 1). Received: {fraction!r}.")
    return kind, float(fraction)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def freeze_ignored(traced: Trace, ignore: Ignore) -> Trace:
    """Freeze the groups that an ignored layer produces."""
    if ignore is None:
        return traced
    named: set[str] = set()
    for wanted in [ignore] if isinstance(ignore, str) or callable(ignore) else ignore:
        named |= _ignored(traced, wanted)
    stay: list[Group] = [group for group in traced.groups if not named & set(group.layers)]
    frozen = {g.name: "it is ignored" for g in traced.groups if named & set(g.layers)}
    return replace(traced, frozen={**traced.frozen, **frozen}, groups=tuple(stay))


def _ignored(traced: Trace, wanted: str | Callable[[keras.Layer], bool]) -> set[str]:
    """Find the layers that one filter means; each must produce channels, or the filter would protect nothing."""
    if callable(wanted):
        found = {layer.path for layer in traced.layers if wanted(layer.layer)}
    else:
        try:
            found = {layer.path for layer in traced.layers if re.search(wanted, layer.path)}
        except re.error as fault:
            raise KpipeError(f"ignore={wanted!r} is no regular expression: {fault}.") from fault
    producing = {path for group in traced.groups for path in group.layers} | set(traced.frozen)
    if not found & producing:
        what = f"matches only {sorted(found)}, which produce no channels" if found else "matches no layer"
        raise KpipeError(f"ignore={wanted!r} {what}. Layers that produce channels: {', '.join(sorted(producing))}.")
    return found


def _why(traced: Trace) -> str:
    if not traced.groups:
        return "All its channels are frozen: " + "; ".join(f"{k}: {v}" for k, v in traced.frozen.items()) + "."
    return "Ask for a larger ratio, or a smaller round_to."
