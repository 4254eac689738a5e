"""What each weight of a layer multiplies, layer by layer; a new layer is one decorated function."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers as L

Meter = Callable[..., Any]
"""(layer, the arguments of its call) -> sum of the squares of what each weight multiplies, broadcastable to it."""

METERS: dict[tuple[type, str], Meter] = {}
"""(layer class, name of the weight) -> how what it multiplies is measured."""


def meter(*classes: type, weight: str = "kernel") -> Callable[[Meter], Meter]:
    """Register the decorated function for a weight of some layer classes and of their subclasses."""

    def register(function: Meter) -> Meter:
        METERS.update({(cls, weight): function for cls in classes})
        return function

    return register


SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
CELLS = (L.SimpleRNNCell, L.LSTMCell, L.GRUCell)


def _square(x: Any) -> tf.Tensor:
    return tf.square(tf.cast(x, "float32"))


def _features(x: Any) -> tf.Tensor:
    """Sum the squares over everything but the last axis: (features, 1)."""
    return tf.reshape(tf.reduce_sum(_square(x), axis=list(range(len(x.shape) - 1))), (-1, 1))


@meter(L.Dense)
def dense(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum over everything but the features: (in, 1)."""
    return _features(x)


@meter(L.EinsumDense)
def einsum_dense(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum over the letters that the kernel does not have: its own letters in its order, 1 for those of the output."""
    given, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    head, dots, tail = given.partition("...")
    axes = {letter: i for i, letter in enumerate(head)}
    axes |= {letter: len(x.shape) - len(tail) + i for i, letter in enumerate(tail)} if dots else {}
    summed = tf.reduce_sum(_square(x), axis=[i for i in range(len(x.shape)) if i not in {axes.get(k) for k in kernel}])
    shared = sorted((letter for letter in kernel if letter in axes), key=lambda letter: axes[letter])
    ordered = tf.transpose(summed, [shared.index(letter) for letter in kernel if letter in axes])
    sizes = layer.kernel.shape
    return tf.reshape(ordered, [size if k in axes else 1 for size, k in zip(sizes, kernel, strict=True)])


@meter(L.Conv1D, L.Conv2D, L.Conv3D)
def convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Differentiate a convolution of the squares by its kernel: (*window, in / groups, 1), or filters with groups."""
    *window, channels, filters = layer.kernel.shape
    squares, padding = _square(x), layer.padding
    if padding == "causal":
        before = [layer.dilation_rate[0] * (window[0] - 1), 0]
        squares = tf.pad(
            squares, [[0, 0], *([before, [0, 0]] if layer.data_format == "channels_last" else [[0, 0], before])]
        )
        padding = "valid"

    def apply(kernel: tf.Tensor) -> Any:
        strides: Any = list(layer.strides)
        return keras.ops.conv(squares, kernel, strides, padding, layer.data_format, layer.dilation_rate)

    found = _by_kernel(apply, (*window, channels, layer.groups))
    return found if layer.groups == 1 else tf.repeat(found, filters // layer.groups, axis=-1)


@meter(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
def transposed_convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Differentiate a transposed convolution of the squares by its kernel: (*window, 1, in)."""
    *window, _, channels = layer.kernel.shape
    strides: Any = list(layer.strides)

    def apply(kernel: tf.Tensor) -> Any:
        return keras.ops.conv_transpose(
            _square(x),
            kernel,
            strides=strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    return _by_kernel(apply, (*window, 1, channels))


@meter(L.DepthwiseConv1D, L.DepthwiseConv2D)
@meter(*SEPARABLE, weight="depthwise_kernel")
def depthwise_convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Differentiate a depthwise convolution of the squares by its kernel: (*window, in, 1)."""
    kernel = layer.depthwise_kernel if isinstance(layer, SEPARABLE) else layer.kernel
    return _by_kernel(lambda ones: _depthwise(layer, _square(x), ones), (*kernel.shape[:-1], 1))


@meter(*SEPARABLE, weight="pointwise_kernel")
def pointwise_convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum the squares of what the depthwise part gives over all places: (*ones, in * multiplier, 1)."""
    between = _square(_depthwise(layer, x, layer.depthwise_kernel))
    channel = len(between.shape) - 1 if layer.data_format == "channels_last" else 1
    summed = tf.reduce_sum(between, axis=[i for i in range(len(between.shape)) if i != channel])
    return tf.reshape(summed, (*(1,) * (len(between.shape) - 2), -1, 1))


def _depthwise(layer: Any, x: Any, kernel: Any) -> Any:
    return keras.ops.depthwise_conv(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )


def _by_kernel(apply: Callable[[tf.Tensor], Any], shape: Sequence[int]) -> tf.Tensor:
    """Differentiate the sum of a linear map's outputs by its kernel: the sum of all that each entry multiplies."""
    kernel, tape = tf.ones(shape), tf.GradientTape()
    with tape:
        tape.watch(kernel)
        total = tf.reduce_sum(apply(kernel))
    found: Any = tape.gradient(total, kernel)
    return found


@meter(L.Embedding, weight="embeddings")
def embedding(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Count each token: (tokens, 1)."""
    tokens = tf.reshape(tf.cast(x, "int32"), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(tokens, "float32"), tokens, layer.input_dim)
    return tf.reshape(counts, (-1, 1))


@meter(L.ReversibleEmbedding, weight="embeddings")
def reversible_embedding(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Count the tokens on the way in; on the way out, where tied, sum over all but the features: (tokens, features)."""
    if not arguments.get("reverse"):
        found = embedding(layer, x, arguments)
    else:
        found = tf.transpose(_features(x)) if layer.tie_weights else tf.zeros((1, 1))
    return tf.broadcast_to(found, layer.embeddings.shape)


@meter(L.ReversibleEmbedding, weight="reverse_embeddings")
def way_out(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum over everything but the features on the way out: (features, 1)."""
    return _features(x) if arguments.get("reverse") else tf.zeros((layer.output_dim, 1))


@meter(*CELLS)
def recurrent_inputs(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum over the samples and the time steps that are not masked: (in, 1)."""
    return _over_steps(x, arguments.get("mask"))


@meter(*CELLS, weight="recurrent_kernel")
def recurrent_states(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Run the cell over the sequence once more, and sum the states that enter the steps: (units, 1)."""
    mask, start = arguments.get("mask"), arguments.get("initial_state")
    if start is None:
        start = layer.states if layer.stateful else layer.get_initial_state(batch_size=tf.shape(x)[0])
    start = keras.tree.flatten(start)
    again = L.RNN(
        layer.cell,
        return_sequences=True,
        go_backwards=layer.go_backwards,
        unroll=layer.unroll,
        dtype=layer.dtype_policy,
    )
    after: Any = again.call(x, initial_state=start, mask=mask)
    first = tf.cast(start[0], after.dtype)[:, None]
    if mask is not None:
        mask = tf.reverse(mask, [1]) if layer.go_backwards else mask
        begun = tf.cumsum(tf.cast(mask, "int32"), axis=1)[..., None] > 0
        after = tf.where(begun, after, first)  # Keras gives zeros until the first step that counts
    return _over_steps(tf.concat([first, after[:, :-1]], axis=1), mask)


def _over_steps(values: Any, mask: Any) -> tf.Tensor:
    squares = _square(values)
    if mask is not None:
        squares *= tf.cast(mask, "float32")[..., None]
    return tf.reshape(tf.reduce_sum(squares, axis=[0, 1]), (-1, 1))
