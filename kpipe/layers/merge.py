"""Rules of layers that merge several tensors."""

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule, rule


def _varying(x: Ids) -> int | None:
    """Give the axis along which ids vary, if any."""
    return next((axis for axis, size in enumerate(x.shape) if size > 1), None)


def _freeze_all(ids: ChannelIds, inputs: tuple[Ids, ...], reason: str) -> Rule:
    for x in inputs:
        ids.freeze(x, reason)
    return Rule(ids.constant(reason))


def _tie_all(ids: ChannelIds, inputs: tuple[Ids, ...]) -> Rule:
    for x in inputs:
        ids.tie(x, inputs[0])
    return Rule(inputs[0])


@rule(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, quantization="output")
def elementwise_merge(layer: keras.Layer, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Tie the inputs' channels; a size-1 axis is broadcast and ties nothing."""
    rank = len(ids.output_shapes[0])
    if any(x.ndim != rank for x in inputs):
        ids.refuse(f"it merges inputs of different ranks, {ids.input_shapes}; give them one rank with Reshape")
    axes = {axis for x in inputs if (axis := _varying(x)) is not None}
    if len(axes) > 1:
        return _freeze_all(ids, inputs, f"{ids.path!r} merges inputs whose channels lie on different axes")
    if not axes:
        return _tie_all(ids, inputs)
    axis = axes.pop()
    full = [x for x, shape in zip(inputs, ids.input_shapes, strict=True) if shape[axis] != 1]
    for x in full:
        ids.tie(x, full[0])
    return Rule(next(x for x in full if x.shape[axis] > 1))


@rule(L.Concatenate, quantization="output")
def concatenate(layer: L.Concatenate, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Concatenate the ids along the channel axis; along another axis, tie them."""
    axis = layer.axis - 1 if layer.axis > 0 else layer.axis % inputs[0].ndim  # the ids have no batch axis
    varying = {found for x in inputs if (found := _varying(x)) is not None}
    if varying <= {axis}:
        parts = [
            np.broadcast_to(x, [shape[axis] if i == axis else 1 for i in range(x.ndim)])
            for x, shape in zip(inputs, ids.input_shapes, strict=True)
        ]
        return Rule(np.concatenate(parts, axis))
    if axis in varying:
        return _freeze_all(ids, inputs, f"{ids.path!r} concatenates inputs whose channels lie on different axes")
    return _tie_all(ids, inputs)
