"""Channel ids followed through a Functional graph; groups of channels that live and die together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import keras
import numpy as np

from kpipe.errors import SurgeryError
from kpipe.graph.flow import Flow, Site, sites
from kpipe.layers import KERNEL_ROLES, RULES, ChannelIds, Ids, Rule, weights, weights_within


@dataclass(frozen=True)
class TracedWeight:
    """A variable with the channel ids along its axes, and whether an axis is one that the layer sums over.

    Args:
        path: Path of the layer in the flow, then the weight's name.
        role: What the weight does, as its layer's rule says.
        variable: The Keras variable.
        axes: Axis (non-negative) -> channel ids, shape (size of the axis,).
        summed: The axes whose channels end here, being summed over: zeros there make a channel's removal exact.
        reuse: How often each entry is multiplied for one sample; 0 for what is no kernel, None when not known.
    """

    path: str
    role: str
    variable: keras.Variable
    axes: Mapping[int, Ids]
    summed: tuple[int, ...]
    reuse: int | None


@dataclass(frozen=True)
class TracedLayer:
    """A layer of the flow with its weights and the sizes in its config that follow the channels."""

    path: str
    layer: Any
    weights: tuple[TracedWeight, ...]
    config: Mapping[str, Any]
    out: Ids


@dataclass(frozen=True)
class Group:
    """Channels that are alike: the same layers produce each of them, so they are ranked together.

    Args:
        name: Path of the first layer that produces them, made unique.
        layers: Paths of all the layers that produce them.
        classes: The class of each channel, shape (channels,), in the order of production.
        width: Entries that one channel takes along each producing layer's axis (49 for a dense layer in front of a
            7 × 7 map), one for each of `layers`.
    """

    name: str
    layers: tuple[str, ...]
    classes: np.ndarray
    width: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Trace:
    """Channel ids of all tensors and weights of a model."""

    flow: Flow
    layers: tuple[TracedLayer, ...]
    class_of: np.ndarray
    frozen: Mapping[str, str]
    groups: tuple[Group, ...]

    @cached_property
    def weights(self) -> tuple[TracedWeight, ...]:
        """All traced weights, each once."""
        return tuple(weight for layer in self.layers for weight in layer.weights)

    @property
    def class_count(self) -> int:
        """How many classes of channel ids there are."""
        return int(self.class_of.max(initial=-1)) + 1

    def kept(self, ids: Ids, keep: np.ndarray) -> np.ndarray:
        """Look up which entries along an axis are kept; `keep` says it of each class, shape (classes,), bool."""
        return keep[self.class_of[ids]]

    def size(self, value: Any, keep: np.ndarray) -> Any:
        """Turn ids in a config value into the number of kept entries."""
        if isinstance(value, np.ndarray):
            return int(self.kept(value, keep).sum())
        if isinstance(value, (tuple, list)):
            return type(value)(self.size(item, keep) for item in value)
        return value

    def shape(self, weight: TracedWeight, keep: np.ndarray) -> tuple[int, ...]:
        """Give a weight's shape after the removal."""
        return tuple(
            self.size(weight.axes[axis], keep) if axis in weight.axes else size
            for axis, size in enumerate(weight.variable.shape)
        )

    def macs(self, keep: np.ndarray | None = None) -> int | None:
        """Count multiply-accumulates for one sample; None when an input size or a layer is not known."""
        keep = np.ones(self.class_count, bool) if keep is None else keep
        if any(weight.reuse is None for weight in self.weights):
            return None
        return sum(weight.reuse * math.prod(self.shape(weight, keep)) for weight in self.weights if weight.reuse)

    def params(self, keep: np.ndarray | None = None) -> int:
        """Count the parameters of the traced layers."""
        keep = np.ones(self.class_count, bool) if keep is None else keep
        return sum(math.prod(self.shape(weight, keep)) for weight in self.weights)


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
    calls: list[tuple[Site, Rule]] = []
    for site in flow.sites:
        ids.at(site.path, site.input_shapes, site.output_shapes)
        found = _ask(site, ids, [tensors[key] for key in site.inputs], unknown)
        tensors.update(zip(site.outputs, [found.out] * len(site.outputs), strict=True))
        calls.append((site, found))
    for key in flow.outputs:
        ids.freeze(tensors[key], "it is an output of the model")
    layers = _merge_calls(calls, ids)
    _refuse_shared_variables(layers)
    classes, frozen = ids.classes(), ids.frozen_classes()
    return Trace(flow, layers, classes, _frozen_layers(ids, classes, frozen), _groups(ids, classes, set(frozen)))


def _ask(site: Site, ids: ChannelIds, inputs: list[Ids], unknown: str) -> Rule:
    facts = RULES.get(type(site.operation))
    if facts is not None and facts.channels is not None:
        return facts.channels(site.operation, ids, *inputs)
    cls = type(site.operation)
    if unknown == "refuse":
        kind = "layer" if isinstance(site.operation, keras.Layer) else "operation"
        raise SurgeryError(
            f"The {kind} {site.path!r} ({cls.__module__}.{cls.__name__}) has no rule: its channels cannot be followed. "
            "`kpipe ls layers` lists the known ones; register one with kpipe.layers.rule."
        )
    reason = f"they touch {site.path!r}, whose class {cls.__name__} has no rule"
    for x in inputs:
        ids.freeze(x, reason)
    return Rule(ids.constant(reason), reuse=None if _has_kernels(site.operation) else 0)


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
        for _, other in group[1:]:
            _tie_alike(ids, first.axes, other.axes)
            _tie_alike(ids, first.config, other.config)
        reuses = [found.reuse for _, found in group]
        reuse = None if None in reuses else sum(value or 0 for value in reuses)
        traced = _traced_weights(site, first, reuse)
        layers.append(TracedLayer(site.path, site.operation, traced, first.config, first.out))
    return tuple(layers)


def _tie_alike(ids: ChannelIds, a: Any, b: Any) -> None:
    """Tie the ids that stand at the same place of two like structures."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        ids.tie(a, b)
    elif isinstance(a, Mapping):
        for key in a:
            _tie_alike(ids, a[key], b[key])
    elif isinstance(a, (tuple, list)):
        for one, other in zip(a, b, strict=True):
            _tie_alike(ids, one, other)


def _traced_weights(site: Site, found: Rule, reuse: int | None) -> tuple[TracedWeight, ...]:
    if not isinstance(site.operation, keras.Layer):
        return ()
    roles = {id(weight.variable): weight for weight in weights(site.operation)}
    out = np.unique(found.out)
    result = []
    for variable in site.operation.weights:
        weight = roles.get(id(variable))
        axes = dict(found.axes.get(weight.name, {})) if weight else {}
        axes = {axis % len(variable.shape): x for axis, x in axes.items()}
        summed = tuple(axis for axis, x in axes.items() if not np.isin(x, out).any())
        is_kernel = weight is not None and weight.role in KERNEL_ROLES
        uses = reuse if is_kernel or weight is None else 0
        result.append(
            TracedWeight(f"{site.path}/{variable.name}", weight.role if weight else "", variable, axes, summed, uses)
        )
    return tuple(result)


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
    groups, seen = [], {}
    for signature, members in sorted(by_signature.items(), key=lambda item: item[1][0]):
        # A layer that is called twice mints twice, but its channels are one set: the first call speaks for both.
        widths = {ids.mints[mint]: entries for mint, entries in reversed(signature)}
        layers = tuple(reversed(widths))
        seen[layers[0]] = seen.get(layers[0], 0) + 1
        name = layers[0] if seen[layers[0]] == 1 else f"{layers[0]}#{seen[layers[0]]}"
        groups.append(Group(name, layers, np.asarray(members), tuple(widths[layer] for layer in layers)))
    return tuple(groups)


def _frozen_layers(ids: ChannelIds, classes: np.ndarray, frozen: Mapping[int, str]) -> dict[str, str]:
    """Map the path of each layer that minted frozen channels to the reason."""
    mint_of = ids.mint_of()
    first = {one: int(mint_of[np.argmax(classes == one)]) for one in frozen}
    return {ids.mints[mint]: frozen[one] for one, mint in sorted(first.items(), key=lambda item: item[1])}
