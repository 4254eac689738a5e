"""What tracing a model gives: layers and weights with the channel ids along their axes, groups, counts."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from kpipe.graph.flow import Flow, Key
from kpipe.layers import Compressed, Ids


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
        rescale: Multiply the weight by (kept / all) ** power of some ids: (ids, power); None: leave it.
    """

    path: str
    role: str
    variable: keras.Variable
    axes: Mapping[int, Ids]
    summed: tuple[int, ...]
    reuse: int | None
    rescale: tuple[Ids, float] | None = None


@dataclass(frozen=True)
class TracedLayer:
    """A layer or operation of the flow with its weights, and the sizes that follow the channels.

    Args:
        path: Its path in the flow.
        layer: The layer or operation.
        weights: All its weights, in Keras's order.
        config: Setting, with dots into what is inside -> new value, with ids for counts.
        arguments: Position or name of an argument of its call -> likewise.
        products: Products of sizes that count further MACs.
        reference: `(kept, call) -> function`: the computation of one of its calls over kept channels alone, where that
            differs; see `kpipe.layers.Rule`.
        out: Channel ids of its outputs, in its first call.
    """

    path: str
    layer: Any
    weights: tuple[TracedWeight, ...]
    config: Mapping[str, Any]
    arguments: Mapping[int | str, Any]
    products: tuple[tuple[Any, ...], ...]
    reference: Callable[..., Callable[..., Any]] | None
    out: tuple[Ids, ...]


@dataclass(frozen=True)
class Group:
    """Channels that are alike: the same layers produce each of them, so they are ranked together.

    Args:
        name: Path of the first layer that produces them, made unique.
        layers: Paths of all the layers that produce them.
        classes: The class of each channel, shape (channels,), in the order of production.
        width: Entries that one channel takes along each producing layer's axis (49 for a dense layer in front of a
            7 × 7 map), one for each of `layers`.
        part: What they are in the first of the layers: "channels", or a part of its own such as the "heads" of an
            attention.
    """

    name: str
    layers: tuple[str, ...]
    classes: np.ndarray
    width: tuple[int, ...]
    part: str = "channels"

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Trace:
    """Channel ids of all tensors and weights of a model; `tensors` maps keys of the flow to those of each tensor."""

    flow: Flow
    layers: tuple[TracedLayer, ...]
    class_of: np.ndarray
    frozen: Mapping[str, str]
    groups: tuple[Group, ...]
    tensors: Mapping[Key, Ids] = field(default_factory=dict)

    @cached_property
    def weights(self) -> tuple[TracedWeight, ...]:
        """All traced weights, each once."""
        return tuple(weight for layer in self.layers for weight in layer.weights)

    @property
    def class_count(self) -> int:
        """How many classes of channel ids there are."""
        return int(self.class_of.max(initial=-1)) + 1

    def freeze(self, stay: Mapping[str, str]) -> "Trace":
        """Let groups stay whole: name -> reason."""
        groups = tuple(group for group in self.groups if group.name not in stay)
        return replace(self, frozen={**self.frozen, **stay}, groups=groups)

    def kept(self, ids: Ids, keep: np.ndarray) -> np.ndarray:
        """Look up which entries along an axis are kept; `keep` says it of each class, shape (classes,), bool."""
        return keep[self.class_of[ids]]

    def size(self, value: Any, keep: np.ndarray) -> Any:
        """Turn ids in a value into the number of kept entries; see `kpipe.layers.Rule`."""
        if isinstance(value, np.ndarray):
            return int(self.kept(value, keep).sum())
        if isinstance(value, slice):
            return slice(self.size(value.start, keep), self.size(value.stop, keep), value.step)
        if isinstance(value, Compressed):
            array = value.array
            for axis, ids in value.axes.items():
                array = np.compress(self.kept(ids, keep), array, axis)
            return array
        if isinstance(value, dict):
            return {key: self.size(item, keep) for key, item in value.items()}
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
        return added(self.macs_of(layer, keep) for layer in self.layers)

    def macs_of(self, layer: TracedLayer, keep: np.ndarray | None = None) -> int | None:
        """Count them for one layer: what its kernels multiply, and products such as an attention's scores."""
        keep = np.ones(self.class_count, bool) if keep is None else keep
        counts: list[int | None] = []
        for sizes in layer.products:
            counts.append(None if any(n is None for n in sizes) else int(math.prod(self.size(sizes, keep))))
        for weight in layer.weights:
            if weight.reuse != 0:
                counts.append(None if weight.reuse is None else weight.reuse * math.prod(self.shape(weight, keep)))
        return added(counts)

    def params(self, keep: np.ndarray | None = None) -> int:
        """Count the parameters of the traced layers."""
        keep = np.ones(self.class_count, bool) if keep is None else keep
        return sum(math.prod(self.shape(weight, keep)) for weight in self.weights)


def added(counts: Iterable[int | None]) -> int | None:
    """Add up counts; None where one is not known.

    Example:
        >>> added([1, 2]), added([1, None]), added([])
        (3, None, 0)
    """
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)
