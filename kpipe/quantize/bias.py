"""Bias correction: what rounding adds to the mean of each output channel is taken off again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.fake_quant import why_float
from kpipe.fake_quant.bake import foldable
from kpipe.graph import Flow, Site
from kpipe.quantize.side_by_side import Pair, side_by_side


def correct_biases(model: keras.Model, inputs: Sequence[np.ndarray]) -> keras.Model:
    """Shift the biases of a quantized model so that each layer's mean outputs are those of the float model.

    Layer by layer, b ← b + E[y] - E[y'] for each channel, before the activation, where y' is computed from rounded
    inputs with rounded weights, by layers before it that are corrected. Where a batch norm follows a layer, its mean is
    shifted the other way. A layer that has neither bias nor batch norm stays as it is; of one that is called several
    times, the first call counts.

    Args:
        model: A model with calibrated ranges; its biases are set in place.
        inputs: One array for each input, (samples, ...); no labels are used.

    Returns:
        The model.

    References:
        Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, appendix D.
    """
    side_by_side(model, inputs, shift_bias)
    return model


def shift_bias(flow: Flow, site: Site, given: Pair, exact_kernel: Any = None) -> None:
    """Correct the bias of one layer.

    Args:
        flow: The calls of the model.
        site: That of the layer.
        given: What goes into it.
        exact_kernel: Its kernel in the float model; None where it is as it was.
    """
    wrapper: Any = site.operation
    layer, variable = wrapper.layer, shifted(flow, site)
    if variable is None:
        return
    (kernel,) = (weight.variable for weight in wrapper.kernels())
    with linear(layer):
        value = kernel.value if exact_kernel is None else exact_kernel
        with keras.StatelessScope(state_mapping=[(kernel, tf.convert_to_tensor(value))]):
            exact = layer(given.exact)
        rounded = wrapper(given.rounded)
    shift = tf.reduce_mean(exact - rounded, list(range(len(exact.shape) - len(variable.shape))))
    broadcast = [axis for axis, size in enumerate(variable.shape) if size == 1]
    shift = tf.reduce_mean(shift, broadcast, keepdims=True)
    variable.assign(variable + shift if variable is getattr(layer, "bias", None) else variable - shift)


def shifted(flow: Flow, site: Site) -> Any | None:
    """Give what holds a layer's offset: the mean of the batch norm behind it, else its bias; None without either."""
    norm, layer = foldable(flow, site), site.operation.layer
    if norm is not None and why_float(norm) is None:
        return norm.operation.moving_mean
    return getattr(layer, "bias", None)


@contextmanager
def linear(layer: Any) -> Iterator[None]:
    """Let a layer answer before its activation."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        yield
        return
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation
