"""Networks for the recipes, made for the data's `input_shape` and `classes`; their layers have fixed names."""

from typing import Any

import keras
from keras import layers as L

from kpipe.errors import KpipeError


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


def lenet_300_100(input_shape: tuple[int, ...] = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Make the network of two hidden dense layers for 28x28 images: 266,610 parameters, logits out.

    Example:
        >>> lenet_300_100().count_params()
        266610

    References:
        LeCun et al., Gradient-based learning applied to document recognition (1998).
    """
    image = keras.Input(input_shape, name="image")
    x = L.Flatten(name="flat")(image)
    x = L.Dense(300, activation="relu", name="fc1")(x)
    x = L.Dense(100, activation="relu", name="fc2")(x)
    return keras.Model(image, L.Dense(classes, name="logits")(x), name="lenet_300_100")


def lenet_5(input_shape: tuple[int, ...] = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Make LeNet-5 in the size that Caffe gave it, which papers on pruning take: 431,080 parameters, logits out.

    Example:
        >>> lenet_5().count_params()
        431080

    References:
        LeCun et al., Gradient-based learning applied to document recognition (1998).
    """
    image = keras.Input(input_shape, name="image")
    x = L.MaxPooling2D(name="pool1")(L.Conv2D(20, 5, activation="relu", name="conv1")(image))
    x = L.MaxPooling2D(name="pool2")(L.Conv2D(50, 5, activation="relu", name="conv2")(x))
    x = L.Dense(500, activation="relu", name="fc1")(L.Flatten(name="flat")(x))
    return keras.Model(image, L.Dense(classes, name="logits")(x), name="lenet_5")


def resnet(
    input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, depth: int = 20, filters: int = 16
) -> keras.Model:
    """Make the residual network of three stages for 32x32 images; its shortcuts are 1x1 convolutions; logits out.

    Args:
        input_shape: (height, width, channels).
        classes: Number of logits.
        depth: 6 n + 2 for n blocks a stage: 20, 32, 56. At 20, and 16 filters: about 274,000 parameters.
        filters: Of the first stage; twice and four times as many in the others.

    Raises:
        KpipeError: For another depth.

    Example:
        >>> resnet().count_params(), sum(isinstance(layer, L.Conv2D) for layer in resnet().layers)
        (274042, 21)

    References:
        He et al., Deep residual learning for image recognition (2015), section 4.2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise KpipeError(f"Received depth={depth!r}; expected 6 n + 2 for n blocks a stage, such as 20, 32 or 56.")
    image = keras.Input(input_shape, name="image")
    x = _convolution(image, filters, "conv")
    for stage in range(3):
        for block in range(blocks):
            name, strides = f"stage{stage + 1}_{block + 1}", 2 if stage and not block else 1
            y = _convolution(x, filters * 2**stage, f"{name}_conv1", strides)
            y = L.Conv2D(filters * 2**stage, 3, padding="same", use_bias=False, name=f"{name}_conv2")(y)
            y = L.BatchNormalization(name=f"{name}_conv2_bn")(y)
            if strides > 1:
                x = L.Conv2D(filters * 2**stage, 1, strides=strides, use_bias=False, name=f"{name}_shortcut")(x)
                x = L.BatchNormalization(name=f"{name}_shortcut_bn")(x)
            x = L.ReLU(name=f"{name}_relu")(L.Add(name=f"{name}_add")([x, y]))
    x = L.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, L.Dense(classes, name="logits")(x), name=f"resnet{depth}")


def ds_cnn(input_shape: tuple[int, ...] = (61, 40), classes: int = 10, filters: int = 64) -> keras.Model:
    """Make a depthwise-separable network for spectrograms, shape (frames, bands): about 22,000 parameters, logits out.

    Example:
        >>> ds_cnn().count_params()
        22218

    References:
        Zhang et al., Hello Edge: keyword spotting on microcontrollers (2017).
    """
    spectrogram = keras.Input(input_shape, name="spectrogram")
    x = L.Reshape((*input_shape, 1), name="image")(spectrogram)  # (frames, bands) -> (frames, bands, 1)
    x = _convolution(x, filters, "conv", strides=2)
    for block in range(1, 5):
        x = L.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise{block}")(x)
        x = L.ReLU(name=f"depthwise{block}_relu")(L.BatchNormalization(name=f"depthwise{block}_bn")(x))
        x = L.Conv2D(filters, 1, use_bias=False, name=f"pointwise{block}")(x)
        x = L.ReLU(name=f"pointwise{block}_relu")(L.BatchNormalization(name=f"pointwise{block}_bn")(x))
    x = L.Dropout(0.2, name="dropout")(L.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(spectrogram, L.Dense(classes, name="logits")(x), name="ds_cnn")


def gru(input_shape: tuple[int, ...] = (29, 12), classes: int = 9, units: int = 64) -> keras.Model:
    """Make a network of two GRU layers for series, shape (steps, features): about 40,000 parameters, logits out.

    Example:
        >>> gru().count_params()
        40521
    """
    series = keras.Input(input_shape, name="series")
    x = L.GRU(units, return_sequences=True, name="gru1")(series)
    x = L.Dropout(0.3, name="dropout")(L.GRU(units, name="gru2")(x))
    return keras.Model(series, L.Dense(classes, name="logits")(x), name="gru")


def text_transformer(
    input_shape: tuple[int, ...] = (24,),
    classes: int = 7,
    vocabulary: int = 2000,
    width: int = 64,
    heads: int = 4,
    blocks: int = 3,
) -> keras.Model:
    """Make a transformer encoder for token ids, shape (tokens,): about 290,000 parameters, logits out.

    A convolution over three tokens tells the order; attention and a feed-forward part, each normalised before and added
    to what came in, follow in every block.

    Args:
        input_shape: (tokens,), integers below `vocabulary`.
        classes: Number of logits.
        vocabulary: Number of token ids.
        width: Of a token's vector; the feed-forward part is four times as wide.
        heads: Of each attention.
        blocks: How many of them.

    Example:
        >>> text_transformer().output_shape
        (None, 7)

    References:
        Vaswani et al., Attention is all you need (2017).
    """
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    x = L.Embedding(vocabulary, width, name="embedding")(tokens)
    x = L.Conv1D(width, 3, padding="same", name="order")(x)
    for block in range(1, blocks + 1):
        y = L.LayerNormalization(name=f"attention{block}_norm")(x)
        y = L.MultiHeadAttention(heads, width // heads, dropout=0.1, name=f"attention{block}")(y, y)
        x = L.Add(name=f"attention{block}_add")([x, y])
        y = L.LayerNormalization(name=f"feed{block}_norm")(x)
        y = L.Dense(4 * width, activation="gelu", name=f"feed{block}_wide")(y)
        y = L.Dropout(0.1, name=f"feed{block}_dropout")(L.Dense(width, name=f"feed{block}_narrow")(y))
        x = L.Add(name=f"feed{block}_add")([x, y])
    x = L.GlobalAveragePooling1D(name="mean")(L.LayerNormalization(name="norm")(x))
    return keras.Model(tokens, L.Dense(classes, name="logits")(x), name="text_transformer")


def _convolution(x: Any, filters: int, name: str, strides: int = 1) -> Any:
    x = L.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
    return L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))
