"""Rules of layers that lay the same values out anew: the same operation is applied to the ids."""

import numpy as np
from keras import layers as L

from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule, rule


@rule(L.Flatten, quantization="same")
def flatten(layer: L.Flatten, ids: ChannelIds, x: Ids) -> Rule:
    """(h, w, c) -> (h * w * c,); a channels-first input is laid out channels-last before."""
    full = ids.whole(x)
    if layer.data_format == "channels_first" and full.ndim > 1:
        full = np.moveaxis(full, 0, -1)
    return Rule(full.reshape(-1))


@rule(L.Reshape, quantization="same")
def reshape(layer: L.Reshape, ids: ChannelIds, x: Ids) -> Rule:
    """Reshape the ids alike; where several axes vary, channels along the last of them stay prunable."""
    out = ids.settle(ids.whole(x).reshape(ids.output_shapes[0]))
    return Rule(out, config={"target_shape": ids.sizes(out, layer.target_shape)})


@rule(L.Permute, quantization="same")
def permute(layer: L.Permute, ids: ChannelIds, x: Ids) -> Rule:
    """Permute the axes of the ids alike."""
    return Rule(x.transpose([axis - 1 for axis in layer.dims]))
