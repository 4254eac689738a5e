"""Where the channels of a tensor lie: on one axis at most, as `ChannelIds` has it."""

import math
from collections.abc import Sequence

import numpy as np

from kpipe.layers.channel_ids import ChannelIds, Ids


def positions(shape: tuple, axis: int) -> int | None:
    """Count the places of a tensor (batch axis left out) along all axes but the channel axis; None if one is open.

    Example:
        >>> positions((7, 7, 64), -1), positions((None, 7, 64), -1)
        (49, None)
    """
    others = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    return None if None in others else math.prod(others)


def varying(x: Ids) -> int | None:
    """Give the axis along which ids vary; None where one id stands for all.

    Example:
        >>> varying(np.arange(6).reshape(1, 1, 6)), varying(np.zeros((1, 1, 1), int))
        (2, None)
    """
    return next((axis for axis, size in enumerate(x.shape) if size > 1), None)


def channels_on(ids: ChannelIds, x: Ids, axis: int, port: int = 0) -> Ids:
    """Give the ids along the axis from which a layer takes channels, shape (n,); freeze those that lie on another.

    Example:
        >>> ids = ChannelIds().at("conv", [(None, 4, 4, 6)], [(None, 4, 4, 8)])
        >>> channels_on(ids, ids.fresh(6).reshape(1, 1, 6), -1)
        array([0, 1, 2, 3, 4, 5])
        >>> len(channels_on(ids, ids.fresh(4).reshape(4, 1, 1), -1)), ids.frozen_classes()
        (6, {6: "'conv' works along the axis on which they lie"})
    """
    found = varying(x)
    if found is not None and found != axis % x.ndim:
        ids.freeze(x, f"{ids.path!r} works along the axis on which they lie")
    return ids.along(x, axis, port)


def against(x: Ids, shape: Sequence[int]) -> dict[int, Ids]:
    """Find the channels of a tensor on an array that is broadcast against it from the right.

    Args:
        x: Ids of the tensor.
        shape: Of the array, without a batch axis.

    Returns:
        Axis of the array -> ids along it; empty where the array has one entry for all channels.

    Example:
        >>> x = np.arange(6).reshape(6, 1, 1)
        >>> against(x, (6, 4, 4)), against(x, (4, 4)), against(x, (1, 4, 4))
        ({0: array([0, 1, 2, 3, 4, 5])}, {}, {})
    """
    found = varying(x)
    axis = len(shape) - (1 if found is None else x.ndim - found)
    if axis < 0 or shape[axis] == 1:
        return {}
    return {axis: np.broadcast_to(x.reshape(-1), (shape[axis],))}


def freeze_masks(ids: ChannelIds, masks: Sequence[Ids]) -> None:
    """Freeze the masks that Keras hands to a layer beside its input: they say which steps count, not which channels."""
    for mask in masks:
        ids.freeze(mask, f"{ids.path!r} takes them as a mask")
