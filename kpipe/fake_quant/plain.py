"""Layers as files are written from them: kernels on their grids, batch norms folded."""

from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.fake_quant.affine import HALF, channel_axes, on_grid
from kpipe.fake_quant.fold import fold, multiplier_and_offset, uneven
from kpipe.fake_quant.island import Island
from kpipe.fake_quant.layers import QuantizedWeights
from kpipe.layers import KERNEL_ROLES, weights


def plain_layer(
    layer: Any,
    norm: L.BatchNormalization | None,
    input_shape: tuple[int | None, ...],
    bias_rounding: np.ndarray | float = 0.0,
) -> keras.Layer:
    """Give a layer as it is written: a batch norm folded in; its kernel on the grid, or between negations if left out.

    Args:
        layer: A `QuantizedWeights`, or an `Island` of a layer that was left out.
        norm: The batch norm behind it; None without one.
        input_shape: With the batch axis.
        bias_rounding: What is added to the bias, numbers or one for each channel.
    """
    rounded, inner = isinstance(layer, QuantizedWeights), layer.layer
    (kernel,) = (weight for weight in weights(inner) if weight.role in KERNEL_ROLES)
    axes = channel_axes(kernel.layout, len(kernel.variable.shape))
    value = np.asarray(kernel.variable)
    if rounded:  # by the layer itself, which settles what lies between two levels, and then exactly
        value = on_grid(np.asarray(layer.rounded(kernel)), axes, layer.bits)
    bias = None if inner.bias is None else np.asarray(inner.bias)
    if norm is not None:
        value, bias = fold(value, bias, *multiplier_and_offset(norm), axes)
        value = on_grid(value, axes, HALF) if rounded and layer.bits == HALF else value
    bias = None if bias is None else bias + bias_rounding
    name = layer.name if norm is None else f"{layer.name}_{norm.name}"
    if rounded:
        return _with(inner, name, value, bias, input_shape)
    takes_negated = isinstance(inner, L.EinsumDense)  # or it loses the dequantization before it in the file
    negated = _with(
        inner, name, value if takes_negated else -value, None if bias is None else -bias, input_shape, activation=None
    )
    return Island(negated, negate_input=takes_negated, negate_output=True, activation=inner.activation, name=layer.name)


def _with(
    layer: Any, name: str, kernel: np.ndarray, bias: np.ndarray | None, input_shape: Any, **changes: Any
) -> keras.Layer:
    """Make a layer like another one, with these weights, and what is changed in its configuration."""
    config = {**layer.get_config(), "name": name, **changes}
    if "use_bias" in config:
        config["use_bias"] = bias is not None
    elif bias is not None and config["bias_axes"] is None:
        config["bias_axes"] = layer.equation[-1]
    copy = type(layer).from_config(config)
    copy.build(input_shape)
    copy.set_weights([kernel] if bias is None else [kernel, uneven(bias)])
    return copy
