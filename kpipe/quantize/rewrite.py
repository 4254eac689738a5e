"""A float graph written anew with fake quantization: one range behind each group that the runtimes fuse."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L

from kpipe.fake_quant import AVERAGE, COPYING, FakeQuant, QuantizedWeights, whole_windows
from kpipe.graph import Flow, Site, replay, sites
from kpipe.layers import quantization_of
from kpipe.quantize.split import split, unique
from kpipe.quantize.support import refuse_unsupported

FIXED_RANGES = {
    keras.activations.softmax: (0.0, 255 / 256),
    keras.activations.sigmoid: (0.0, 255 / 256),
    keras.activations.tanh: (-1.0, 127 / 128),
}
"""Ranges that both runtimes expect behind these functions: steps of 1/256 and 1/128."""


def rewrite(model: keras.Model, momentum: float = 0.99) -> keras.Model:
    """Put fake quantization into a model; ranges are not calibrated yet.

    A range follows the inputs and each group that a runtime computes at once: a convolution or dense layer with its
    batch norm and ReLU, an addition with its ReLU, any other layer that makes new values. None follows layers that only
    move values, nor values that only go into a concatenation or comparison: those are rounded behind it, to its grid.

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
    rewriter = _Rewriter(sites(plain), momentum)
    quantized = replay(plain, rewriter, on_input=rewriter.on_input, name=model.name)
    for wrapper in rewriter.wrappers.values():
        wrapper.hold_zeros()
    return quantized


class _Rewriter:
    """Say for each site of a split model what stands there in the quantized one."""

    def __init__(self, flow: Flow, momentum: float):
        self.flow, self.momentum = flow, momentum
        self.taken = {site.path for site in flow.sites}
        self.wrappers: dict[int, QuantizedWeights] = {}

    def on_input(self, site: Site, x: Any) -> Any:
        """Put a range behind an input."""
        return self.range_behind(site.operation)(x)

    def __call__(self, site: Site, *args: Any, **kwargs: Any) -> Any:
        """Give the output of a site, rounded where the runtimes round it."""
        layer, kind = site.operation, quantization_of(site.operation)
        if isinstance(layer, AVERAGE) and not whole_windows(layer, site.input_shapes[0]):
            return range_before(args[0])(layer(*args, **kwargs), observe=False)
        if kind == "weights" and id(layer) not in self.wrappers:
            self.wrappers[id(layer)] = QuantizedWeights(layer, name=layer.name)
        called: Any = self.wrappers.get(id(layer), layer)
        y = called(*args, **kwargs)
        if kind == "same" or fused_onward(self.flow, site) or copied_onward(self.flow, site):
            return y
        return self.range_behind(layer)(y)

    def range_behind(self, layer: Any) -> Callable[..., Any]:
        """Make a range named after a layer."""
        name = unique(f"{layer.name}_range", self.taken)
        return FakeQuant(momentum=self.momentum, fixed=fixed_range(layer), name=name)


def range_before(x: Any) -> FakeQuant:
    """Find the range of the grid on which a tensor lies, through layers that only move values."""
    operation, node_index, _ = x._keras_history
    if isinstance(operation, FakeQuant):
        return operation
    return range_before(operation._inbound_nodes[node_index].input_tensors[0])


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


def copied_onward(flow: Flow, site: Site) -> bool:
    """Say whether the only layer that takes this site's values copies them, so that they need its grid and no other."""
    consumers = flow.consumers(site)
    return len(consumers) == 1 and not flow.is_output(site) and isinstance(consumers[0].operation, COPYING)
