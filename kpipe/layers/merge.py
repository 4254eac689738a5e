"""Rules of layers that merge several tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule, rule


def on_one_axis(ids: ChannelIds, inputs: Sequence[Ids]) -> tuple[int | None, list[Ids]]:
    """Let the channels of several tensors of one rank lie on one axis: the last; those on another one are frozen.

    Args:
        ids: Of the layer at hand.
        inputs: Ids of its inputs.

    Returns:
        The axis, None where nothing varies; the ids, which vary along this axis at most.

    Example:
        >>> ids = ChannelIds().at("add", [], [])
        >>> axis, (a, b) = on_one_axis(ids, [ids.fresh(3).reshape(1, 3), ids.fresh(5).reshape(5, 1)])
        >>> axis, a.shape, b.shape, len(ids.frozen_classes())
        (1, (1, 3), (1, 1), 5)
    """
    axis = max((found for x in inputs if (found := varying(x)) is not None), default=None)
    settled = []
    for x in inputs:
        found = varying(x)
        if found != axis and found is not None:
            ids.freeze(x, f"{ids.path!r} merges them with others that lie on another axis")
            x = x.take([0], found)
        settled.append(x)
    return axis, settled


def _tie_all(ids: ChannelIds, inputs: Sequence[Ids]) -> Rule:
    for x in inputs:
        ids.tie(x, inputs[0])
    return Rule(max(inputs, key=np.size))


@rule(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, quantization="output")
def elementwise_merge(layer: keras.Layer, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Tie the inputs' channels; a size-1 axis is broadcast and ties nothing.

    An input of lower rank gets axes of size 1 after the batch axis, as in Keras.
    """
    rank = len(ids.output_shapes[0])
    shapes = [(1,) * (rank - len(shape)) + shape for shape in ids.input_shapes]
    axis, settled = on_one_axis(ids, [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in inputs])
    if axis is None:
        return _tie_all(ids, settled)
    return _tie_all(ids, [x for x, shape in zip(settled, shapes, strict=True) if shape[axis] != 1])


@rule(L.Concatenate, quantization="output")
def concatenate(layer: L.Concatenate, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Concatenate the ids along the channel axis; along another axis, tie them."""
    rank = inputs[0].ndim + 1
    axis = layer.axis % rank - 1  # the ids have no batch axis
    found, settled = on_one_axis(ids, inputs)
    sizes = [shape[axis] for shape in ids.input_shapes]
    if axis < 0 or None in sizes or found not in (None, axis):
        return _tie_all(ids, settled)
    shapes = [[n if i == axis else 1 for i in range(rank - 1)] for n in sizes]
    parts = [np.broadcast_to(x, shape) for x, shape in zip(settled, shapes, strict=True)]
    return Rule(np.concatenate(parts, axis))


@rule(L.Dot)
def dot(layer: L.Dot, ids: ChannelIds, a: Ids, b: Ids) -> Rule:
    """Tie the channels that it sums over; channels on other axes come out, those of the second input rather.

    Nothing is left to zero for a channel that goes, so the reference sums over the kept ones alone.
    """
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else [layer.axes] * 2
    i, j = (axis % (x.ndim + 1) - 1 for axis, x in zip(axes, (a, b), strict=True))  # the ids have no batch axis
    products = [(*ids.sizes(a, ids.input_shapes[0]), *_without(ids.sizes(b, ids.input_shapes[1]), j))]
    shared = varying(a) == i and varying(b) == j
    if shared:
        ids.tie(a.reshape(-1), b.reshape(-1))
    carried = []
    for x, axis, start in ((a, i, 0), (b, j, a.ndim - 1)):
        found = varying(x)
        if found == axis and not shared:
            ids.freeze(x, f"{ids.path!r} sums over them in one of its inputs alone")
        elif found not in (None, axis):
            carried.append((x, start + found - (found > axis)))
    for x, _ in carried[:-1]:
        ids.freeze(x, f"{ids.path!r} lays them beside the channels of its second input")
    reference = (lambda kept: _dot_over(layer, (i + 1, j + 1), np.flatnonzero(kept(a)))) if shared else None
    if not carried:
        return Rule(ids.constant(f"{ids.path!r} sums channels up"), products=products, reference=reference)
    last, place = carried[-1]
    return Rule(ids.spread(last.reshape(-1), place), products=products, reference=reference)


def _without(sizes: Sequence[Any], place: int) -> tuple[Any, ...]:
    return (*sizes[:place], *sizes[place + 1 :])


def _dot_over(layer: L.Dot, axes: Sequence[int], places: np.ndarray) -> Callable[[Sequence[Any]], Any]:
    """Sum over some places alone."""
    return lambda inputs: layer([ops.take(x, places, axis) for x, axis in zip(inputs, axes, strict=True)])
