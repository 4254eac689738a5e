"""Networks that XNNPACK can or cannot run sparsely, for whichever version of Keras is given."""

from collections.abc import Callable
from typing import Any

MODELS: dict[str, Callable[[Any], Any]] = {}
"""Name -> function from Keras to a model."""


def chain(keras: Any, *middle: Any, stem: dict | None = None, end: dict | None = None, pad: Any = 1) -> Any:
    """Make a network of a stem, layers in the middle, and a global pooling."""
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    if pad is not None:
        x = layers.ZeroPadding2D(pad)(x)
    x = layers.Conv2D(8, **{"kernel_size": 3, "strides": 2, "padding": "valid", **(stem or {})})(x)
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D(**(end or {}))(x))


def model(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Add a network under its function's name."""
    MODELS[function.__name__] = function
    return function


def middle(name: str, *make: Callable[[Any], Any]) -> None:
    """Add a network that has these layers between stem and pooling."""
    MODELS[name] = lambda keras: chain(keras, *(one(keras.layers) for one in make))


middle("one by one", lambda L: L.Conv2D(4, 1))
middle("activations", lambda L: L.Activation("relu6"), lambda L: L.LeakyReLU(), lambda L: L.Activation("sigmoid"))
middle("tanh", lambda L: L.Activation("tanh"))
middle("softmax", lambda L: L.Softmax())
middle("norm", lambda L: L.BatchNormalization(), lambda L: L.Conv2D(4, 1))
middle("norm of rows", lambda L: L.BatchNormalization(axis=1))
middle("strided one by one", lambda L: L.Conv2D(4, 1, strides=2))
middle("three by three", lambda L: L.Conv2D(4, 3))
middle("grouped", lambda L: L.Conv2D(4, 1, groups=2))
middle("depthwise same", lambda L: L.DepthwiseConv2D(3, padding="same"))
middle("depthwise same strided", lambda L: L.DepthwiseConv2D(3, padding="same", strides=2))
middle("depthwise valid", lambda L: L.DepthwiseConv2D(3))
middle("depthwise padded strided", lambda L: L.ZeroPadding2D(1), lambda L: L.DepthwiseConv2D(3, strides=2))
middle("depthwise five", lambda L: L.ZeroPadding2D(2), lambda L: L.DepthwiseConv2D(5, strides=2))
middle("depthwise five padded by one", lambda L: L.ZeroPadding2D(1), lambda L: L.DepthwiseConv2D(5, strides=2))
middle("depthwise padded askew", lambda L: L.ZeroPadding2D(((1, 1), (0, 1))), lambda L: L.DepthwiseConv2D(3))
middle("depthwise multiplied", lambda L: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2))
middle("depthwise dilated", lambda L: L.DepthwiseConv2D(3, padding="same", dilation_rate=2))
middle("bilinear", lambda L: L.UpSampling2D(interpolation="bilinear"))
middle("nearest", lambda L: L.UpSampling2D())
middle("pooling", lambda L: L.MaxPooling2D(2))
middle("dropout", lambda L: L.Dropout(0.1), lambda L: L.ZeroPadding2D(3), lambda L: L.ReLU(), lambda L: L.ELU())


@model
def stem_without_padding(keras: Any) -> Any:
    return chain(keras, pad=None)


@model
def stem_with_more_padding(keras: Any) -> Any:
    return chain(keras, pad=2)


@model
def stem_without_stride(keras: Any) -> Any:
    return chain(keras, stem={"strides": 1})


@model
def stem_of_five(keras: Any) -> Any:
    return chain(keras, stem={"kernel_size": 5})


@model
def end_with_axes_kept(keras: Any) -> Any:
    return chain(keras, end={"keepdims": True})


@model
def squeeze_and_excite(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Activation("sigmoid")(layers.Conv2D(8, 1)(gate))
    x = layers.Add()([layers.Multiply()([x, gate]), x])
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


@model
def squeeze_that_drops_axes(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Conv2D(8, 1)(gate)])
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


@model
def head_behind_the_pooling(keras: Any) -> Any:
    inner = chain(keras, keras.layers.Conv2D(4, 1), end={"keepdims": True})
    x = keras.layers.Softmax()(keras.layers.Conv2D(2, 1)(inner.output))
    return keras.Model(inner.input, x)


@model
def one_output_before_the_pooling(keras: Any) -> Any:
    inner = chain(keras, keras.layers.Conv2D(4, 1))
    return keras.Model(inner.input, [inner.output, inner.layers[-2].output])


@model
def two_inputs_one_without_stem(keras: Any) -> Any:
    inner, other = chain(keras, end={"keepdims": True}), keras.Input((1, 1, 8))
    x = keras.layers.Add()([inner.layers[-2].output, other])
    return keras.Model([inner.input, other], keras.layers.GlobalAveragePooling2D()(x))
