"""Rules of dense layers, norms, and layers that treat each value or each channel alone."""

import math

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.activation import FUSED, activate
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import Layout
from kpipe.layers.rule import Quantization, Role, Rule, register_weights, rule


def positions(shape: tuple, axis: int) -> int | None:
    """Count the places of an output (batch axis left out) along all axes but the channel axis; None if one is open."""
    others = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    return None if None in others else math.prod(others)


@rule(L.InputLayer, quantization="same")
def input_layer(layer: L.InputLayer, ids: ChannelIds, *x: Ids) -> Rule:
    """Freeze a model's own input; inside a nested model, take the ids of what it is fed with."""
    if not x:
        return Rule(ids.constant("it is an input of the model"))
    return Rule(x[0], config={"batch_shape": (layer.batch_shape[0], *ids.sizes(x[0], ids.output_shapes[0]))})


@rule(L.Dense, roles={"kernel": "kernel", "bias": "bias"}, quantization="weights")
def dense(layer: L.Dense, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel (in, units); on inputs of rank > 2 it acts on the last axis."""
    taken, out = ids.along(x, -1), ids.fresh(layer.units)
    activate(ids, out, layer.activation)
    return Rule(
        ids.spread(out, -1),
        axes={"kernel": {0: taken, 1: out}, "bias": {0: out}},
        config={"units": out},
        reuse=positions(ids.output_shapes[0], -1),
    )


def einsum_layout(equation: str) -> Layout:
    """Say which axes of an einsum's second operand are summed over and which it brings into the output.

    An axis that stands in both operands and in the output, such as that of heads which each have a matrix of their
    own, is a position.

    Example:
        >>> einsum_layout("...d,dhk->...hk"), einsum_layout("bhd,hde->bhe")
        (Layout(inputs=(0,), outputs=(1, 2)), Layout(inputs=(1,), outputs=(2,)))
    """
    operands, output = equation.split("->")
    given, kernel = operands.split(",")
    return Layout(
        inputs=tuple(axis for axis, letter in enumerate(kernel) if letter not in output),
        outputs=tuple(axis for axis, letter in enumerate(kernel) if letter not in given),
    )


register_weights(
    L.EinsumDense,
    roles={"kernel": "kernel", "bias": "bias"},
    layouts=lambda layer: {"kernel": einsum_layout(layer.equation)},
)
register_weights(L.Embedding, roles={"embeddings": "embedding"})
register_weights(L.ReversibleEmbedding, roles={"embeddings": "embedding", "reverse_embeddings": "kernel"})


BATCH_NORMALIZATION: dict[str, Role] = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "statistic",
    "moving_variance": "statistic",
    "moving_stddev": "statistic",  # this and what follows are there with `renorm` only
    "renorm_mean": "statistic",
    "renorm_stddev": "statistic",
}


@rule(L.BatchNormalization, roles=BATCH_NORMALIZATION, quantization="normalise")
def batch_normalization(layer: L.BatchNormalization, ids: ChannelIds, x: Ids) -> Rule:
    """Vectors along `axis`; channels pass through."""
    axis = layer.axis - 1 if layer.axis > 0 else layer.axis  # the ids have no batch axis
    channels = ids.along(x, axis)
    return Rule(ids.spread(channels, axis), axes={name: {0: channels} for name in BATCH_NORMALIZATION})


register_weights(L.LayerNormalization, L.GroupNormalization, roles={"gamma": "gamma", "beta": "beta"})
register_weights(L.RMSNormalization, roles={"scale": "gamma"})
register_weights(L.SpectralNormalization, roles={"vector_u": "statistic"})
register_weights(
    L.Normalization, roles={"adapt_mean": "statistic", "adapt_variance": "statistic", "count": "statistic"}
)
register_weights(L.STFTSpectrogram, roles={"real_kernel": "statistic", "imag_kernel": "statistic"})
register_weights(L.PReLU, roles={"alpha": "gamma"})


def _activation_quantization(layer: keras.Layer) -> Quantization:
    return "fused" if layer.activation in FUSED else "output"


def _relu_quantization(layer: L.ReLU) -> Quantization:
    plain = layer.negative_slope == 0 and layer.threshold == 0 and layer.max_value in (None, 6.0)
    return "fused" if plain else "output"


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
rule(L.LeakyReLU, L.ELU, quantization="output")(_pass)
rule(L.ReLU, quantization=_relu_quantization)(_pass)


@rule(L.Rescaling, quantization="output")
def rescaling(layer: L.Rescaling, ids: ChannelIds, x: Ids) -> Rule:
    """Pass the ids where one scale and offset serve all; those of their own for each channel freeze them."""
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        ids.freeze(x, f"{ids.path!r} has a scale or an offset for each channel")
    return Rule(x)


@rule(L.Activation, quantization=_activation_quantization)
def activation(layer: L.Activation, ids: ChannelIds, x: Ids) -> Rule:
    """Pass the ids; a function that mixes channels freezes them."""
    activate(ids, x, layer.activation)
    return Rule(x)


@rule(L.Softmax, quantization="output")
def softmax(layer: L.Softmax, ids: ChannelIds, x: Ids) -> Rule:
    """Freeze the channels it sums over; over another axis they pass."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if any(x.shape[axis - 1 if axis > 0 else axis] > 1 for axis in axes) or x.size == 1:
        ids.freeze(x, f"the softmax {ids.path!r} sums over them")
    return Rule(x)
