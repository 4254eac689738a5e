"""Rules of layers that lay the same values out anew: the same operation is applied to the ids."""

import numpy as np
from keras import layers as L

from kpipe.layers.axes import channels_on, varying
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
    """Reshape the ids alike; where several axes vary, channels along the last of them stay prunable.

    Sizes may be open where the last axis, with the channels on it, comes out as it went in.
    """
    shape = ids.output_shapes[0]
    if x.size == 1:
        out = x.reshape((1,) * len(shape))
    elif varying(x) == x.ndim - 1 and shape[-1:] == (x.shape[-1],):
        out = ids.spread(x.reshape(-1), -1)
    else:
        out = ids.settle(ids.whole(x).reshape(shape))
    return Rule(out, config={"target_shape": ids.sizes(out, layer.target_shape)})


@rule(L.Permute, quantization="same")
def permute(layer: L.Permute, ids: ChannelIds, x: Ids) -> Rule:
    """Permute the axes of the ids alike."""
    return Rule(x.transpose([axis - 1 for axis in layer.dims]))


@rule(L.RepeatVector, quantization="same")
def repeat_vector(layer: L.RepeatVector, ids: ChannelIds, x: Ids) -> Rule:
    """(channels,) -> (n, channels)."""
    return Rule(ids.spread(channels_on(ids, x, -1), -1))
