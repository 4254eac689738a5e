"""A tiny zoo of models, one for each kind of graph that the contracts run over."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers as L

ZOO: dict[str, Callable[[], keras.Model]] = {}


def zoo(make: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Add a model to the zoo under its function's name."""
    ZOO[make.__name__] = make
    return make


@zoo
def dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12,), name="features"),
            L.Dense(16, activation="relu", name="hidden1"),
            L.Dropout(0.2, name="dropout"),
            L.Dense(10, name="hidden2"),
            L.LeakyReLU(negative_slope=0.1, name="leaky"),
            L.Dense(4, name="logits"),
        ],
        name="dense",
    )


@zoo
def conv_bn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((10, 10, 3), name="image"),
            L.Conv2D(8, 3, padding="same", use_bias=False, name="conv1"),
            L.BatchNormalization(name="bn1"),
            L.ReLU(name="relu1"),
            L.MaxPooling2D(name="pool1"),
            L.Conv2D(12, 3, activation="relu", name="conv2"),
            L.ZeroPadding2D(1, name="pad"),
            L.Cropping2D(((1, 0), (0, 1)), name="crop"),
            L.Flatten(name="flatten"),
            L.Dense(14, activation="relu", name="fc"),
            L.Dense(5, name="logits"),
        ],
        name="conv_bn",
    )


@zoo
def residual() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    stem = L.ReLU(name="stem_relu")(
        L.BatchNormalization(name="stem_bn")(L.Conv2D(8, 3, padding="same", name="stem")(image))
    )
    x = L.ReLU(name="a_relu")(L.BatchNormalization(name="a_bn")(L.Conv2D(10, 3, padding="same", name="a")(stem)))
    x = L.BatchNormalization(name="b_bn")(L.Conv2D(8, 3, padding="same", name="b")(x))
    x = L.ReLU(name="join_relu")(L.Add(name="join")([stem, x]))
    y = L.Conv2D(12, 1, strides=2, name="c")(x)
    z = L.Conv2D(12, 3, strides=2, padding="same", name="shortcut")(x)
    x = L.Maximum(name="max")([y, z])
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(image, L.Dense(5, name="logits")(x), name="residual")


@zoo
def concat() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    a = L.Conv2D(6, 3, padding="same", activation="relu", name="a")(image)
    b = L.Conv2D(8, 1, activation="relu", name="b")(image)
    x = L.Concatenate(name="cat1")([a, b])
    x = L.BatchNormalization(name="bn")(x)
    c = L.Conv2D(6, 3, padding="same", activation="relu", name="c")(x)
    x = L.Concatenate(name="cat2")([x, c, a])
    x = L.AveragePooling2D(2, name="pool")(x)
    x = L.UpSampling2D(name="up")(x)
    x = L.Conv2D(10, 3, name="d")(x)
    x = L.GlobalMaxPooling2D(name="gmp")(x)
    return keras.Model(image, L.Dense(5, name="logits")(x), name="concat")


@zoo
def depthwise() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = L.ReLU(6.0, name="stem_relu")(L.BatchNormalization(name="stem_bn")(x))
    x = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, name="dw")(x)
    x = L.ReLU(6.0, name="dw_relu")(L.BatchNormalization(name="dw_bn")(x))
    x = L.Conv2D(12, 1, use_bias=False, name="pw")(x)
    x = L.BatchNormalization(name="pw_bn")(x)
    x = L.SeparableConv2D(10, 3, padding="same", name="sep")(x)
    x = L.Activation("relu", name="sep_relu")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(image, L.Dense(5, name="logits")(x), name="depthwise")


@zoo
def grouped() -> keras.Model:
    image = keras.Input((8, 8, 4), name="image")
    x = L.Conv2D(12, 3, padding="same", activation="relu", name="stem")(image)
    x = L.Conv2D(18, 3, padding="same", groups=3, activation="relu", name="grouped")(x)
    x = L.Conv2D(18, 3, padding="same", groups=18, name="channelwise")(x)
    x = L.BatchNormalization(name="bn")(x)
    x = L.Conv2D(8, 1, activation="relu", name="mix")(x)
    x = L.Flatten(name="flatten")(x)
    return keras.Model(image, L.Dense(5, name="logits")(x), name="grouped")


@zoo
def se_block() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(12, 3, padding="same", name="conv")(image)
    x = L.ReLU(name="relu")(L.BatchNormalization(name="bn")(x))
    s = L.GlobalAveragePooling2D(name="squeeze")(x)
    s = L.Reshape((1, 1, 12), name="to_map")(s)
    s = L.Conv2D(6, 1, activation="relu", name="reduce")(s)
    s = L.Conv2D(12, 1, activation="sigmoid", name="expand")(s)
    x = L.Multiply(name="scale")([x, s])
    x = L.Conv2D(8, 3, activation="relu", name="head")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(image, L.Dense(5, name="logits")(x), name="se_block")


@zoo
def reshaped() -> keras.Model:
    code = keras.Input((6,), name="code")
    x = L.Dense(4 * 4 * 6, activation="relu", name="expand")(code)
    x = L.Reshape((4, 4, 6), name="to_map")(x)
    x = L.UpSampling2D(2, name="up")(x)
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="conv")(x)
    x = L.Reshape((64, 8), name="to_sequence")(x)
    x = L.Dense(9, activation="relu", name="per_step")(x)
    x = L.Flatten(name="flatten")(x)
    return keras.Model(code, L.Dense(3, name="logits")(x), name="reshaped")


@zoo
def nested() -> keras.Model:
    block = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            L.Conv2D(10, 3, padding="same", name="conv"),
            L.BatchNormalization(name="bn"),
            L.ReLU(name="relu"),
        ],
        name="block",
    )
    inner_in = keras.Input((8, 8, 10), name="inner_in")
    inner_out = L.Add(name="add")([inner_in, L.Conv2D(10, 3, padding="same", name="conv")(inner_in)])
    inner = keras.Model(inner_in, inner_out, name="inner")
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="conv")(image)
    x = inner(block(x))
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(image, L.Dense(4, name="logits")(x), name="nested")


@zoo
def siamese() -> keras.Model:
    """Two inputs through one shared tower, two outputs, one layer shared twice."""
    tower = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            L.GlobalAveragePooling2D(name="gap"),
            L.Dense(10, activation="relu", name="fc"),
        ],
        name="tower",
    )
    left, right = keras.Input((6, 6, 2), name="left"), keras.Input((6, 6, 2), name="right")
    shared = L.Dense(7, activation="relu", name="shared")
    a, b = shared(tower(left)), shared(tower(right))
    x = L.Average(name="average")([a, b])
    y = L.Concatenate(name="cat")([a, b])
    return keras.Model([left, right], [L.Dense(3, name="first")(x), L.Dense(2, name="second")(y)], name="siamese")


def build(name: str, seed: int = 0) -> keras.Model:
    """Make a zoo model with seeded weights; biases and norms are random too, so that no channel is neutral."""
    keras.utils.set_random_seed(seed)
    return randomised(ZOO[name](), seed)


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Draw the biases and norms of a model, in place; kernels stay."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if not variable.dtype.startswith("float"):
            continue
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.3, variable.shape))
    return model


def samples(model: keras.Model, count: int = 8, seed: int = 1) -> list[np.ndarray]:
    """Draw standard-normal inputs, and tokens from 0 to 4 for those of integers: one array an input of the model."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple, dtype: str) -> np.ndarray:
        return rng.integers(0, 5, shape) if "int" in dtype else rng.normal(0.0, 1.0, shape).astype("float32")

    return [draw((count, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
