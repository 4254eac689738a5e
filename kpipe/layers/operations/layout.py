"""Rules of operations that lay the same values out anew: the ids are laid out alike."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.operations.operands import BATCH, across_batch, axes_of, classes, frozen
from kpipe.layers.rule import Rule, rule


@rule(*classes("numpy", "Reshape"))
def reshape(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Reshape the ids alike; the literal size of the axis that they come to lie on is rewritten."""
    given, wanted = ids.input_shapes[0], ids.output_shapes[0]
    if not isinstance(operation.newshape, (tuple, list)):
        return frozen(ids, [x], "takes its shape from a tensor")
    known = None not in (*given, *wanted)
    samples = Fraction(math.prod(given), math.prod(wanted)) if known else None
    tail = matching_tails(given, wanted, varying(x))
    if tail is None:
        return replace(frozen(ids, [x], f"reshapes {given} to {wanted}, which moves an open size"), samples=samples)
    first, start = tail
    out = ids.settle(np.broadcast_to(x, (*x.shape[:first], *given[first:])).reshape((1,) * start + wanted[start:]))
    newshape = (operation.newshape[0], *ids.sizes(out, operation.newshape[1:]))
    return Rule(out, config={"newshape": newshape}, samples=1 if given[:first] == wanted[:start] else samples)


def matching_tails(
    given: Sequence[int | None], wanted: Sequence[int | None], channel: int | None
) -> tuple[int, int] | None:
    """Find the fewest last axes of two shapes of the same values that hold as many values and contain an axis.

    Args:
        given: The shape before, without the batch axis.
        wanted: The shape after, likewise.
        channel: The axis of `given` that must be among them; None: none needs to be.

    Returns:
        Where the tails begin; None when open sizes or the batch axis would have to be among them.

    Example:
        >>> matching_tails((4, 6, 8), (24, 2, 4), 2), matching_tails((None, 6, 8), (None, 48), 2)
        ((2, 1), (1, 1))
        >>> matching_tails((4, None), (None, 4), 1) is None
        True
    """
    first, start = len(given), len(wanted)
    left = right = 1
    while left != right or (channel is not None and first > channel):
        shorter = (left <= right and first > 0) or start == 0
        size = given[first - 1 : first] if shorter else wanted[start - 1 : start]
        if not size or size[0] is None:
            return None
        if shorter:
            first, left = first - 1, left * size[0]
        else:
            start, right = start - 1, right * size[0]
    return first, start


def _permuted(ids: ChannelIds, x: Ids, order: Sequence[int]) -> Rule:
    """Permute the axes; `order` counts them with the batch axis."""
    if order[0] != 0:
        return across_batch(ids, [x], "moves the batch axis")
    return Rule(x.transpose([axis - 1 for axis in order[1:]]))


@rule(*classes("numpy", "Transpose"))
def transpose(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Permute the axes of the ids alike."""
    rank = x.ndim + 1
    return _permuted(ids, x, [axis % rank for axis in operation.axes or reversed(range(rank))])


@rule(*classes("numpy", "Swapaxes"))
def swap_axes(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Swap two axes of the ids alike."""
    order = np.arange(x.ndim + 1)
    order[[operation.axis1, operation.axis2]] = order[[operation.axis2, operation.axis1]]
    return _permuted(ids, x, order.tolist())


@rule(*classes("numpy", "Moveaxis"))
def move_axis(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Move axes of the ids alike."""
    shape = np.empty(range(1, x.ndim + 2))  # sizes that tell the axes apart
    order = [size - 1 for size in np.moveaxis(shape, operation.source, operation.destination).shape]
    return _permuted(ids, x, order)


@rule(*classes("numpy", "Squeeze"))
def squeeze(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Drop axes of size 1; they are named in the config, so that one more that comes to have size 1 stays."""
    if operation.axis is None:
        axes = {axis for axis, size in enumerate(ids.input_shapes[0]) if size == 1}
        if len(ids.output_shapes[0]) != x.ndim - len(axes):
            return across_batch(ids, [x], "drops the batch axis")
    else:
        axes = axes_of(operation.axis, x.ndim + 1)
    if BATCH in axes:
        return across_batch(ids, [x], "drops the batch axis")
    return Rule(x.squeeze(tuple(axes)), config={"axis": tuple(axis + 1 for axis in sorted(axes))})


@rule(*classes("numpy", "ExpandDims"))
def expand_dims(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Add axes of size 1."""
    several = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    axes = axes_of(several, x.ndim + 1 + len(several))
    if BATCH in axes:
        return across_batch(ids, [x], "puts an axis in front of the batch")
    return Rule(np.expand_dims(x, tuple(axes)))


@rule(*classes("numpy", "BroadcastTo"))
def broadcast_to(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Repeat along axes of size 1; the literal size of the channels' axis is rewritten."""
    if len(operation.shape) != x.ndim + 1:
        return across_batch(ids, [x], "puts an axis in front of the batch")
    return Rule(x, config={"shape": (operation.shape[0], *ids.sizes(x, operation.shape[1:]))})


@rule(*classes("numpy", "Flip"))
def flip(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Turn axes round; the ids along them turn alike."""
    axes = axes_of(operation.axis, x.ndim + 1)
    return across_batch(ids, [x], "turns the batch round") if BATCH in axes else Rule(np.flip(x, tuple(axes)))


@rule(*classes("numpy", "Repeat"))
def repeat(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Repeat each entry along an axis; the ids along it alike."""
    axes, channel = axes_of(operation.axis, x.ndim + 1), varying(x)
    if len(axes) > 1 or BATCH in axes:
        return across_batch(ids, [x], "repeats along the batch or all axes")
    if channel not in axes:
        return Rule(x)
    if np.ndim(operation.repeats) and len(operation.repeats) > 1:
        return frozen(ids, [x], "repeats each channel a number of times of its own")
    return Rule(np.repeat(x, operation.repeats, channel))


@rule(*classes("numpy", "Tile"))
def tile(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Repeat whole axes; the ids along them alike."""
    rank = x.ndim + 1
    repeats = list(operation.repeats) if isinstance(operation.repeats, (list, tuple)) else [operation.repeats]
    repeats = [1] * (rank - len(repeats)) + repeats
    if len(repeats) > rank or repeats[0] != 1:
        return across_batch(ids, [x], "repeats the batch")
    return Rule(np.tile(x, [times if size > 1 else 1 for times, size in zip(repeats[1:], x.shape, strict=True)]))
