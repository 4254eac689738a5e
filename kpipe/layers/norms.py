"""Rules of norms: their weights lie along channels; statistics over channels are taken over those that are kept."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

from kpipe.layers.axes import channels_on, freeze_masks, varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Kept, Role, Rule, inside, rule

BATCH_NORMALIZATION: dict[str, Role] = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "statistic",
    "moving_variance": "statistic",
    "moving_stddev": "statistic",  # this and what follows are there with `renorm` only
    "renorm_mean": "statistic",
    "renorm_stddev": "statistic",
}
SCALE_AND_OFFSET: dict[str, Role] = {"gamma": "gamma", "beta": "beta"}

Compute = Callable[[Any, Any], Any]
"""(values, mask) -> normalised values; the mask is 1 where a channel is kept, and of the same shape."""


@rule(L.BatchNormalization, roles=BATCH_NORMALIZATION, quantization="normalise")
def batch_normalization(layer: L.BatchNormalization, ids: ChannelIds, x: Ids, *masks: Ids) -> Rule:
    """Vectors along `axis`; channels pass through, on whatever axis they lie."""
    freeze_masks(ids, masks)
    axis = layer.axis % (x.ndim + 1) - 1  # the ids have no batch axis
    if varying(x) not in (None, axis):
        return Rule(x)
    channels = channels_on(ids, x, axis)
    return Rule(ids.spread(channels, axis), axes={name: {0: channels} for name in BATCH_NORMALIZATION})


@rule(L.LayerNormalization, roles=SCALE_AND_OFFSET)
def layer_normalization(layer: L.LayerNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Weights of the sizes of `axis`, one axis or several; channels on another axis pass.

    Keras sorts the axes as they are written and so lays the weights out wrongly where it is told 1 and -1 together:
    there the channels stay.
    """
    axes = _axes(layer, x)
    weighted = layer.gamma is not None or layer.beta is not None
    if weighted and axes != sorted(axes):
        ids.freeze(x, f"{ids.path!r} counts its axes {layer.axis} from both ends")
        return Rule(x)

    def compute(values: Any, mask: Any) -> Any:
        mean, variance = _moments(values, mask, axes)
        values = values if layer.rms_scaling else values - mean
        values = values * ops.rsqrt(variance + layer.epsilon)
        return _scale_and_offset(layer, values, axes)

    return _normalised(layer, x, axes, ("gamma", "beta") if weighted else (), compute)


@rule(L.RMSNormalization, roles={"scale": "gamma"})
def rms_normalization(layer: L.RMSNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Scale of the sizes of `axis`, which Keras multiplies with the last axes, whichever it took the mean over.

    So where these are not the same, the channels stay.
    """
    axes, rank = _axes(layer, x), x.ndim + 1
    if axes != list(range(rank - len(axes), rank)) and max(layer.scale.shape) > 1:
        ids.freeze(x, f"the scale of {ids.path!r} does not lie on its axes {layer.axis}")
        return Rule(x)

    def compute(values: Any, mask: Any) -> Any:
        mean = _mean(ops.square(values), mask, axes)
        return values * ops.rsqrt(mean + layer.epsilon) * ops.convert_to_tensor(layer.scale, values.dtype)

    return _normalised(layer, x, axes, ("scale",), compute)


@rule(L.UnitNormalization)
def unit_normalization(layer: L.UnitNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Divide by the length over `axis`; channels on another axis pass."""
    axes = _axes(layer, x)

    def compute(values: Any, mask: Any) -> Any:
        length = ops.sum(ops.square(values) * mask, axes, keepdims=True)
        return values * ops.minimum(ops.rsqrt(length), 1e12)

    return _normalised(layer, x, axes, (), compute)


@rule(L.GroupNormalization, roles=SCALE_AND_OFFSET)
def group_normalization(layer: L.GroupNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Vectors along `axis`, statistics over each of its groups and all other axes.

    The same place goes from every group, so the number of groups stays. With as many groups as channels each has its
    own statistics: there channels go one by one, and `groups` follows them.
    """
    axis = layer.axis % (x.ndim + 1)
    elsewhere = varying(x) not in (None, axis - 1)

    def compute(values: Any, mask: Any) -> Any:
        shape = list(values.shape)
        split = [*shape[:axis], layer.groups, shape[axis] // layer.groups, *shape[axis + 1 :]]
        parts, kept = ops.reshape(values, split), ops.reshape(mask, split)
        mean, variance = _moments(parts, kept, [i for i in range(1, len(split)) if i != axis])
        values = ops.reshape((parts - mean) * ops.rsqrt(variance + layer.epsilon), shape)
        return _scale_and_offset(layer, values, [axis])

    if elsewhere:
        return Rule(x, reference=_over_kept(layer, x, compute))
    channels = channels_on(ids, x, axis - 1)
    axes = {name: {0: channels} for name in SCALE_AND_OFFSET}
    if layer.groups == len(channels):
        return Rule(x, axes=axes, config={"groups": channels})
    ids.tie_blocks(channels, layer.groups)
    return Rule(x, axes=axes, reference=_over_kept(layer, x, compute))


@rule(L.SpectralNormalization, roles={"vector_u": "statistic"})
def spectral_normalization(layer: L.SpectralNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Ask the layer inside; `vector_u` (1, n) follows the last axis of its kernel."""
    found = inside(layer.layer, ids, "layer", "layer.config", x)
    held = next((axes for name, axes in found.axes.items() if name in ("layer.kernel", "layer.embeddings")), {})
    rank = len(layer.kernel.shape)
    last = [on for axis, on in held.items() if axis % rank == rank - 1]
    return replace(found, axes={**found.axes, "vector_u": dict(enumerate(last, 1))})


def _axes(layer: Any, x: Ids) -> list[int]:
    """Give the axes over which a norm computes, batch axis included, in the order in which its weights have them."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return [axis % (x.ndim + 1) for axis in axes]


def _normalised(layer: Any, x: Ids, axes: list[int], names: Sequence[str], compute: Compute) -> Rule:
    """Say how channels pass a norm over some axes, whose weights have just these axes."""
    found = varying(x)
    channel = axes[-1] if found is None else found + 1
    if channel not in axes:
        return Rule(x, axes={name: {} for name in names})
    place = axes.index(channel)
    held = [variable.shape[place] for name in names if (variable := getattr(layer, name)) is not None]
    along = {place: np.broadcast_to(x.reshape(-1), (held[0],))} if held else {}
    reference = None if found is None else _over_kept(layer, x, compute)
    return Rule(x, axes={name: along for name in names}, reference=reference)


def _over_kept(layer: Any, x: Ids, compute: Compute) -> Callable[[Kept], Callable[..., Any]]:
    """Let a norm compute over the kept channels alone, in single precision at least, as Keras does."""

    def reference(kept: Kept) -> Callable[..., Any]:
        def call(inputs: Any) -> Any:
            values: Any = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
            mask = ops.broadcast_to(ops.convert_to_tensor(kept(x)[None], values.dtype), values.shape)
            return ops.cast(compute(values, mask), layer.compute_dtype)

        return call

    return reference


def _moments(values: Any, mask: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Compute mean and variance over some axes of the values where a mask is 1."""
    mean = _mean(values, mask, axes)
    return mean, _mean(ops.square(values - mean), mask, axes)


def _mean(values: Any, mask: Any, axes: Sequence[int]) -> Any:
    return ops.divide(ops.sum(values * mask, axes, keepdims=True), ops.sum(mask, axes, keepdims=True))


def _scale_and_offset(layer: Any, values: Any, axes: Sequence[int]) -> Any:
    """Multiply by gamma and add beta, where a norm has them, laid along its axes."""
    shape = [size if axis in axes else 1 for axis, size in enumerate(values.shape)]
    if layer.gamma is not None:
        values = values * ops.reshape(ops.convert_to_tensor(layer.gamma, values.dtype), shape)
    if layer.beta is not None:
        values = values + ops.reshape(ops.convert_to_tensor(layer.beta, values.dtype), shape)
    return values
