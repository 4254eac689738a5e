"""Which layers an int8 runtime computes in whole numbers, and the reasons against the others."""

from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.graph import Flow, Site
from kpipe.layers import quantization_of

ACTIVATIONS = frozenset(
    getattr(keras.activations, name)
    for name in "linear relu relu6 leaky_relu silu hard_silu sigmoid tanh hard_tanh softmax exponential".split()
)
"""Activation functions that stay in whole numbers in LiteRT; all others fall back to float there."""
MOST_AXES = 4
"""Batch, height, width, channels."""


def refuse_unsupported(flow: Flow) -> None:
    """Raise a `KpipeError` at the first site that no int8 file can hold, naming it."""
    for site in flow.sites:
        reason = unsupported(site)
        if reason is not None:
            cls = type(site.operation)
            raise KpipeError(f"Layer {site.path!r} ({cls.__module__}.{cls.__name__}) cannot be quantized: {reason}.")


def unsupported(site: Site) -> str | None:
    """Say why a site cannot be quantized; None when it can."""
    layer, shape = site.operation, site.input_shapes[0]
    if site.is_input:
        return None if layer.dtype == "float32" else f"its type is {layer.dtype}; only float32 inputs can be rounded"
    if quantization_of(layer) is None:
        return "it has no integer kernel that kpipe knows; `kpipe ls layers` says which layers have one"
    if layer.compute_dtype != "float32":
        return f"it computes in {layer.compute_dtype}; rebuild it with keras.config.set_dtype_policy('float32')"
    if getattr(layer, "data_format", None) == "channels_first":
        return "its data format is channels_first; the runtimes take channels_last"
    if len(shape) > MOST_AXES:
        return f"its input {shape} has {len(shape)} axes; integer kernels take at most {MOST_AXES}, batch included"
    return _unsupported_argument(layer, shape)


def _unsupported_argument(layer: Any, shape: tuple[int | None, ...]) -> str | None:
    """Say which argument of a layer that is known in principle has no integer kernel."""
    last = len(shape) - 1
    activation = getattr(layer, "activation", None)
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(sorted(function.__name__ for function in ACTIVATIONS))
        return (
            f"the runtimes compute its activation {getattr(activation, '__name__', activation)!r} in float; use {known}"
        )
    if isinstance(layer, L.BatchNormalization) and (layer.axis % len(shape) != last or None in shape[1:]):
        return (
            f"it normalises axis {layer.axis} of the shape {shape}; only the last axis of a fixed shape can be folded"
        )
    if isinstance(layer, L.Rescaling):
        return _unsupported_rescaling(layer, shape)
    if isinstance(layer, L.Softmax) and layer.axis not in (-1, last):
        return f"its axis is {layer.axis}; integer kernels sum over the last axis only"
    if isinstance(layer, L.ELU):
        return "the runtimes compute it in float; use ReLU or LeakyReLU"
    if isinstance(layer, L.ReLU) and (layer.threshold or (layer.negative_slope and layer.max_value is not None)):
        return "integer kernels know no threshold, and no greatest value together with a slope"
    if isinstance(layer, L.UpSampling2D) and layer.interpolation != "nearest":
        return f"its interpolation is {layer.interpolation!r}, which the integer kernels round otherwise; use 'nearest'"
    return None


def _unsupported_rescaling(layer: Any, shape: tuple[int | None, ...]) -> str | None:
    """Say why a rescaling is no multiplication and addition for each channel of a fixed shape."""
    sizes = {np.shape(end) for end in (layer.scale, layer.offset)}
    if None in shape[1:]:
        return f"its input {shape} has an open size; give the model a fixed input shape"
    if len(shape) < 2 or not sizes <= {(), (1,), shape[-1:]}:
        return f"its scale and offset have the shapes {sorted(sizes)}; expected numbers, or one for each channel"
    return None
