"""Rules of the layers that models of `keras.applications` bring along."""

import sys
from typing import Any

from keras import applications

from kpipe.layers import merge
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule, rule


def named_layer(function: Any, name: str) -> type:
    """Find a layer class beside the function that builds models with it: Keras gives it no public name."""
    return vars(sys.modules[function.__module__])[name]


rule(named_layer(applications.InceptionResNetV2, "CustomScaleLayer"))(merge.elementwise_merge)


@rule(named_layer(applications.ConvNeXtTiny, "LayerScale"), roles={"gamma": "gamma"})
def layer_scale(layer: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Multiply each channel by a factor of its own, gamma (channels,)."""
    channels = ids.along(x, -1)
    return Rule(ids.spread(channels, -1), axes={"gamma": {0: channels}}, config={"projection_dim": channels})


@rule(named_layer(applications.ConvNeXtTiny, "StochasticDepth"))
def stochastic_depth(layer: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Whole samples are left out while training: channels pass."""
    return Rule(x)
