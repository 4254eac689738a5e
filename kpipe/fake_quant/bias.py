"""The offsets of a quantized model on the grids on which integer kernels add them."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

from kpipe.fake_quant.fold import norm_as_affine
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.layers import quantization_of
from kpipe.layers.preprocessing import scale_and_offset

RESCALING = (L.Rescaling, L.Normalization)
BYTE_END = 127
"""Greatest level of the weights of what is written as a 1 × 1 depthwise convolution."""
LEAST_STEP = 1e-30
"""Of products: of a channel with less nothing is left beside its offset."""


@keras.saving.register_keras_serializable(package="kpipe")
class QuantizedBias(keras.layers.Layer):
    """Round a sum of products, and the offset in it, to the grid of the products, as the runtimes do.

    An integer kernel adds a whole number to a sum of products of whole numbers. So an offset b, which is the bias and
    what a batch norm or rescaling adds, becomes round(b / s) · s with s = step of the input · step of the weights, for
    each channel, and the sum a whole number of such steps, which floats are only nearly. That is a small part of a step
    of what comes out, but enough to move some values in a thousand to the next one; without it, fifty layers on, a file
    and its model have little in common but their accuracy.

    It has no weights, and finds what it needs in the graph in which it was called first: the layer before it, and the
    range before that. So it belongs to that graph; another one needs one of its own. In training nothing is rounded,
    for there a batch norm takes the statistics of the batch.

    Args:
        **kwargs: What a Keras layer takes.

    Example:
        >>> x, rounded = keras.Input((1,)), FakeQuant()
        >>> rounded.set_range(0.0, 255.0)
        >>> dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(127.0))
        >>> model = keras.Model(x, QuantizedBias()(QuantizedWeights(dense)(rounded(x))))
        >>> _ = dense.bias.assign([0.7])
        >>> float(model(keras.ops.ones((1, 1)))[0, 0])
        128.0

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR
        2018, equation 11.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Do nothing: it has no weights."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Round `x`, shape (batch, ..., channels)."""
        found = None if training or not self._inbound_nodes else self.products()
        return x if found is None else found.whole(x)

    def rounding(self) -> Any:
        """Give round(b / s) · s - b for each channel of the layer before, in float64."""
        found = self.products()
        return tf.zeros((), tf.float64) if found is None else found.rounding()

    def products(self) -> "Products | None":
        """Give the products that the layer before sums."""
        return products_of(self._inbound_nodes[0].input_tensors[0])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Keep the shape."""
        return input_shape


@dataclass(frozen=True)
class Products:
    """Know the grid of a sum of products, and what is added to it.

    Args:
        offset: (channels,), what is added, in float64.
        greatest: (channels,), the greatest weight of each, in float64.
        end: The level of a greatest weight.
        grid: Of what goes in.
    """

    offset: Any
    greatest: Any
    end: int
    grid: FakeQuant

    def step(self) -> Any:
        """Give the step s of each channel; one without weights has the greatest of the others."""
        greatest = tf.where(self.greatest > 0, self.greatest, tf.reduce_max(self.greatest))
        low, high = (tf.cast(end, tf.float64) for end in self.grid.ends())
        return (high - low) / (2**self.grid.bits - 1) * greatest / self.end

    def rounding(self) -> Any:
        """Give round(b / s) · s - b."""
        step = self.step()
        return tf.where(step > 0, tf.round(tf.math.divide_no_nan(self.offset, step)) * step - self.offset, 0.0)

    def whole(self, x: Any) -> Any:
        """Bring a sum of products with its offset, (batch, ..., channels), to the whole number that it is of steps.

        Keras adds floats up in an order of its own, by which the last digits differ; integer kernels are exact. The
        gradient passes straight through.
        """
        step, size = self.step(), tf.abs(self.offset)
        # Without weights, or with such as a single float cannot divide by, x is the offset.
        step = tf.where(step > LEAST_STEP, step, tf.where(size > LEAST_STEP, size, 1.0))
        found = (step, 1 / step, self.rounding())
        step, inverse, rounding = (tf.stop_gradient(tf.cast(one, x.dtype)) for one in found)
        return tf.grad_pass_through(tf.round)((x + rounding) * inverse) * step


def products_of(tensor: Any) -> Products | None:
    """Find the products that a tensor of a quantized graph is the sum of, with an offset.

    Args:
        tensor: What comes out of a layer with rounded weights, a batch norm behind one or alone, or a rescaling.

    Returns:
        None where that is something else, or what goes in lies on no grid.
    """
    layer, inputs = maker_of(tensor)
    norm, alone = None, isinstance(layer, L.BatchNormalization)
    if alone and isinstance(maker_of(inputs[0])[0], QuantizedWeights):
        norm, alone = layer, False
        layer, inputs = maker_of(inputs[0])
    weighted = isinstance(layer, QuantizedWeights)
    grid = grid_before(inputs[0]) if inputs and (weighted or alone or isinstance(layer, RESCALING)) else None
    if grid is None:
        return None
    if weighted:
        return _weighted(layer, norm, grid)
    if alone:
        multiplier, offset = norm_as_affine(layer)
        return Products(offset, tf.abs(multiplier), BYTE_END, grid)
    with tf.init_scope():  # the layer holds arrays, which a graph that is being made cannot read
        multiplier, offset = (np.asarray(end, np.float64) for end in scale_and_offset(layer))
    return Products(tf.constant(offset), tf.constant(np.abs(multiplier)), BYTE_END, grid) if offset.any() else None


def _weighted(wrapper: QuantizedWeights, norm: L.BatchNormalization | None, grid: FakeQuant) -> Products | None:
    """Give the products of a layer with rounded weights, and of the batch norm that will be folded into it."""
    bias = getattr(wrapper.layer, "bias", None)
    if (bias is None and norm is None) or not _in_order(wrapper.layer):
        return None
    (kernel,) = wrapper.kernels()
    greatest = tf.cast(wrapper.greatest(kernel), tf.float64)
    offset = tf.zeros((), tf.float64) if bias is None else tf.cast(tf.convert_to_tensor(bias), tf.float64)
    if norm is not None:
        multiplier, shift = norm_as_affine(norm)
        offset, greatest = offset * multiplier + shift, greatest * tf.abs(multiplier)
    if offset.shape != greatest.shape:  # it is added by an operation of its own
        return None
    return Products(offset, greatest, 2 ** (wrapper.bits - 1) - 1, grid)


def _in_order(layer: Any) -> bool:
    """Say whether the channels of a kernel stand in the order in which they come out."""
    if not isinstance(layer, L.EinsumDense):
        return True
    terms, out = layer.equation.split("->")
    new = [letter for letter in terms.split(",")[1] if letter in out]
    return new == [letter for letter in out if letter in new]


def maker_of(tensor: Any) -> tuple[Any, list[Any]]:
    """Give what makes a symbolic tensor, and of what."""
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index].input_tensors


def grid_before(tensor: Any) -> FakeQuant | None:
    """Find the range of the grid on which a tensor lies, through layers that only move values.

    Example:
        >>> rounded = FakeQuant()
        >>> y = rounded(keras.Input((4,)))
        >>> grid_before(keras.layers.Reshape((2, 2))(y)) is rounded, grid_before(keras.layers.ReLU()(y))
        (True, None)
    """
    operation, inputs = maker_of(tensor)
    while inputs and quantization_of(operation) == "same":
        operation, inputs = maker_of(inputs[0])
    return operation if isinstance(operation, FakeQuant) else None


ROUNDING = (FakeQuant, QuantizedBias)
"""Layers that only round what others have made."""
