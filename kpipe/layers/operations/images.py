"""Rules of operations on maps: pooling, resizing, padding, pixels moved into channels."""

from typing import Any

import keras
import numpy as np

from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.operations.operands import across_batch, classes, frozen
from kpipe.layers.rule import Rule, rule

POOLING = classes("nn", "AveragePool MaxPool")
RESIZING = classes("image", "CropImages PadImages Resize")


def _channel_axis(operation: Any, x: Ids) -> int:
    form = operation.data_format or keras.config.image_data_format()
    return 0 if form == "channels_first" else x.ndim - 1


@rule(*POOLING, *RESIZING)
def on_maps(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Places are moved, merged or added; channels pass."""
    if x.ndim < 3 and type(operation) not in POOLING:
        return across_batch(ids, [x], "takes a single image, not a batch")
    if varying(x) not in (None, _channel_axis(operation, x)):
        return frozen(ids, [x], "takes a map whose channels lie on another axis")
    return Rule(x)


@rule(*classes("nn", "DepthToSpace"))
def depth_to_space(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Lay size² blocks of channels out as places: a channel of the output is the same place of every block."""
    axis = _channel_axis(operation, x)
    return Rule(ids.spread(ids.tie_blocks(ids.along(x, axis), operation.block_size**2), axis))


@rule(*classes("nn", "SpaceToDepth"))
def space_to_depth(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Lay places out as size² blocks of channels."""
    axis = _channel_axis(operation, x)
    return Rule(ids.spread(np.tile(ids.along(x, axis), operation.block_size**2), axis))
