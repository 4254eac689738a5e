"""The model that a file is written from: kernels on their grids, batch norms folded, activation ranges kept."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.copies import copy_layer, copy_operation, float32_policy
from kpipe.errors import KpipeError
from kpipe.fake_quant.affine import channel_axes
from kpipe.fake_quant.bias import RESCALING, QuantizedBias
from kpipe.fake_quant.fold import multiplier_and_offset, uneven
from kpipe.fake_quant.island import Island
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.fake_quant.masking import without_masks
from kpipe.fake_quant.plain import plain_layer
from kpipe.fake_quant.sequences import MAPS, Row
from kpipe.fake_quant.support import is_linear, rounds_activations, why_float
from kpipe.graph import Flow, Site, replay, sites
from kpipe.layers import KERNEL_ROLES, quantization_of, weights
from kpipe.layers.preprocessing import scale_and_offset

MEANS = (
    *(L.LayerNormalization, L.GroupNormalization),
    *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
)
"""Layers in float that begin with a mean, which LiteRT's converter would take on the grid of what goes in."""
ENDS = (None, 6.0)
"""Greatest values of a ReLU that the runtimes know; it ends at any other by the grid behind it."""
COPYING = (L.Maximum, L.Minimum, L.Concatenate)
"""Their integer kernels copy whole numbers: their inputs must lie on the output's grid."""


AVERAGE = (L.AveragePooling1D, L.AveragePooling2D)
"""Their integer kernels round to the input's grid; where no window is cut off, a depthwise convolution does better."""


def is_quantized(model: Any) -> bool:
    """Say whether a model computes with fake quantization.

    Example:
        >>> x = keras.Input((2,))
        >>> is_quantized(keras.Model(x, FakeQuant()(x))), is_quantized(keras.Model(x, keras.layers.ReLU()(x)))
        (True, False)
    """
    if not isinstance(model, keras.Model):
        return False
    return any(isinstance(layer, (FakeQuant, QuantizedWeights)) for layer in model._flatten_layers())


def bake(model: keras.Model) -> keras.Model:
    """Give the model that an int8 file is written from.

    Every kernel is put on its per-channel grid, round(w / s) · s, and rounded no more when the model runs, nor is a
    bias, which is put on the grid of its products, unless the calls of a layer that is shared have several; a batch
    norm behind a convolution or dense layer is folded into it; one that stands alone becomes a 1 × 1 depthwise
    convolution, a rescaling too, and an average pooling a depthwise convolution of its size; the ranges of activations
    stay. Where activations are not rounded, only the kernels and the batch norms behind them change. Its outputs equal
    those of `model` within float rounding, or a step where a value lies on the edge between two.

    Args:
        model: A model made by `kpipe.quantize`; it is not changed.

    Returns:
        A new model; it is meant to be exported, not trained.

    Raises:
        KpipeError: When the model is not quantized.
    """
    if not is_quantized(model):
        raise KpipeError(f"Model {model.name!r} is not quantized. Call kpipe.quantize(model, calibration=...) first.")
    with float32_policy():
        return replay(model, _Baker(sites(model)))


class _Baker:
    """Say for each site of a quantized model what stands there in the baked one."""

    def __init__(self, flow: Flow):
        self.flow, self.whole_numbers = flow, rounds_activations(flow)
        self.maker = {key: site for site in flow.sites for key in site.outputs}
        self.taken = {site.operation.name for site in flow.sites}
        self.made: dict[tuple[int, ...], Any] = {}
        self.folded: set[tuple[str, int]] = set()

    def __call__(self, site: Site, *args: Any, **kwargs: Any) -> Any:
        operation = site.operation
        if isinstance(operation, (QuantizedWeights, Island)):
            with without_masks(*([] if operation.layer.supports_masking else args)):
                return self._weighted(site)(*args)
        if isinstance(operation, L.BatchNormalization) and (site.path, site.call) in self.folded:
            return args[0]
        if isinstance(operation, QuantizedBias):  # the files round it themselves
            return args[0]
        if isinstance(operation, FakeQuant):
            return self._range(operation)(*args)
        if not self.whole_numbers:
            return self._copy(operation)(*args, **kwargs)
        if why_float(site) is not None:
            return self._float(operation)(*args, **kwargs)
        return self._rounded(site, *args, **kwargs)

    def _rounded(self, site: Site, *args: Any, **kwargs: Any) -> Any:
        """Give the output of a site that is computed in whole numbers and has no kernel."""
        operation = site.operation
        if isinstance(operation, L.BatchNormalization):
            return self._affine(site, args[0], *multiplier_and_offset(operation))
        if isinstance(operation, RESCALING):
            channels = site.input_shapes[0][-1:]
            ends = (np.broadcast_to(end, channels) for end in scale_and_offset(operation))
            return self._affine(site, args[0], *ends)
        if isinstance(operation, L.Average):
            return self._average(site, args[0])
        if isinstance(operation, AVERAGE) and whole_windows(operation, site.input_shapes[0]):
            return self._pool(site, args[0])
        if isinstance(operation, COPYING):
            args = ([self._on_grid(site, key, x) for key, x in zip(site.inputs, args[0], strict=True)],)
        if isinstance(operation, L.ReLU) and operation.max_value not in ENDS and self._ends_below(site):
            return L.ReLU(name=self._name(site))(*args)
        return self._held(site, self._copy(operation)(*args, **kwargs))

    def _weighted(self, site: Site) -> Callable[..., Any]:
        """Give a layer with its kernel as it is written, and the batch norm behind it folded in."""
        operation = site.operation
        norm = foldable(self.flow, site)
        if norm is not None:
            self.folded.add((norm.path, norm.call))
        key = (id(operation), 0 if norm is None else id(norm.operation))
        if key not in self.made:
            rounding = self._bias_rounding(site.operation, None if norm is None else norm.operation)
            layer = plain_layer(operation, None if norm is None else norm.operation, site.input_shapes[0], rounding)
            steps = site.input_shapes[0][1] if type(layer) in MAPS else None
            self.made[key] = layer if steps is None else Row(layer, steps)
        return self.made[key]

    def _bias_rounding(self, *operations: Any) -> np.ndarray:
        """Give what the biases of a layer lose by their rounding; nothing where its calls do not agree."""
        behind = (one for site in self.flow.sites if site.operation in operations for one in self.flow.consumers(site))
        found = [np.asarray(one.operation.rounding()) for one in behind if isinstance(one.operation, QuantizedBias)]
        return found[0] if found and all(np.array_equal(one, found[0]) for one in found) else np.zeros(())

    def _float(self, operation: Any) -> Any:
        """Give what computes in float: means are taken of the negated input, norm(-x) = -norm(x) but for the offset."""
        if isinstance(operation, MEANS) and (id(operation),) not in self.made:
            layer: Any = copy_layer(operation)
            if getattr(layer, "beta", None) is not None:
                layer.beta.assign(-layer.beta)
            self.made[id(operation),] = Island(layer, negate_input=True, negate_output=True, name=operation.name)
        return self._copy(operation)

    def _copy(self, operation: Any) -> Any:
        if (id(operation),) not in self.made:
            layer = isinstance(operation, keras.Layer)
            self.made[id(operation),] = copy_layer(operation) if layer else copy_operation(operation, operation.name)
        return self.made[id(operation),]

    def _range(self, operation: FakeQuant) -> Any:
        """Give a range that stays as it is: converters look for constants."""
        if (id(operation),) not in self.made:
            self.made[id(operation),] = _written(operation, name=operation.name)
        return self.made[id(operation),]

    def _on_grid(self, site: Site, key: int, x: Any) -> Any:
        """Round an input of a layer that copies to the grid behind it, unless whole numbers of another come in.

        Those the runtimes bring from grid to grid; what was float just before they would take for one on the grid.
        """
        rounding = self._rounding_before(key)
        if rounding is not None and why_float(before := self.maker[rounding.inputs[0]]) is None:
            most = getattr(before.operation, "max_value", None)
            return x if most in ENDS else _ended(x, most, rounding.operation)
        following = self.flow.consumers(site)[0].operation
        low, _ = following.grid()
        # LiteRT's converter takes the rounding behind what moves values for its only one: an operation parts them
        parted = x if rounding in (None, self.maker[key]) else keras.ops.maximum(x, low)
        return _written(following)(parted)

    def _held(self, site: Site, x: Any) -> Any:
        """Name the grid of what moves whole numbers to several, lest LiteRT brings all to one that is copied to."""
        rounding = self._rounding_before(site.inputs[0]) if quantization_of(site.operation) == "same" else None
        consumers = self.flow.consumers(site)
        if rounding is None or len(consumers) + self.flow.is_output(site) < 2 or not any(map(self._copied, consumers)):
            return x
        return keras.tree.map_structure(_written(rounding.operation), x)

    def _copied(self, site: Site) -> bool:
        """Say whether a site copies what it takes, or moves it to one that does."""
        if quantization_of(site.operation) == "same":
            return any(map(self._copied, self.flow.consumers(site)))
        return isinstance(site.operation, COPYING)

    def _rounding_before(self, key: int) -> Site | None:
        """Find what rounded a tensor, perhaps before it was moved; None where that computes in float."""
        while not isinstance((maker := self.maker[key]).operation, FakeQuant):
            if maker.is_input or quantization_of(maker.operation) != "same":
                return None
            key = maker.inputs[0]
        return maker

    def _ends_below(self, site: Site) -> bool:
        """Say whether the grid behind a ReLU ends no later than the ReLU does."""
        following = [one.operation for one in self.flow.consumers(site)]
        return all(isinstance(one, FakeQuant) and one.range()[1] <= site.operation.max_value for one in following)

    def _average(self, site: Site, inputs: list[Any]) -> Any:
        """Write an average as a sum on a grid n times as coarse, and its nth part: the whole numbers are the same."""
        count, following = len(inputs), self.flow.consumers(site)[0].operation
        low, high = following.grid()
        coarse = FakeQuant(following.bits, fixed=(count * low, count * high), written=True)
        return L.Rescaling(1 / count)(coarse(L.Add()(inputs)))

    def _pool(self, site: Site, x: Any) -> Any:
        """Write an average pooling as a depthwise convolution, whose integer kernel has an output grid of its own."""
        pool, shape = site.operation, site.input_shapes[0]
        flat = isinstance(pool, L.AveragePooling1D)
        size, strides = ((*each, 1) if flat else each for each in (pool.pool_size, pool.strides))
        layer = L.DepthwiseConv2D(size, strides, use_bias=False, name=self._name(site))
        layer.build((*shape[:2], 1, shape[-1]) if flat else shape)
        layer.set_weights([np.full(layer.kernel.shape, 1 / np.prod(size))])
        if not flat:
            return layer(x)
        # (batch, steps, c) -> (batch, steps, 1, c) -> back
        spread = layer(keras.ops.reshape(x, (-1, shape[1], 1, shape[-1])))
        return keras.ops.reshape(spread, (-1, spread.shape[1], shape[-1]))

    def _name(self, site: Site) -> str:
        """Name what stands for a layer; where that is called again, by a name that no other has."""
        name, number = site.operation.name, site.call
        if number == 0:
            return name
        while (candidate := f"{name}_{number}") in self.taken:
            number += 1
        self.taken.add(candidate)
        return candidate

    def _affine(self, site: Site, x: Any, multiplier: np.ndarray, offset: np.ndarray) -> Any:
        """Write x · m + b, m and b (channels,), as a 1 × 1 depthwise convolution, which int8 can hold exactly."""
        shape, key = site.input_shapes[0], (id(site.operation), site.input_shapes[0][-1])
        if key not in self.made:
            layer = self.made[key] = L.DepthwiseConv2D(1, name=self._name(site))
            layer.build((None, None, None, shape[-1]))
            rounded = offset + self._bias_rounding(site.operation)
            layer.set_weights([multiplier.reshape(1, 1, -1, 1), uneven(rounded)])
        if len(shape) == 4:
            return self.made[key](x)
        # (batch, ..., c) -> (batch, 1, places, c) -> back
        spread = keras.ops.reshape(x, (-1, 1, int(np.prod(shape[1:-1], dtype=int)), shape[-1]))
        return keras.ops.reshape(self.made[key](spread), (-1, *shape[1:]))


def _written(rounding: FakeQuant, **kwargs: Any) -> FakeQuant:
    """Give the grid of a range as converters look for it."""
    return FakeQuant(rounding.bits, fixed=rounding.grid(), written=True, **kwargs)


def _ended(x: Any, most: float, rounding: FakeQuant) -> Any:
    """Let values end where their grid does, for runtimes that give them another one at once."""
    return _written(rounding)(keras.ops.minimum(x, most))


def whole_windows(layer: Any, shape: tuple[int | None, ...]) -> bool:
    """Say whether none of the windows of a pooling reaches into padding.

    Args:
        layer: A 1-D or 2-D average pooling.
        shape: Of its input, (batch, steps, c) or (batch, h, w, c).

    Example:
        >>> pool = keras.layers.AveragePooling2D(2, padding="same")
        >>> whole_windows(pool, (None, 8, 8, 3)), whole_windows(pool, (None, 9, 8, 3))
        (True, False)
    """
    if layer.padding == "valid":
        return True
    sizes = zip(shape[1:-1], layer.pool_size, layer.strides, strict=True)
    return all(
        size is not None and (-(-size // stride) - 1) * stride + window <= size for size, window, stride in sizes
    )


def foldable(flow: Flow, site: Site) -> Site | None:
    """Give the batch norm that can be folded into the layer at `site`: the only one that takes its linear output."""
    consumers = flow.consumers(site)
    if len(consumers) != 1 or flow.is_output(site) or not takes_norm(site):
        return None
    return consumers[0] if isinstance(consumers[0].operation, L.BatchNormalization) else None


def takes_norm(site: Site) -> bool:
    """Say whether a layer computes sums of products with one channel for each entry of the last axis, and no more."""
    layer = getattr(site.operation, "layer", site.operation)
    if not is_linear(layer):
        return False
    kernels = [weight for weight in weights(layer) if weight.role in KERNEL_ROLES]
    shapes = [(tuple(one.variable.shape), channel_axes(one.layout, len(one.variable.shape))) for one in kernels]
    return [np.prod([shape[axis] for axis in axes]) for shape, axes in shapes] == [site.output_shapes[0][-1]]
