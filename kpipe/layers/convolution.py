"""Rules of convolutions, pooling, and what else works on maps."""

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.activation import activate
from kpipe.layers.axes import channels_on, freeze_masks, positions
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import Layout
from kpipe.layers.rule import Quantization, Rule, register_weights, rule


def channel_axis(layer: keras.Layer) -> int:
    """Give the channel axis of a layer's maps, batch axis left out."""
    return 0 if layer.data_format == "channels_first" else -1


def _convolution_quantization(layer: keras.Layer) -> Quantization:
    return "float" if isinstance(layer, (L.Conv3D, L.Conv3DTranspose)) else "weights"


@rule(L.Conv1D, L.Conv2D, L.Conv3D, roles={"kernel": "kernel", "bias": "bias"}, quantization=_convolution_quantization)
def convolution(layer: L.Conv2D, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel (*size, in / groups, filters).

    With groups the same place is removed from every group; with as many groups as channels it is a depthwise
    convolution in disguise: its outputs follow its inputs, and `groups` shrinks with them.
    """
    axis = channel_axis(layer)
    x = channels_on(ids, x, axis)
    config = {}
    if layer.groups == len(x) > 1:
        out = np.repeat(x, layer.filters // layer.groups)
        kernel, config["groups"] = {-1: out}, x
    else:
        out = ids.fresh(layer.filters)
        kernel = {-2: ids.tie_blocks(x, layer.groups), -1: out}
        ids.tie_blocks(out, layer.groups)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, axis),
        axes={"kernel": kernel, "bias": {0: out}},
        config={"filters": out, **config},
        reuse=positions(ids.output_shapes[0], axis),
    )


TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)

register_weights(
    *TRANSPOSED,
    roles={"kernel": "kernel", "bias": "bias"},
    layouts={"kernel": Layout(inputs=(-1,), outputs=(-2,))},
)


@rule(*TRANSPOSED, quantization=_convolution_quantization)
def transposed_convolution(layer: L.Conv2DTranspose, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel (*size, filters, in); each of its entries is used once for every place of the input."""
    axis = channel_axis(layer)
    x, out = channels_on(ids, x, axis), ids.fresh(layer.filters)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, axis),
        axes={"kernel": {-2: out, -1: x}, "bias": {0: out}},
        config={"filters": out},
        reuse=positions(ids.input_shapes[0], axis),
    )


@rule(
    L.DepthwiseConv1D,
    L.DepthwiseConv2D,
    roles={"kernel": "depthwise_kernel", "bias": "bias"},
    quantization=_convolution_quantization,
)
def depthwise_convolution(layer: L.DepthwiseConv2D, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel (*size, in, multiplier): input i becomes outputs i * multiplier to (i + 1) * multiplier - 1."""
    axis = channel_axis(layer)
    x = channels_on(ids, x, axis)
    out = np.repeat(x, layer.depth_multiplier)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, axis),
        axes={"kernel": {-2: x}, "bias": {0: out}},
        reuse=positions(ids.output_shapes[0], axis),
    )


@rule(
    L.SeparableConv1D,
    L.SeparableConv2D,
    roles={"depthwise_kernel": "depthwise_kernel", "pointwise_kernel": "kernel", "bias": "bias"},
    quantization="split",
)
def separable_convolution(layer: L.SeparableConv2D, ids: ChannelIds, x: Ids) -> Rule:
    """Kernels (*size, in, multiplier) and (1.., in * multiplier, filters)."""
    axis = channel_axis(layer)
    x, out = channels_on(ids, x, axis), ids.fresh(layer.filters)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, axis),
        axes={
            "depthwise_kernel": {-2: x},
            "pointwise_kernel": {-2: np.repeat(x, layer.depth_multiplier), -1: out},
            "bias": {0: out},
        },
        config={"filters": out},
        reuse=positions(ids.output_shapes[0], axis),
    )


def _map(layer: keras.Layer, ids: ChannelIds, x: Ids) -> Rule:
    """Places are moved, merged or added; channels pass."""
    axis = channel_axis(layer)
    return Rule(ids.spread(channels_on(ids, x, axis), axis))


def _sequence(layer: keras.Layer, ids: ChannelIds, x: Ids) -> Rule:
    """Steps of a sequence (steps, channels) are moved or added; channels pass."""
    return Rule(ids.spread(channels_on(ids, x, -1), -1))


def _interpolation(layer: keras.Layer) -> Quantization:
    if getattr(layer, "crop_to_aspect_ratio", False) or getattr(layer, "pad_to_aspect_ratio", False):
        return "float"
    return "same" if layer.interpolation == "nearest" else "output" if layer.interpolation == "bilinear" else "float"


rule(L.MaxPooling1D, L.MaxPooling2D, quantization="same")(_map)
rule(L.AveragePooling1D, L.AveragePooling2D, quantization="output")(_map)
rule(L.ZeroPadding2D, L.Cropping2D, quantization="same")(_map)
rule(L.UpSampling2D, L.Resizing, quantization=_interpolation)(_map)
rule(L.MaxPooling3D, L.AveragePooling3D, quantization="float")(_map)
rule(L.ZeroPadding3D, L.Cropping3D, L.UpSampling3D, quantization="float")(_map)
rule(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D)(_map)
rule(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D)(_map)
rule(L.CenterCrop)(_map)
rule(L.ZeroPadding1D, L.Cropping1D, L.UpSampling1D, quantization="same")(_sequence)


@rule(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, quantization="same")
@rule(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, quantization="output")
@rule(L.GlobalMaxPooling3D, L.GlobalAveragePooling3D, quantization="float")
def global_pooling(layer: L.GlobalAveragePooling2D, ids: ChannelIds, x: Ids, *masks: Ids) -> Rule:
    """Places are merged, with or without `keepdims`; channels pass."""
    freeze_masks(ids, masks)
    axis = channel_axis(layer)
    return Rule(ids.spread(channels_on(ids, x, axis), axis if layer.keepdims else 0))
