"""Which calls an int8 runtime computes in whole numbers, and the reasons against the others."""

from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.fake_quant.bias import ROUNDING
from kpipe.fake_quant.island import Island, MaskedSoftmax
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.graph import Flow, Site, is_block, sites
from kpipe.layers import KERNEL_ROLES, Quantization, quantization_of, weights_within
from kpipe.layers.operations.operands import classes
from kpipe.layers.preprocessing import scale_and_offset

(SOFTMAX,) = classes("nn", "Softmax")
MOST_AXES = 4
"""Batch, height, width, channels."""
LEFT_OUT = "it was left out"
TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose)
"""Layers of which no runtime has an integer kernel that takes weights of fewer bits than 8; LiteRT's applies no
activation either."""

LOOKED_UP = "it looks its weights up and multiplies nothing"
WIDER = "no runtime has an integer kernel for it that takes weights of {} bits"


def refuse_unsupported(flow: Flow, activations: bool = True) -> None:
    """Raise a `KpipeError` at the first site that no int8 file can hold, naming it.

    Args:
        flow: Of the model.
        activations: Whether what flows between layers is rounded.
    """
    for site in flow.sites:
        layer = site.operation
        reason = None
        if isinstance(layer, keras.Layer) and layer.compute_dtype != "float32" and not site.is_input:
            reason = f"it computes in {layer.compute_dtype}; rebuild it with keras.config.set_dtype_policy('float32')"
        elif isinstance(layer, keras.Layer) and layer.quantization_mode is not None:
            reason = f"Keras has quantized it to {layer.quantization_mode}; give the model from before model.quantize()"
        elif getattr(layer, "data_format", None) == "channels_first":
            reason = "its data format is channels_first; the runtimes take channels_last"
        elif activations and isinstance(layer, L.Masking) and layer.mask_value != 0:
            reason = f"it looks for {layer.mask_value}, which need not lie on the grid of what goes in; 0 always does"
        if reason is not None:
            cls = type(layer)
            raise KpipeError(f"Layer {site.path!r} ({cls.__module__}.{cls.__name__}) cannot be quantized: {reason}.")


def kind_of(site: Site) -> Quantization:
    """Say how a call takes part in a quantized graph: as its rule says, or in float where an argument rules it out."""
    if isinstance(site.operation, QuantizedWeights):
        return "weights"
    if isinstance(site.operation, ROUNDING):
        return "output"
    if why_float(site) is not None:
        return "float"
    kind = quantization_of(site.operation)
    return "float" if kind is None else kind


def rounds_weights(site: Site) -> bool:
    """Say whether a call multiplies with weights that are rounded."""
    return kind_of(site) in ("weights", "split") and bool(getattr(site.operation, "weights", ()))


def is_linear(layer: Any) -> bool:
    """Say whether a layer applies no function of its own to what it computes.

    Example:
        >>> is_linear(L.Dense(2)), is_linear(L.Dense(2, "relu")), is_linear(L.Flatten())
        (True, False, True)
    """
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def why_float(site: Site) -> str | None:
    """Say why the runtimes compute a call in float; None when they compute it in whole numbers."""
    layer, shape = site.operation, site.input_shapes[0]
    if site.is_input or isinstance(layer, (*ROUNDING, QuantizedWeights)):
        return None
    if isinstance(layer, Island):
        return LEFT_OUT
    if not _meets_floats(site):
        return None
    if len(shape) > MOST_AXES:
        return f"its input {shape} has {len(shape)} axes; integer kernels take at most {MOST_AXES}, batch included"
    if (reason := _argument(site)) is not None or quantization_of(layer) not in (None, "float"):
        return reason
    how = "; kpipe.functionalize writes it out where it is made of layers" if is_block(layer) else ""
    return f"no integer kernel is known for it{how}"


def _meets_floats(site: Site) -> bool:
    """Say whether a float goes into a call or comes out of it; what makes masks of tokens meets none."""
    tensors = (*site.node.input_tensors, *site.node.outputs)
    return any(keras.backend.is_float_dtype(tensor.dtype) for tensor in tensors)


def reasons_against(flow: Flow, activations: bool = True) -> dict[str, str]:
    """Say what stays in float and why.

    Args:
        flow: Of a model, quantized or not.
        activations: Whether what flows between layers is rounded. Else only layers with kernels count: those whose
            weights stay in float.

    Returns:
        Path of a layer or operation -> the reason.
    """
    why = why_float if activations else _why_spared
    return {site.path: reason for site in flow.sites if (reason := why(site)) is not None}


def _why_spared(site: Site) -> str | None:
    """Say why the weights of a call stay in float where weights alone are rounded; None where they do not."""
    layer = site.operation
    if not isinstance(layer, keras.Layer) or isinstance(layer, QuantizedWeights):
        return None
    if not any(weight.role in (*KERNEL_ROLES, "embedding") for weight in weights_within(layer)):
        return None
    return why_float(site) or (None if rounds_weights(site) else LOOKED_UP)


def rounds_activations(flow: Flow) -> bool:
    """Say whether a quantized model rounds what flows between its layers."""
    return any(isinstance(site.operation, FakeQuant) for site in flow.sites)


def wider_layers(model: keras.Model) -> dict[str, str]:
    """Name the layers of a quantized model whose weights have more bits than its scheme says, for want of a kernel.

    Args:
        model: A model made by `kpipe.quantize`.

    Returns:
        Name of a layer -> the reason.
    """
    flow = sites(model)
    wrapped = [site.operation for site in flow.sites if isinstance(site.operation, QuantizedWeights)]
    least = min((layer.bits for layer in wrapped), default=8)
    meant = [layer for layer in wrapped if rounds_activations(flow) and least < 8 == layer.bits]
    return {layer.name: WIDER.format(least) for layer in meant if isinstance(layer.layer, TRANSPOSED)}


def float_layers(model: keras.Model) -> dict[str, str]:
    """Name what a quantized model computes in float, with the reasons; of one that rounds weights, what it spares.

    Args:
        model: A model made by `kpipe.quantize`, or what `bake` gives of it.

    Returns:
        Name of a layer or operation -> why it has no whole numbers.
    """
    flow = sites(model)
    if rounds_activations(flow):
        found = {site.operation.name: why_float(site) for site in flow.sites}
        return {name: reason for name, reason in found.items() if reason is not None}
    bare = [site for site in flow.sites if not isinstance(site.operation, QuantizedWeights)]
    reasons = {site.operation.name: LEFT_OUT if kind_of(site) == "weights" else _why_spared(site) for site in bare}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def rounded_layers(model: keras.Model) -> set[str] | None:
    """Name the layers of a quantized model that compute in whole numbers, where what bears none of their names may not.

    Files do not bear the names of operations that are no layers.

    Returns:
        The names; None when all operations compute in whole numbers too.
    """
    flow = sites(model)
    outside = [site for site in flow.sites if not isinstance(site.operation, keras.Layer)]
    if all(why_float(site) is None for site in outside):
        return None
    layers = (site for site in flow.sites if isinstance(site.operation, keras.Layer))
    return {site.operation.name for site in layers if why_float(site) is None}


def _argument(site: Site) -> str | None:
    """Say which argument of a layer that is known in principle has no integer kernel."""
    layer: Any = site.operation
    shape = site.input_shapes[0]
    last = len(shape) - 1
    if isinstance(layer, L.Activation) and quantization_of(layer) == "float":
        return f"the runtimes compute {getattr(layer.activation, '__name__', layer.activation)!r} in float"
    if isinstance(layer, (L.MultiHeadAttention, L.GroupQueryAttention)) and (_gives_scores(site) or len(shape) != 3):
        return "it gives its scores out, or has more than one axis of places"
    if isinstance(layer, L.BatchNormalization) and (layer.axis % len(shape) != last or None in shape[1:]):
        return f"it normalises axis {layer.axis} of {shape}; only the last axis of a fixed shape can be folded"
    if isinstance(layer, (L.Rescaling, L.Normalization)):
        return _rescaling(layer, shape)
    if isinstance(layer, MaskedSoftmax) or (isinstance(layer, (L.Softmax, L.GlobalAveragePooling1D)) and _masked(site)):
        return "it takes a mask"
    if isinstance(layer, (L.Softmax, SOFTMAX)):
        if layer.axis not in (-1, last):
            return f"its axis is {layer.axis}; integer kernels sum over the last axis only"
    if isinstance(layer, L.ReLU) and quantization_of(layer) == "float":
        return "integer kernels know no threshold, and no greatest value together with a slope"
    return None


def _masked(site: Site) -> bool:
    """Say whether a call that takes one tensor is given a mask: as another one, or as a constant."""
    return len(site.inputs) > 1 or (site.node.arguments.kwargs or {}).get("mask") is not None


def _gives_scores(site: Site) -> bool:
    return len(site.outputs) > 1


def _rescaling(layer: Any, shape: tuple[int | None, ...]) -> str | None:
    """Say why a rescaling is no multiplication and addition for each channel of a fixed shape."""
    sizes = {np.shape(end) for end in scale_and_offset(layer)}
    if None in shape[1:]:
        return f"its input {shape} has an open size; give the model a fixed input shape"
    if not sizes <= {(), (1,), shape[-1:]}:
        return f"it has arrays of the shapes {sorted(sizes)}; numbers, or one for each channel, can be folded"
    return None
