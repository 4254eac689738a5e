"""Networks of kinds that many ship, as small as they can be: rows of the support matrix."""

import keras
import numpy as np
from keras import layers as L

SIDE, STEPS, WIDTH, WORDS = 16, 12, 16, 50


def unet() -> keras.Model:
    """Down by strides, up by transposed convolutions and upsampling, with residuals and skips."""
    x = keras.Input((SIDE, SIDE, 3))
    top = L.Conv2D(8, 3, padding="same", activation="relu")(x)
    down = L.ReLU()(L.BatchNormalization()(L.SeparableConv2D(16, 3, strides=2, padding="same")(top)))
    up = L.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(down)
    rough = L.UpSampling2D(2, interpolation="bilinear")(L.Conv2D(8, 1)(down))
    y = L.Concatenate()([L.Add()([up, rough, top]), top])
    return keras.Model(x, L.Conv2D(3, 3, padding="same", activation="softmax")(y))


def detector() -> keras.Model:
    """Two scales with leaky units, the coarse one brought up to the fine one; two outputs."""

    def unit(x, filters, strides=1):
        y = L.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        return L.LeakyReLU(0.1)(L.BatchNormalization()(y))

    x = keras.Input((SIDE, SIDE, 3))
    fine = unit(unit(x, 8, 2), 16, 2)
    coarse = unit(fine, 24, 2)
    brought = L.UpSampling2D(2)(L.Conv2D(8, 1)(coarse))
    return keras.Model(x, [L.Conv2D(6, 1)(coarse), L.Conv2D(6, 1)(unit(L.Concatenate()([brought, fine]), 16))])


def gated_convolutions() -> keras.Model:
    """Dilated causal convolutions with tanh and sigmoid gates, whose skips are added up."""
    x = keras.Input((4 * STEPS, 4))
    y, skips = L.Conv1D(WIDTH, 1)(x), []
    for rate in (1, 2, 4):
        parts = [
            L.Conv1D(WIDTH, 2, dilation_rate=rate, padding="causal", activation=name)(y) for name in ("tanh", "sigmoid")
        ]
        skips.append(L.Conv1D(WIDTH, 1)(L.Multiply()(parts)))
        y = L.Add()([y, skips[-1]])
    y = L.Conv1D(8, 1, activation="relu")(L.ReLU()(L.Add()(skips)))
    return keras.Model(x, L.Dense(5)(L.GlobalMaxPooling1D()(y)))


class Words(L.Layer):
    """Embeddings of tokens and of their positions, as tutorials write it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words, self.places = L.Embedding(WORDS, WIDTH), L.Embedding(STEPS, WIDTH)

    def call(self, tokens):
        return self.words(tokens) + self.places(np.arange(STEPS))


class Block(L.Layer):
    """Attention and two dense layers, each with a residual and a norm, as tutorials write it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(2, WIDTH // 2)
        self.feed = keras.Sequential([L.Dense(2 * WIDTH, activation="relu"), L.Dense(WIDTH)])
        self.norms = L.LayerNormalization(), L.LayerNormalization()

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x, use_causal_mask=True))
        return self.norms[1](x + self.feed(x))


def causal_transformer() -> keras.Model:
    """A language model of layers of its own, which `kpipe.functionalize` writes out; no step sees a later one."""
    import kpipe

    tokens = keras.Input((STEPS,), dtype="int32")
    return kpipe.functionalize(keras.Model(tokens, L.Dense(WORDS)(Block(name="block")(Words(name="words")(tokens)))))


def recurrent_attention() -> keras.Model:
    """A bidirectional LSTM whose states go on, and its steps weighed by their product with them."""
    x = keras.Input((STEPS, 6))
    steps, *states = L.Bidirectional(L.LSTM(8, return_sequences=True, return_state=True))(x)
    asked = L.Concatenate()([states[0], states[2]])
    weights = L.Softmax()(L.Dot(axes=(2, 1))([steps, asked]))
    return keras.Model(x, L.Dense(3)(L.Concatenate()([L.Dot(axes=(1, 1))([weights, steps]), asked])))


NETS = {make.__name__: make for make in (unet, detector, gated_convolutions, causal_transformer, recurrent_attention)}
"""Name -> the function that builds it."""
