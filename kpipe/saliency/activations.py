"""Evidence from activations: the norm of what each weight of a layer multiplies."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

from kpipe.data import weighted_batches
from kpipe.errors import KpipeError
from kpipe.layers import layers_within, weights_within
from kpipe.saliency.losses import traced, undisturbed

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


def input_norms(
    model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any = None
) -> list[np.ndarray | None]:
    """Take the L2 norm, over all samples and places, of the activations that each weight multiplies.

    - Dense, EinsumDense: of each input feature, over the samples and every axis that the kernel does not have.
    - Convolutions, transposed, depthwise and separable ones too: exact for each place of the window, over the samples
      and the places where the window lies; the zeros of the padding count.
    - Embedding: a token multiplies its row by one, so the norm is the square root of how often it occurs.
    - SimpleRNN, LSTM and GRU (alone or in Bidirectional): kernels like Dense, over the time steps that are not masked;
      recurrent kernels with the states that enter these steps. Not the recurrent kernel of a GRU with
      `reset_after=False`, for which a part of the states goes through a gate first.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: The weights.
        data: What `model.fit` takes; labels are not used.
        loss: Not used.

    Returns:
        For each weight an array that broadcasts to it; None where it is not known what the weight multiplies.

    Raises:
        KpipeError: When data is missing.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> input_norms(net, net.weights[:1], np.array([[3.0, 1.0], [4.0, 0.0]]))[0].tolist()
        [[5.0], [1.0]]

    References:
        Sun et al., A simple and effective pruning approach for large language models (2023),
        https://arxiv.org/abs/2306.11695
    """
    if data is None:
        raise KpipeError("A criterion that needs activations needs data. Received: data=None. Pass data=x.")
    wanted = {id(variable) for variable in variables}
    watches = [watch for watch in _watches(model) if id(watch.variable) in wanted]
    count = 0
    with undisturbed(model), _spying(watches):
        run = traced(
            lambda x: model(x, training=False), reduce_retracing=False
        )  # TimeDistributed unrolls known lengths
        for x, _, _ in weighted_batches(data):
            run(x)
            count += 1
    if count == 0:
        raise KpipeError("A criterion that needs activations needs data. Received: no batch at all.")
    norms = {id(watch.variable): watch.norm() for watch in watches}
    return [norms.get(id(variable)) for variable in variables]


class _Watch:
    """Sum up what one weight multiplies, over all calls of its layer."""

    def __init__(self, variable: keras.Variable, layer: keras.Layer, measure: Meter):
        self.variable, self.layer, self.measure = variable, layer, measure
        self.total: tf.Variable | None = None

    def add(self, arguments: dict[str, Any]) -> None:
        x, *_ = arguments.values()
        found = self.measure(self.layer, x, arguments)
        if self.total is None:
            with tf.init_scope():
                self.total = tf.Variable(tf.zeros(found.shape, "float32"), trainable=False)
        self.total.assign_add(found)

    def norm(self) -> np.ndarray | None:
        return None if self.total is None else np.sqrt(self.total.numpy())


def _watches(model: keras.Model) -> Iterator[_Watch]:
    """Find which layer to watch for each weight: its own, or the recurrent layer around its cell."""
    around = {id(layer.cell): layer for layer in layers_within(model) if isinstance(layer, L.RNN)}
    for weight in weights_within(model):
        cell = isinstance(weight.layer, CELLS)
        gated = isinstance(weight.layer, L.GRUCell) and not weight.layer.reset_after
        layer = around.get(id(weight.layer)) if cell else weight.layer
        found = (METERS.get((cls, weight.name)) for cls in type(weight.layer).__mro__)
        measure = next((one for one in found if one is not None), None)
        if measure is not None and layer is not None and not (gated and weight.name == "recurrent_kernel"):
            yield _Watch(weight.variable, layer, measure)


@contextmanager
def _spying(watches: Sequence[_Watch]) -> Iterator[None]:
    """Let the watches see every call of their layers meanwhile."""
    layers = {id(watch.layer): watch.layer for watch in watches}
    own: dict[int, Any] = {key: vars(layer) for key, layer in layers.items()}
    before = {key: attributes["call"] for key, attributes in own.items() if "call" in attributes}
    try:
        for key, layer in layers.items():
            own[key]["call"] = _spy(layer.call, [watch for watch in watches if id(watch.layer) == key])
        yield
    finally:
        for key, attributes in own.items():
            attributes.pop("call", None)
            if key in before:
                attributes["call"] = before[key]


def _spy(call: Callable[..., Any], watches: Sequence[_Watch]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    def spy(*args: Any, **kwargs: Any) -> Any:
        for watch in watches:
            watch.add(signature.bind(*args, **kwargs).arguments)
        return call(*args, **kwargs)

    return spy


def _square(x: Any) -> tf.Tensor:
    return tf.square(tf.cast(x, "float32"))


@meter(L.Dense)
def dense(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum over everything but the features: (in, 1)."""
    return tf.reshape(tf.reduce_sum(_square(x), axis=list(range(len(x.shape) - 1))), (-1, 1))


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
    found = _by_kernel(lambda kernel: layer.convolution_op(_square(x), kernel), (*window, channels, layer.groups))
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
@meter(L.SeparableConv1D, L.SeparableConv2D, weight="depthwise_kernel")
def depthwise_convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Differentiate a depthwise convolution of the squares by its kernel: (*window, in, 1)."""
    kernel = layer.depthwise_kernel if isinstance(layer, SEPARABLE) else layer.kernel
    return _by_kernel(lambda ones: _depthwise(layer, _square(x), ones), (*kernel.shape[:-1], 1))


@meter(L.SeparableConv1D, L.SeparableConv2D, weight="pointwise_kernel")
def pointwise_convolution(layer: Any, x: Any, arguments: dict[str, Any]) -> tf.Tensor:
    """Sum the squares of what the depthwise part gives over all places: (*ones, in * multiplier, 1)."""
    between = _square(_depthwise(layer, x, layer.depthwise_kernel))
    channel = len(between.shape) - 1 if layer.data_format == "channels_last" else 1
    summed = tf.reduce_sum(between, axis=[i for i in range(len(between.shape)) if i != channel])
    return tf.reshape(summed, (*(1,) * (len(between.shape) - 2), -1, 1))


SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)


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


CELLS = (L.SimpleRNNCell, L.LSTMCell, L.GRUCell)


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
