"""Models of Keras 2, written to files by tf_keras in a process of its own: `python old_models.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np

from tests.legacy import old_special_models, old_wrapped_models  # noqa: F401 they add their models to MODELS
from tests.legacy.old_writing import MODELS, prepare, saved_as, shaken, write


@saved_as("h5")
def convolutions():
    """Every convolution, pooling and padding, on several branches."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    image = Input((8, 8, 4), name="image")
    x = L.Conv2D(6, 3, padding="same", groups=2, activation="swish", name="stem/conv")(image)
    x = L.BatchNormalization(name="stem/bn", scale=False)(x)
    heads = [
        L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x),
        L.SeparableConv2D(5, 3, kernel_regularizer="l2", activation="elu")(x),
        L.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1)(x),
        L.UpSampling2D(2, interpolation="bilinear")(x),
        L.UpSampling2D(3)(x),
        L.ZeroPadding2D(((1, 2), (0, 1)))(L.Cropping2D(1)(x)),
        L.MaxPooling2D(3, 2, padding="same")(x),
        L.AveragePooling2D(3, 2, padding="same")(x),
        L.GlobalMaxPooling2D(keepdims=True)(x),
        L.LeakyReLU(0.2)(x),
        L.ThresholdedReLU(0.3)(x),
        L.PReLU(shared_axes=[1, 2])(x),
        L.ELU(0.7)(x),
        L.ReLU(2.0, negative_slope=0.1)(x),
        L.Softmax(axis=-2)(x),
        L.LayerNormalization(axis=[-1])(x),
        L.GroupNormalization(3)(x),
        L.UnitNormalization()(x),
        L.SpatialDropout2D(0.3)(x),
        L.GaussianNoise(0.3)(x),
        L.experimental.SyncBatchNormalization()(x),
        L.Resizing(5, 5)(x),
        L.RandomFlip()(L.RandomRotation(0.2)(x)),
        L.CenterCrop(4, 4)(x),
        L.Rescaling(0.5, offset=1.0)(x),
    ]
    y = L.Reshape((64, 6))(x)
    heads += [
        L.Conv1D(3, 3, padding="causal", dilation_rate=2)(y),
        L.Conv1DTranspose(3, 3, strides=2)(y),
        L.SeparableConv1D(4, 3)(y),
        L.DepthwiseConv1D(3, depth_multiplier=2)(y),
        L.ZeroPadding1D(2)(L.Cropping1D(3)(L.UpSampling1D(2)(y))),
        L.MaxPooling1D(2)(y),
        L.GlobalAveragePooling1D()(L.AveragePooling1D(2)(y)),
        L.Permute((2, 1))(y),
    ]
    z = L.Reshape((4, 4, 4, 6))(x)
    heads += [
        L.Conv3D(3, 2)(z),
        L.Conv3DTranspose(3, 2)(z),
        L.MaxPooling3D(2)(z),
        L.UpSampling3D(2)(z),
        L.GlobalAveragePooling3D()(L.ZeroPadding3D(1)(L.Cropping3D(1)(z))),
    ]
    return Model(image, heads)


@saved_as("keras")
def dense():
    """A Sequential with what dense layers are configured with."""
    import tf_keras
    from tf_keras import layers as L

    constraint = tf_keras.constraints.MaxNorm(2.0)
    return tf_keras.Sequential(
        [
            L.Dense(
                8, "gelu", input_shape=(6,), name="first", kernel_constraint=constraint, kernel_initializer="he_normal"
            ),
            L.BatchNormalization(),
            L.Dense(8, tf_keras.activations.hard_sigmoid, activity_regularizer="l1"),
            L.Dropout(0.5),
            L.Activation("softplus"),
            L.Dense(4, "selu", name="frozen", trainable=False, bias_regularizer=tf_keras.regularizers.L1L2(0.1, 0.2)),
            L.RepeatVector(3),
            L.EinsumDense("abc,cd->abd", output_shape=(3, 5), bias_axes="d"),
            L.Flatten(),
            L.Dense(3, "softmax", name="classes"),
        ],
        name="perceptron",
    )


@saved_as("h5")
def recurrent():
    """Recurrent layers, masked, stacked, both ways, with states that go from one to another."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    words, series = Input((None,), name="words"), Input((None, 3), name="series")
    x = L.Embedding(11, 4, mask_zero=True)(words)
    masked = L.Masking(0.0)(series)
    encoded, *states = L.LSTM(5, return_state=True, return_sequences=True)(x)
    cells = [L.LSTMCell(3), L.GRUCell(4, reset_after=False, recurrent_activation="hard_sigmoid")]
    ways = L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="ave")(masked)
    return Model(
        {"words": words, "series": series},
        {
            "decoded": L.LSTM(5, return_sequences=True, recurrent_activation="hard_sigmoid")(
                masked, initial_state=states
            ),
            "gru": L.GRU(3, reset_after=False, go_backwards=True, implementation=1)(masked),
            "plain": L.SimpleRNN(3, unroll=False, activation="relu")(encoded),
            "both": L.Bidirectional(L.LSTM(3), backward_layer=L.LSTM(3, go_backwards=True, activation="elu"))(x),
            "cells": L.RNN(cells, return_sequences=True)(masked),
            "pooled": L.GlobalAveragePooling1D()(ways),
            "timed": L.TimeDistributed(L.Dense(2, "relu"))(x),
        },
    )


@saved_as("keras")
def attention():
    """Attention of several kinds, with and without masks."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    words, image = Input((7,), dtype="int32", name="words"), Input((4, 4, 6), name="image")
    x = L.Embedding(9, 6, mask_zero=True)(words)
    both = L.MultiHeadAttention(2, 3, value_dim=4)(x, x, use_causal_mask=True)
    cross = L.MultiHeadAttention(3, 2, use_bias=False, output_shape=5, attention_axes=(1, 2))
    cross, scores = cross(image, image, return_attention_scores=True)
    x = L.LayerNormalization(epsilon=1e-6)(L.Add()([x, both]))
    return Model(
        [words, image],
        [
            x,
            scores,
            cross,
            L.Attention(use_scale=True)([x, both]),
            L.Attention(score_mode="concat")([x, both, x]),
            L.AdditiveAttention()([x, both]),
        ],
    )


@saved_as("h5")
def nested():
    """A model in a model in a model, called twice, and one that is called for each step."""
    from tf_keras import Input, Model, Sequential
    from tf_keras import layers as L

    shared = L.Dense(4, "tanh", name="shared")
    inner = Sequential([L.Dense(4, "relu", input_shape=(4,)), L.BatchNormalization()], name="inner")
    a, b = Input((4,), name="a"), Input((4,), name="b")
    tower = Model([a, b], [L.Concatenate()([inner(a), shared(b)]), L.Subtract()([inner(b), shared(a)])], name="tower")
    x = Input((4,))
    small = Model(x, L.Dense(2)(L.BatchNormalization()(x)), name="small")
    small.trainable = False
    left, right, steps = Input((4,), name="left"), Input((4,), name="right"), Input((3, 4), name="steps")
    first, second = tower([left, right]), tower([right, left])
    merged = [L.Dot(1)([first[0], second[0]]), L.Maximum()([first[1], second[1]]), L.Average()([left, right])]
    return Model(
        [left, right, steps], [*merged, L.Multiply()([left, right]), L.TimeDistributed(small, name="per_step")(steps)]
    )


@saved_as("tf")
def siamese():
    """Two calls of one model whose first layer is shared with its caller, with the outputs in a dict."""
    from tf_keras import Input, Model, Sequential
    from tf_keras import layers as L

    first = L.Conv1D(3, 2, name="first")
    tower = Sequential([Input((6, 2)), first, L.BatchNormalization(), L.Flatten(), L.Dense(4)], name="tower")
    left, right = Input((6, 2), name="left"), Input((6, 2), name="right")
    one, other = tower(left), tower(right)
    return Model({"l": left, "r": right}, {"distance": abs(one - other), "raw": first(left)}, name="siamese")


@saved_as("h5")
def operations():
    """Operations of TensorFlow between the layers."""
    import tensorflow as tf
    from tf_keras import Input, Model, backend
    from tf_keras import layers as L

    x, image, index = Input((4, 6), name="x"), Input((8, 8, 4), name="map"), Input((3,), dtype="int64", name="index")
    y = L.Dense(6)(x)
    return Model(
        [x, image, index],
        [
            (x + y) * 2.0 - 1.0 / (3.0 + x * x),
            abs(-x) ** 1.5 // 0.5,
            x[:, 1:, ::2] + x[:, 0, tf.newaxis, :3],
            x[..., -1],
            tf.reshape(x, [tf.shape(x)[0], 24]),
            tf.reshape(image, (-1, 64, tf.shape(image)[3])),
            tf.matmul(x, y, transpose_b=True),
            tf.concat([x, tf.stack([y[:, 0], y[:, 1]], axis=1)], axis=1),
            *tf.split(x, [1, 2, 3], axis=-1),
            tf.where(x > y, x, tf.zeros_like(y)),
            tf.reduce_mean(image, axis=[1, 2]) + tf.math.reduce_std(image, axis=[1, 2]),
            tf.nn.relu6(image) + tf.nn.leaky_relu(image, 0.1) + tf.nn.gelu(image) + tf.nn.silu(image),
            tf.nn.softmax(x, axis=1),
            tf.image.resize(image, (5, 12)),
            tf.nn.space_to_depth(image, 2),
            tf.pad(x, [[0, 0], [1, 2], [0, 0]], constant_values=3.0),
            tf.transpose(tf.expand_dims(x, 1), (0, 3, 1, 2)),
            tf.cast(tf.argmax(x, -1), "float32"),
            tf.gather(x, [2, 0], axis=1),
            tf.one_hot(index, 5),
            tf.clip_by_value(tf.exp(x), 0.2, 1.5),
            tf.nn.l2_normalize(x, -1) + tf.norm(x, axis=1, keepdims=True),
            tf.squeeze(tf.tile(x[:, :1], (1, 1, 2)), 1),
            tf.math.squared_difference(x, y) + tf.maximum(x, 0.3) + tf.sigmoid(y),
            tf.cumsum(x, axis=1),
            tf.math.top_k(x, 2)[0],
            tf.add_n([x, y, x]),
            backend.mean(x, axis=-1, keepdims=True) + backend.hard_sigmoid(x),
            tf.nn.bias_add(x, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ],
    )


@saved_as("keras")
def padded():
    """A transformer over padded words whose sums take no masks, as they are operations and no layers."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    words = Input((None,), dtype="int64", name="words")
    x = L.Embedding(9, 8, mask_zero=True)(words)
    attended, scores = L.MultiHeadAttention(2, 4, dropout=0.1, name="mha")(x, x, return_attention_scores=True)
    x = L.LayerNormalization()(x + attended)
    pooled = L.GlobalAveragePooling1D()(L.Add()([x, L.Dense(8, "gelu")(x)]))
    return Model(words, [L.Dense(3, "softmax")(pooled), scores])


@saved_as("keras", as_built=True)
def text():
    """Words that are looked up, alone and in sentences."""
    import tensorflow as tf
    from tf_keras import Input, Model
    from tf_keras import layers as L

    word, sentence = Input((2,), dtype="string", name="word"), Input((1,), dtype="string", name="sentence")
    lookup, back = L.StringLookup(vocabulary=["cat", "dog"]), L.StringLookup(vocabulary=["cat", "dog"], invert=True)
    vectorize = L.TextVectorization(output_mode="tf_idf")
    vectorize.adapt(tf.constant(["the cat sat", "the dog ran off", "Dogs!"]))
    found = lookup(word)
    return Model([word, sentence], [L.Embedding(4, 3)(found), vectorize(sentence), back(found)])


@saved_as("h5")
def features():
    """Numbers made ready: adapted, in bins, as categories."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    numbers, codes = Input((4,), name="numbers"), Input((1,), dtype="int32", name="codes")
    adapted = L.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(3.0, 2.0, (20, 4)))
    categories = L.CategoryEncoding(6, output_mode="one_hot")(L.IntegerLookup(vocabulary=[1, 3, 4])(codes))
    return Model(
        [numbers, codes],
        [
            adapted(numbers),
            L.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 2.0, 3.0, 4.0])(numbers),
            L.Discretization(bin_boundaries=[-0.5, 0.5])(numbers),
            categories,
            L.SpectralNormalization(L.Dense(3))(numbers),
            L.Hashing(5)(codes),
        ],
    )


def main(folder: str) -> None:
    prepare()
    import tensorflow as tf
    import tf_keras

    weights = shaken(tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))]))
    weights.save_weights(Path(folder) / "weights_alone.h5")
    tf.saved_model.save(tf.Module(), str(Path(folder) / "without_keras"))
    write(MODELS, folder)


if __name__ == "__main__":
    main(sys.argv[1])
