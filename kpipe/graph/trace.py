"""Channel ids followed through a Functional graph; groups of channels that live and die together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import keras
import numpy as np

from kpipe.errors import SurgeryError
from kpipe.graph.flow import Site, sites
from kpipe.graph.symbolic import is_block
from kpipe.graph.traced import Group, Trace, TracedLayer, TracedWeight
from kpipe.layers import (
    KERNEL_ROLES,
    RULES,
    ChannelIds,
    Ids,
    Rule,
    RuleFunction,
    layers_within,
    located,
    own_variables,
    unique,
    weights_within,
)


def trace(model: keras.Model, unknown: Literal["refuse", "freeze"] = "refuse") -> Trace:
    """Follow the channels of a Functional or Sequential model.

    Every tensor carries integer channel ids: a producing layer mints new ones, Add ties them, Concatenate
    concatenates them, Flatten and Reshape apply the same operation to them. Removing a channel is then a matter of
    `np.compress(keep[class_of[ids]], weight, axis)`.

    Args:
        model: A built Functional or Sequential model.
        unknown: What to do at a layer or operation without a rule: refuse, or freeze all channels that touch it.

    Returns:
        The trace; its groups hold only what may be removed.

    Raises:
        SurgeryError: When the graph cannot be read, or at an unknown layer or operation, naming it.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential(layers)
        >>> traced = trace(model)
        >>> [(group.name, len(group)) for group in traced.groups], traced.macs()
        ([('a', 6)], 36)
    """
    flow, ids = sites(model), ChannelIds()
    tensors: dict[int, Ids] = {}
    samples: dict[int, Samples] = {}
    calls: list[tuple[Site, Rule]] = []
    for site in flow.sites:
        arguments = ((), {}) if site.is_input else site.rebind(tensors)
        ids.at(site.path, site.input_shapes, site.output_shapes, arguments)
        found = _ask(site, ids, [tensors[key] for key in site.inputs], unknown)
        tensors.update(zip(site.outputs, found.outputs(len(site.outputs)), strict=True))
        here = _samples({samples[key] for key in site.inputs})
        out = None if here is None or found.samples is None else here * found.samples
        samples.update(dict.fromkeys(site.outputs, out))
        calls.append((site, found if here == 1 else _counted(found, here)))
    for key in flow.outputs:
        ids.freeze(tensors[key], "it is an output of the model")
    layers = _merge_calls(calls, ids)
    _refuse_shared_variables(layers)
    classes, frozen = ids.classes(), ids.frozen_classes()
    held = _held_classes(layers, classes)
    stay = set(frozen) | set(np.flatnonzero(~held).tolist())  # of what no weight has, nothing can be cut
    frozen = {one: reason for one, reason in frozen.items() if held[one]}
    groups = _groups(ids, classes, stay)
    return Trace(flow, layers, classes, _frozen_layers(ids, classes, frozen), groups, tensors)


Samples = Fraction | int | None
"""Entries along a tensor's first axis for each sample of the model; 0 of a constant, None when not known."""


def _samples(fed: set[Samples]) -> Samples:
    """Bring together what the inputs of a call say; those that do not know, and constants, are asked for nothing."""
    known = fed - {None, 0}
    if len(known) == 1 or not fed:
        return known.pop() if known else 1
    return 0 if fed == {0} else None


def _counted(found: Rule, samples: Samples) -> Rule:
    """Count what a call costs for each sample of the model, and not for each entry of its first axis."""

    def each(reuse: int | None) -> int | None:
        return reuse and (None if samples is None else int(reuse * samples))

    reuse = found.reuse
    reuse = {name: each(one) for name, one in reuse.items()} if isinstance(reuse, Mapping) else each(reuse)
    return replace(found, reuse=reuse, products=[(*product, samples) for product in found.products])


def _held_classes(layers: Sequence[TracedLayer], classes: np.ndarray) -> np.ndarray:
    """Say of each class whether a weight has such channels, shape (classes,), bool."""
    held = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for layer in layers:
        for weight in layer.weights:
            for along in weight.axes.values():
                held[classes[along]] = True
    return held


def _ask(site: Site, ids: ChannelIds, inputs: list[Ids], unknown: str) -> Rule:
    """Ask the rule of a site. What cannot be followed is refused, or frozen."""
    function, reason = _rule_of(site)
    if function is not None:
        try:
            return function(site.operation, ids, *inputs)
        except SurgeryError as fault:
            if unknown == "refuse":
                raise
            reason = str(fault)
    elif unknown == "refuse":
        raise SurgeryError(
            f"{reason}: its channels cannot be followed. `kpipe ls layers` lists what is known{_how(site.operation)}."
        )
    else:
        reason += _how(site.operation)
    for x in inputs:
        ids.freeze(x, reason)
    out = tuple(ids.constant(reason, number) for number in range(len(site.outputs)))
    return Rule(out, reuse=None if _has_kernels(site.operation) else 0)


def _how(operation: Any) -> str:
    """Say how a layer of one's own can be followed."""
    if type(operation).__module__.partition(".")[0] == "keras":
        return ""
    written_out = "kpipe.functionalize writes it out where it is made of layers, " if is_block(operation) else ""
    return f"; {written_out}kpipe.layers.rule gives it a rule"


def _rule_of(site: Site) -> tuple[RuleFunction | None, str]:
    """Give the rule of a site, or the reason why nothing is known of how channels pass through."""
    operation, cls = site.operation, type(site.operation)
    kind = "layer" if isinstance(operation, keras.Layer) else "operation"
    facts = RULES.get(cls)
    if facts is None or facts.channels is None:
        return None, f"the {kind} {site.path!r} ({cls.__module__}.{cls.__name__}) has no rule"
    for one in layers_within(operation) if kind == "layer" else ():
        if getattr(one, "lora_enabled", False) or one.quantization_mode is not None:
            state = "has LoRA enabled" if one.quantization_mode is None else f"is quantized to {one.quantization_mode}"
            return None, f"the layer {site.path!r} {state}"
    return facts.channels, ""


def _has_kernels(operation: Any) -> bool:
    if not isinstance(operation, keras.Layer):
        return False
    others = {id(weight.variable) for weight in weights_within(operation) if weight.role not in KERNEL_ROLES}
    return any(len(variable.shape) > 1 for variable in operation.variables if id(variable) not in others)


def _merge_calls(calls: list[tuple[Site, Rule]], ids: ChannelIds) -> tuple[TracedLayer, ...]:
    """Bring the calls of a shared layer together: one weight, so its channels are tied between them."""
    by_layer: dict[int, list[tuple[Site, Rule]]] = {}
    for site, found in calls:
        by_layer.setdefault(id(site.operation), []).append((site, found))
    layers = []
    for group in by_layer.values():
        site, first = group[0]
        paths = {other.path for other, _ in group}
        if len(paths) > 1:
            raise SurgeryError(f"One layer stands in several models: {sorted(paths)}. Give each model its own layer.")
        reason = f"{site.path!r} is called in different ways, and has them in some of its calls alone"
        for _, other in group[1:]:
            for what in ("axes", "config", "arguments"):
                ids.tie_alike(getattr(first, what), getattr(other, what), reason)
        traced = _traced_weights(site, [found for _, found in group])
        products = tuple(product for _, found in group for product in found.products)
        layers.append(
            TracedLayer(
                site.path,
                site.operation,
                traced,
                first.config,
                first.arguments,
                products,
                _reference(site.operation, [found for _, found in group]),
                first.outputs(len(site.outputs)),
            )
        )
    return tuple(layers)


def _reference(operation: Any, calls: Sequence[Rule]) -> Callable[..., Callable[..., Any]] | None:
    """Give the reference of a layer, asked for one of its calls: each has channels of its own."""
    each: list[Any] = [found.reference for found in calls]
    return (lambda kept, call=0: each[call](kept) if each[call] else operation) if any(each) else None


def _traced_weights(site: Site, calls: Sequence[Rule]) -> tuple[TracedWeight, ...]:
    """Trace the weights of a layer that was called once or several times; the first call names the ids."""
    layer, first = site.operation, calls[0]
    if not isinstance(layer, keras.Layer):
        return ()
    roles = {id(weight.variable): weight.role for weight in weights_within(layer)}
    names = {id(held): name for name in first.axes if (held := _held(layer, name)) is not None}
    paths = _paths(layer)
    out = np.concatenate([ids.reshape(-1) for ids in first.outputs(len(site.outputs))])
    result = []
    for variable in layer.weights:
        name, role = names.get(id(variable), ""), roles.get(id(variable), "")
        axes = {axis % len(variable.shape): ids for axis, ids in first.axes.get(name, {}).items()}
        ends = [axis for axis, ids in axes.items() if not np.isin(ids, out).any()]
        summed = {*ends, *(axis % len(variable.shape) for axis in first.summed.get(name, ()))}
        reuse = _reuse(calls, name) if role in ("", *KERNEL_ROLES) else 0
        path = f"{site.path}/{paths[id(variable)]}"
        result.append(TracedWeight(path, role, variable, axes, tuple(sorted(summed)), reuse, first.rescale.get(name)))
    return tuple(result)


def _held(layer: Any, name: str) -> Any:
    """Follow dots into what a layer holds; None where there is no such thing."""
    for part in name.split("."):
        layer = layer[int(part)] if part.isdigit() else getattr(layer, part, None)
        if layer is None:
            return None
    return layer


def _paths(layer: keras.Layer) -> dict[int, str]:
    """Name each variable of a layer, those of layers inside by the path that leads to them."""
    found: dict[int, str] = {}
    for path, one in located(layer).items():
        for variable in own_variables(one):
            if id(variable) not in found:
                found[id(variable)] = unique(f"{path}/{variable.name}".lstrip("/"), found.values())
    return found


def _reuse(calls: Sequence[Rule], name: str) -> int | None:
    """Add up how often an entry of a weight is used in several calls."""
    each = [found.reuse.get(name, 0) if isinstance(found.reuse, Mapping) else found.reuse for found in calls]
    return None if None in each else sum(value or 0 for value in each)


def _refuse_shared_variables(layers: tuple[TracedLayer, ...]) -> None:
    owner: dict[int, str] = {}
    for layer in layers:
        for weight in layer.weights:
            other = owner.setdefault(id(weight.variable), layer.path)
            if other != layer.path and weight.axes:
                raise SurgeryError(f"Layers {other!r} and {layer.path!r} share the variable {weight.variable.path!r}.")


def _signatures(ids: ChannelIds, classes: np.ndarray) -> dict[int, tuple[tuple[int, int], ...]]:
    """Map each class to the mints it comes from with its number of entries in each, in minting order."""
    pairs, counts = np.unique(np.stack([classes, ids.mint_of()]), axis=1, return_counts=True)
    found: dict[int, list[tuple[int, int]]] = {}
    for one, mint, entries in zip(*pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(one, []).append((mint, entries))
    return {one: tuple(signature) for one, signature in found.items()}


def _groups(ids: ChannelIds, classes: np.ndarray, frozen: set[int]) -> tuple[Group, ...]:
    by_signature: dict[tuple, list[int]] = {}
    for one, signature in _signatures(ids, classes).items():
        if one not in frozen:
            by_signature.setdefault(signature, []).append(one)
    groups, names = [], set()
    for signature, members in sorted(by_signature.items(), key=lambda item: item[1][0]):
        # A layer that is called twice mints twice, but its channels are one set: the first call speaks for both.
        widths = {ids.mints[mint].path: entries * ids.mints[mint].width for mint, entries in reversed(signature)}
        layers, first = tuple(reversed(widths)), ids.mints[signature[0][0]]
        name = unique(first.name, names)
        names.add(name)
        groups.append(Group(name, layers, np.asarray(members), tuple(widths[p] for p in layers), first.part))
    return tuple(groups)


def _frozen_layers(ids: ChannelIds, classes: np.ndarray, frozen: Mapping[int, str]) -> dict[str, str]:
    """Map the path of each layer that minted frozen channels to the reason."""
    found, first = np.unique(classes, return_index=True)
    mints = sorted(zip(ids.mint_of()[first].tolist(), found.tolist(), strict=True))
    return {ids.mints[mint].name: frozen[one] for mint, one in mints if one in frozen}
