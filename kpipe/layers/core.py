"""Rules of dense layers, and of layers that treat each value or each channel alone."""

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.activation import FUSED, INTEGER, WRITTEN, activate
from kpipe.layers.axes import against, channels_on, freeze_masks, positions, varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Quantization, Rule, rule


@rule(L.InputLayer, quantization="same")
def input_layer(layer: L.InputLayer, ids: ChannelIds, *x: Ids) -> Rule:
    """Freeze a model's own input; inside a nested model, take the ids of what it is fed with."""
    if not x:
        return Rule(ids.constant("it is an input of the model"))
    return Rule(x[0], config={"batch_shape": (layer.batch_shape[0], *ids.sizes(x[0], ids.output_shapes[0]))})


@rule(L.Dense, roles={"kernel": "kernel", "bias": "bias"}, quantization="weights")
def dense(layer: L.Dense, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel (in, units); on inputs of rank > 2 it acts on the last axis."""
    taken, out = channels_on(ids, x, -1), ids.fresh(layer.units)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, -1),
        axes={"kernel": {0: taken, 1: out}, "bias": {0: out}},
        config={"units": out},
        reuse=positions(ids.output_shapes[0], -1),
    )


def _activation_quantization(layer: keras.Layer) -> Quantization:
    if layer.activation in WRITTEN:
        return "split"
    return "fused" if layer.activation in FUSED else "output" if layer.activation in INTEGER else "float"


def _relu_quantization(layer: L.ReLU) -> Quantization:
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return "float"
    return "output" if layer.negative_slope else "fused"


def _pass(layer: keras.Layer, ids: ChannelIds, x: Ids) -> Rule:
    """Every value is treated alone: the ids pass unchanged."""
    return Rule(x)


rule(
    L.Dropout,
    L.SpatialDropout1D,
    L.SpatialDropout2D,
    L.SpatialDropout3D,
    L.GaussianDropout,
    L.AlphaDropout,
    L.GaussianNoise,
    L.ActivityRegularization,
    L.Identity,
    quantization="same",
)(_pass)
rule(L.LeakyReLU, quantization="output")(_pass)
rule(L.ELU, quantization="float")(_pass)
rule(L.ReLU, quantization=_relu_quantization)(_pass)


@rule(L.Activation, quantization=_activation_quantization)
def activation(layer: L.Activation, ids: ChannelIds, x: Ids) -> Rule:
    """Pass the ids; a function that mixes channels freezes them."""
    activate(ids, x, layer.activation)
    return Rule(x)


@rule(L.Softmax, quantization="output")
def softmax(layer: L.Softmax, ids: ChannelIds, x: Ids, *masks: Ids) -> Rule:
    """Freeze the channels it sums over, or that a mask is laid on; over another axis they pass."""
    freeze_masks(ids, masks)
    if masks:
        ids.freeze(x, f"the softmax {ids.path!r} takes a mask")
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if any(varying(x) in (None, axis % (x.ndim + 1) - 1) for axis in axes):
        ids.freeze(x, f"the softmax {ids.path!r} sums over them")
    return Rule(x)


@rule(L.PReLU, roles={"alpha": "gamma"}, quantization="output")
def parametric_relu(layer: L.PReLU, ids: ChannelIds, x: Ids) -> Rule:
    """Alpha has the shape of one sample, with size 1 along each of `shared_axes`."""
    return Rule(x, axes={"alpha": against(x, layer.alpha.shape)})


@rule(L.Masking)
def masking(layer: L.Masking, ids: ChannelIds, x: Ids) -> Rule:
    """A step is masked where none of the values on the last axis differs from one: channels there stay."""
    if varying(x) == x.ndim - 1 or np.ndim(layer.mask_value):
        ids.freeze(x, f"{ids.path!r} looks at all of them to mask a step")
    return Rule(x)
