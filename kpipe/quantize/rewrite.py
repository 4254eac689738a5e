"""A float graph written anew with fake quantization: one range behind each group that the runtimes fuse."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.fake_quant import (
    AVERAGE,
    COPYING,
    ENDS,
    RESCALING,
    TRANSPOSED,
    FakeQuant,
    Island,
    MaskedSoftmax,
    QuantizedBias,
    QuantizedModel,
    QuantizedWeights,
    grid_before,
    is_linear,
    kind_of,
    products_of,
    takes_norm,
    whole_windows,
)
from kpipe.graph import Flow, Site, replay, sites
from kpipe.layers import Quantization
from kpipe.layers.operations.operands import classes
from kpipe.quantize.functions import unique
from kpipe.quantize.split import Split

FIXED_RANGES = {
    keras.activations.softmax: (0.0, 255 / 256),
    keras.activations.sigmoid: (0.0, 255 / 256),
    keras.activations.tanh: (-1.0, 127 / 128),
}
"""Ranges that both runtimes expect behind these functions: steps of 1/256 and 1/128."""
FIXED_BY_CLASS = {L.Softmax: (0.0, 255 / 256), MaskedSoftmax: (0.0, 255 / 256)} | {
    cls: range_
    for module, name, range_ in (
        ("nn", "Softmax", (0.0, 255 / 256)),
        ("nn", "Sigmoid", (0.0, 255 / 256)),
        ("numpy", "Tanh", (-1.0, 127 / 128)),
    )
    for cls in classes(module, name)
}


def rewrite(plain: Split, momentum: float, bits: Mapping[str, int | None], activations: bool = True) -> keras.Model:
    """Put fake quantization into a model; ranges are not calibrated yet.

    What a layer adds to its products, its bias or that of the batch norm behind it, is rounded to their grid.

    A range follows the inputs and each group that a runtime computes at once: a convolution or dense layer with its
    batch norm and ReLU, an addition with its ReLU, any other layer that makes new values. None follows layers that only
    move values, nor values that only go into a concatenation or comparison: those are rounded behind it, to its grid.
    What the runtimes compute in float is rounded where whole numbers follow, and at the outputs of the model.

    Args:
        plain: A model that was taken apart; it is not changed.
        momentum: Of the ranges' moving averages in training, in [0, 1].
        bits: Name of a layer -> bits of its weights, None for float; 8 for all others.
        activations: Whether to round what flows between layers; else the kernels alone are rounded.

    Returns:
        A Functional model with the same inputs, outputs by the same names, and weights; zeros of its kernels are held.

    Raises:
        SurgeryError: When the model's graph cannot be read.
    """
    rewriter = _Rewriter(sites(plain.model), momentum, bits, activations)
    graph = replay(plain.model, rewriter, on_input=rewriter.on_input)
    for wrapper in rewriter.wrappers.values():
        wrapper.hold_zeros()
    return QuantizedModel(graph._inputs_struct, graph._outputs_struct, graph.name, output_names=plain.output_names)


class _Rewriter:
    """Say for each site of a split model what stands there in the quantized one."""

    def __init__(self, flow: Flow, momentum: float, bits: Mapping[str, int | None], activations: bool):
        self.flow, self.momentum, self.bits, self.activations = flow, momentum, bits, activations
        self.left_out = {name for name, width in bits.items() if width is None}
        self.taken = {site.path for site in flow.sites}
        self.makers = {key: site for site in flow.sites for key in site.outputs}
        self.wrappers: dict[int, QuantizedWeights] = {}
        self.islands: dict[int, Island] = {}

    def on_input(self, site: Site, x: Any) -> Any:
        """Put a range behind an input; tokens have none."""
        return self.rounded(site.operation, x) if self.activations else x

    def __call__(self, site: Site, *args: Any, **kwargs: Any) -> Any:
        """Give the output of a site, rounded where the runtimes round it."""
        layer, kind = site.operation, self.kind(site)
        if self.activations and kind != "float" and keeps_grid(site):
            grid = grid_before(args[0])
            if grid is None:
                raise KpipeError(
                    f"Layer {site.path!r} cannot be quantized: it takes what lies on no grid. Is that made of tokens?"
                )
            return grid(layer(*args, **kwargs), observe=False)
        if kind == "weights" and id(layer) not in self.wrappers:
            wrapper = QuantizedWeights(layer, bits=self.bits.get(layer.name) or 8, name=layer.name)
            self.wrappers[id(layer)] = wrapper
        if not self.activations:
            alone: Any = self.wrappers.get(id(layer), layer)
            return alone(*args, **kwargs)
        if kind_of(site) == "weights" and layer.name in self.left_out and id(layer) not in self.islands:
            self.islands[id(layer)] = Island(layer, name=layer.name)
        called: Any = self.wrappers.get(id(layer)) or self.islands.get(id(layer), layer)
        y = called(*args, **kwargs)
        if kind != "float" and not self.normalised_onward(site):
            y = self.on_bias_grid(site, y)
        if kind == "same" or self.fused_onward(site) or self.copied_onward(site):
            return y
        if kind == "float" and not self.rounded_onward(site):
            return y
        return keras.tree.map_structure(lambda out: self.rounded(layer, out), y)

    def kind(self, site: Site) -> Quantization:
        """Say how a site takes part; a norm behind a linear layer that was left out is computed with it, in float."""
        kind = kind_of(site)
        if kind == "weights" and site.operation.name in self.left_out:
            return "float"
        maker = self.makers.get(site.inputs[0]) if kind == "normalise" else None
        computed_with = maker is not None and maker.operation.name in self.left_out and is_linear(maker.operation)
        return "float" if computed_with else kind

    def rounded(self, layer: Any, x: Any) -> Any:
        """Put a range behind a tensor; tokens and truth values have none."""
        return self.range_behind(layer)(x) if keras.backend.is_float_dtype(x.dtype) else x

    def range_behind(self, layer: Any) -> Callable[..., Any]:
        """Make a range named after a layer."""
        name = unique(f"{layer.name}_range", self.taken)
        return FakeQuant(momentum=self.momentum, fixed=fixed_range(layer), name=name)

    def on_bias_grid(self, site: Site, y: Any) -> Any:
        """Round what a site adds to its products, where it is such."""
        one_tensor = isinstance(site.operation, keras.Layer) and not isinstance(y, (list, tuple, dict))
        if not one_tensor or not is_linear(site.operation) or products_of(y) is None:
            return y
        return QuantizedBias(name=unique(f"{site.operation.name}_bias", self.taken))(y)

    def normalised_onward(self, site: Site) -> bool:
        """Say whether a batch norm will be folded into this site."""
        following = self._only(site)
        if following is None or self.kind(site) != "weights" or self.kind(following) != "normalise":
            return False
        return takes_norm(site)

    def fused_onward(self, site: Site) -> bool:
        """Say whether the runtimes compute this site at once with the only one that follows it."""
        following = self._only(site)
        if following is None:
            return False
        kind, next_kind = self.kind(site), self.kind(following)
        if self.normalised_onward(site):
            return True
        maker = self.makers[site.inputs[0]] if kind == "normalise" else site
        if next_kind != "fused" or isinstance(maker.operation, TRANSPOSED):
            return False
        return (
            is_linear(site.operation)
            if kind == "weights"
            else kind == "normalise" or isinstance(site.operation, (*ADDING, *RESCALING))
        )

    def copied_onward(self, site: Site) -> bool:
        """Say whether the only layer that takes this site's values copies them: they need its grid and no other.

        Layers that only move whole numbers may come between. What copies itself, or takes a mean, has a grid of its
        own, on which its inputs depend; a ReLU that ends where no runtime's does ends by its grid; and runtimes round a
        sigmoid to a grid that they fix before they bring it to another.
        """
        layer = site.operation
        own = isinstance(layer, (*COPYING, L.Average)) or getattr(layer, "max_value", None) not in ENDS
        following = None if own or fixed_range(layer) is not None else self._only(site)
        while following is not None and self.kind(site) != "float" and self.kind(following) == "same":
            following = self._only(following)
        if following is None or self.kind(following) == "float":
            return False
        return isinstance(following.operation, COPYING)

    def rounded_onward(self, site: Site) -> bool:
        """Say whether whole numbers follow, or the end of the model, perhaps behind layers that only move values."""
        if self.flow.is_output(site):
            return True
        return any(
            self.rounded_onward(one) if self.kind(one) == "same" else self.kind(one) != "float"
            for one in self.flow.consumers(site)
        )

    def _only(self, site: Site) -> Site | None:
        consumers = self.flow.consumers(site)
        return consumers[0] if len(consumers) == 1 and not self.flow.is_output(site) else None


def keeps_grid(site: Site) -> bool:
    """Say whether the integer kernel of a site makes new values, but on the grid of those that go in."""
    layer = site.operation
    if isinstance(layer, (L.UpSampling2D, L.Resizing)):
        return layer.interpolation == "bilinear"
    if isinstance(layer, AVERAGE):
        return not whole_windows(layer, site.input_shapes[0])
    return isinstance(layer, GREATEST)


GREATEST = classes("numpy", "Max Min Amax Amin")
ADDING = (L.Add, *classes("numpy", "Add"))


def fixed_range(layer: Any) -> tuple[float, float] | None:
    """Give the range that a layer's output has whatever the data, if the runtimes fix it."""
    if type(layer) in FIXED_BY_CLASS:
        return FIXED_BY_CLASS[type(layer)]
    return FIXED_RANGES.get(layer.activation) if isinstance(layer, L.Activation) else None
