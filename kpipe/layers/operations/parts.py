"""Rules of operations that take tensors apart and put them together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kpipe.layers import merge
from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.operations.operands import BATCH, across_batch, axes_of, classes, frozen, operands
from kpipe.layers.rule import Rule, rule


def _part(ids: ChannelIds, channels: Ids) -> Ids:
    """Make some of the channels along an axis, shape (n,), a set of their own, of which at least one stays."""
    part = ids.fresh(len(channels))
    ids.tie(part, channels)
    return part


@rule(*classes("numpy", "GetItem"))
def get_item(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Apply the key to the ids; bounds along the channels become numbers of kept channels.

    A single channel that is taken out stays.
    """
    place, key = _key(ids, x)
    channel = varying(x)
    entries, new_key, axis = [], [], BATCH
    for one in _spelled_out(key, x.ndim + 1):
        if axis == BATCH and one != slice(None):
            return across_batch(ids, [x], "takes samples out of the batch, or puts an axis in front of it")
        entry, literal = one, one
        if one is not None and axis == channel:
            if isinstance(one, slice) and one.step not in (None, 1):
                return frozen(ids, [x], "takes channels in steps")
            entry, literal = _of_channels(ids, one, ids.along(x, axis))
        elif one is not None:
            entry = slice(None) if isinstance(one, slice) else 0
        if axis != BATCH:
            entries.append(entry)
        new_key.append(literal)
        axis += one is not None
    return _taken(ids, x, entries, {place: tuple(new_key)})


def _key(ids: ChannelIds, x: Ids) -> tuple[int | str, tuple[Any, ...]]:
    """Give the key of a `GetItem`, and its place among the arguments."""
    args, kwargs = ids.arguments
    place, key = next(one for one in [*enumerate(args), *kwargs.items()] if one[1] is not x)
    return place, tuple(key) if isinstance(key, (tuple, list)) else (key,)


def _spelled_out(key: Sequence[Any], rank: int) -> list[Any]:
    """Write an index out, one entry for each axis and for each new one.

    Example:
        >>> _spelled_out((Ellipsis, None, 2), 3)
        [slice(None, None, None), slice(None, None, None), None, 2]
    """
    missing = rank - sum(one is not None and one is not Ellipsis for one in key)
    at = next((place for place, one in enumerate(key) if one is Ellipsis), len(key))
    return [*key[:at], *[slice(None)] * missing, *key[at + 1 :]]


def _of_channels(ids: ChannelIds, one: Any, channels: Ids) -> tuple[Any, Any]:
    """Index the channels: the entry for their ids, and the literal that counts kept channels."""
    if isinstance(one, slice):
        start, stop, _ = one.indices(len(channels))
        literal = slice(channels[:start] if start else None, channels[:stop] if stop < len(channels) else None)
        return slice(start, max(start, stop)), literal
    place = range(len(channels))[one]
    ids.freeze(channels[place], f"{ids.path!r} takes it out by its place")
    return place, channels[:place]


def _taken(ids: ChannelIds, x: Ids, entries: list[Any], arguments: dict[int | str, Any]) -> Rule:
    """Take entries out of ids; what is a part of the channels becomes a set of its own."""
    out = x[tuple(entries)]
    if out.size < x.size:
        out = _part(ids, out.reshape(-1)).reshape(out.shape)
    return Rule(out, arguments=arguments)


@rule(*classes("numpy", "Split"))
def split(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Split the ids alike; along the channels, the bounds become numbers of kept channels."""
    axes, channel = axes_of(operation.axis, x.ndim + 1), varying(x)
    if BATCH in axes:
        return across_batch(ids, [x], "splits the batch")
    count = len(ids.output_shapes)
    if channel not in axes:
        return Rule((x,) * count)
    channels, where = ids.along(x, channel), operation.indices_or_sections
    bounds = [len(channels) // where * n for n in range(1, where)] if isinstance(where, int) else list(where)
    pieces = [_part(ids, piece) for piece in np.split(channels, bounds)]
    if min(map(len, pieces)) == 0:
        return frozen(ids, [x], "splits off nothing")
    config = {"indices_or_sections": tuple(channels[:bound] for bound in bounds)}
    return Rule(tuple(ids.spread(piece, channel) for piece in pieces), config=config)


@rule(*classes("core", "Unstack"))
def unstack(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Take an axis apart; channels along another one pass."""
    axes = axes_of(operation.axis, x.ndim + 1)
    if BATCH in axes or varying(x) in axes:
        return across_batch(ids, [x], "takes the batch or the channels apart")
    return Rule((x.squeeze(tuple(axes)),) * len(ids.output_shapes))


@rule(*classes("numpy", "Concatenate"))
def concatenate(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Concatenate the ids along the channel axis; along another axis, tie them."""
    rank = inputs[0].ndim + 1
    return _apart(ids, inputs, operation.axis, rank) or merge.concatenate(operation, ids, *inputs)


@rule(*classes("numpy", "Stack"))
def stack(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Put tensors beside one another along a new axis: their channels are tied."""
    rank = inputs[0].ndim + 2
    if apart := _apart(ids, inputs, operation.axis, rank):
        return apart
    if len({axis for x in inputs if (axis := varying(x)) is not None}) > 1:
        return frozen(ids, inputs, "stacks tensors whose channels lie on different axes")
    for x in inputs:
        ids.tie(x, inputs[0])
    out = next((x for x in inputs if varying(x) is not None), inputs[0])
    return Rule(np.expand_dims(out, tuple(axes_of(operation.axis, rank))))


def _apart(ids: ChannelIds, inputs: Sequence[Ids], axis: int, rank: int) -> Rule | None:
    """Freeze tensors that cannot be followed into one; None when they can."""
    several = ids.arguments[0][0] if ids.arguments[0] else ()
    if len(several) != len(inputs):
        return frozen(ids, inputs, "puts constants and tensors together")
    if BATCH in axes_of(axis, rank):
        return across_batch(ids, inputs, "puts samples of several batches together")
    return None


@rule(*classes("numpy", "Take"))
def take(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Take entries along an axis; channels along another one pass."""
    x, rank = inputs[0], inputs[0].ndim + 1
    axes = axes_of(operation.axis, rank)
    if len(inputs) > 1 or len(axes) > 1 or BATCH in axes or varying(x) in axes:
        return frozen(ids, inputs, "takes out samples or channels by their places")
    places = next(one for one in operands(ids, inputs) if one.port is None)
    axis = axes.pop()
    return Rule(np.expand_dims(x.squeeze(axis), tuple(range(axis, axis + len(places.shape)))))


@rule(*classes("numpy", "Pad"))
def pad(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Add entries at both ends of axes; those beside the channels are channels too, of which fewer may be added."""
    x, widths = inputs[0], [tuple(width) for width in operation.pad_width]
    widths = widths * (x.ndim + 1) if len(widths) == 1 else widths
    channel = varying(x)
    if any(widths[0]) or len(inputs) > 1:
        return across_batch(ids, inputs, "pads the batch, or with a tensor")
    if channel is None or not any(widths[channel + 1]):
        return Rule(x)
    if operation.mode != "constant":
        return frozen(ids, [x], "pads the channels with one another")
    before, after = (ids.fresh(width) for width in widths[channel + 1])
    counted = tuple((before, after) if axis == channel + 1 else width for axis, width in enumerate(widths))
    out = ids.spread(np.concatenate([before, ids.along(x, channel), after]), channel)
    return Rule(out, config={"pad_width": counted})
