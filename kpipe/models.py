"""Networks for the recipes, made for the data's `input_shape` and `classes`; their layers have fixed names."""

from typing import Any

import keras
from keras import layers as L


def digits_cnn(input_shape: tuple[int, ...] = (8, 8, 1), classes: int = 10) -> keras.Model:
    """Make a network of two stages of convolutions for 8x8 images: about 119,000 parameters, logits out.

    Example:
        >>> digits_cnn().output_shape
        (None, 10)
    """
    image = x = keras.Input(input_shape, name="image")
    x = _convolution(x, 32, "conv1")
    x = _convolution(x, 48, "conv2")
    x = L.MaxPooling2D(name="pool1")(x)
    x = _convolution(x, 64, "conv3")
    x = _convolution(x, 96, "conv4")
    x = L.GlobalAveragePooling2D(name="mean")(x)
    x = L.Dense(96, activation="relu", name="hidden")(x)
    return keras.Model(image, L.Dense(classes, name="logits")(x), name="digits_cnn")


def fashion_cnn(input_shape: tuple[int, ...] = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Make a network of strided convolutions for 28x28 images: about 420,000 parameters, logits out.

    Example:
        >>> 300_000 < fashion_cnn().count_params() < 600_000
        True
    """
    image = x = keras.Input(input_shape, name="image")
    x = _convolution(x, 32, "conv1", strides=2)
    x = _convolution(x, 64, "conv2")
    x = _convolution(x, 96, "conv3", strides=2)
    x = _convolution(x, 128, "conv4")
    x = _convolution(x, 160, "conv5", strides=2)
    x = L.GlobalAveragePooling2D(name="mean")(x)
    x = L.Dropout(0.3, name="dropout")(x)
    x = L.Dense(128, activation="relu", name="hidden")(x)
    return keras.Model(image, L.Dense(classes, name="logits")(x), name="fashion_cnn")


def _convolution(x: Any, filters: int, name: str, strides: int = 1) -> Any:
    x = L.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
    return L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))
