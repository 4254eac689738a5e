"""A float graph written anew with fake quantization: one range behind each group that the runtimes fuse."""

from typing import Any

import keras
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.fake_quant import FakeQuant, QuantizedWeights
from kpipe.graph import Flow, Site, replay, sites
from kpipe.layers import RULES, quantization_of
from kpipe.quantize.split import split, unique

FIXED_RANGES = {
    keras.activations.softmax: (0.0, 255 / 256),
    keras.activations.sigmoid: (0.0, 255 / 256),
    keras.activations.tanh: (-1.0, 127 / 128),
}
"""Ranges that both runtimes expect behind these functions: steps of 1/256 and 1/128."""


def rewrite(model: keras.Model, momentum: float = 0.99) -> keras.Model:
    """Put fake quantization into a model; ranges are not calibrated yet.

    A range follows the inputs and each group that a runtime computes at once: a convolution or dense layer with its
    batch norm and ReLU, an addition with its ReLU, any other layer that makes new values. None follows layers that
    only move values.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        momentum: Of the ranges' moving averages in training, in [0, 1].

    Returns:
        A Functional model with the same inputs, output structure and weights; zeros of its kernels are held.

    Raises:
        SurgeryError: When the model's graph cannot be read.
        KpipeError: When a layer cannot be quantized, naming it.
    """
    refuse_unsupported(sites(model))
    plain = split(model)
    flow = sites(plain)
    taken = {site.path for site in flow.sites}
    wrappers: dict[int, QuantizedWeights] = {}

    def ranged(layer: Any, x: Any) -> Any:
        name = unique(f"{layer.name}_range", taken)
        return FakeQuant(momentum=momentum, fixed=fixed_range(layer), name=name)(x)

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        layer, kind = site.operation, quantization_of(site.operation)
        if kind == "weights" and id(layer) not in wrappers:
            wrappers[id(layer)] = QuantizedWeights(layer, name=layer.name)
        y = wrappers.get(id(layer), layer)(*args, **kwargs)
        return y if kind == "same" or fused_onward(flow, site) else ranged(layer, y)

    quantized = replay(plain, call, on_input=lambda site, x: ranged(site.operation, x), name=model.name)
    for wrapper in wrappers.values():
        wrapper.hold_zeros()
    return quantized


def fixed_range(layer: Any) -> tuple[float, float] | None:
    """Give the range that a layer's output has whatever the data, if the runtimes fix it."""
    if isinstance(layer, L.Softmax):
        return FIXED_RANGES[keras.activations.softmax]
    return FIXED_RANGES.get(layer.activation) if isinstance(layer, L.Activation) else None


def fused_onward(flow: Flow, site: Site) -> bool:
    """Say whether the runtimes compute this site at once with the only one that follows it."""
    consumers = flow.consumers(site)
    if len(consumers) != 1 or flow.is_output(site):
        return False
    kind, following = quantization_of(site.operation), quantization_of(consumers[0].operation)
    if kind == "weights":
        return site.operation.activation is keras.activations.linear and following in ("normalise", "fused")
    return following == "fused" and (kind == "normalise" or isinstance(site.operation, L.Add))


def refuse_unsupported(flow: Flow) -> None:
    """Raise a `KpipeError` at the first site that no int8 file can hold."""
    for site in flow.sites:
        reason = unsupported(site)
        if reason is not None:
            cls = type(site.operation)
            raise KpipeError(f"Layer {site.path!r} ({cls.__module__}.{cls.__name__}) cannot be quantized: {reason}.")


def unsupported(site: Site) -> str | None:
    """Say why a site cannot be quantized; None when it can."""
    layer, kind, shape = site.operation, quantization_of(site.operation), site.input_shapes[0]
    if site.is_input:
        return None if layer.dtype == "float32" else f"its type is {layer.dtype}; only float32 inputs can be rounded"
    if kind is None:
        known = ", ".join(sorted(cls.__name__ for cls in RULES if RULES[cls].quantization is not None))
        return f"kpipe can round {known}; write this part of the model with these"
    if layer.compute_dtype != "float32":
        return f"it computes in {layer.compute_dtype}; rebuild it with keras.config.set_dtype_policy('float32')"
    if getattr(layer, "data_format", None) == "channels_first":
        return "its data format is channels_first; the runtimes take channels_last"
    if kind == "normalise" and (layer.axis % len(shape) != len(shape) - 1 or None in shape[1:]):
        return (
            f"it normalises axis {layer.axis} of the shape {shape}; only the last axis of a fixed shape can be folded"
        )
    return None
