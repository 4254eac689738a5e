"""One layer, and files of it that answer with the same whole numbers as the quantized model, but for those named."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import kpipe
from kpipe.export import FORMATS
from kpipe.export.verify import predict
from kpipe.fake_quant import FakeQuant, QuantizedBias
from tests.models import randomised

X = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype("float32")
SAME = 2e-3
"""Fraction of values that may be a step away: a sum in another order falls on the other side of an edge."""


def flat(x):
    return L.Reshape((64, 4))(x)


def pair(x):
    return [x, L.Rescaling(0.7, 0.1)(x)]


def scores(x):
    return ops.matmul(flat(x), ops.transpose(flat(x), (0, 2, 1)))


NETS = {
    **{name: lambda x, name=name: L.Activation(name)(x) for name in "sigmoid tanh gelu silu hard_silu".split()},
    **{name: lambda x, name=name: L.Activation(name)(x) for name in "hard_sigmoid hard_tanh relu6 softmax".split()},
    "leaky_relu": lambda x: L.LeakyReLU(0.2)(x),
    "prelu": lambda x: L.PReLU(shared_axes=[1, 2], alpha_initializer="random_uniform")(x),
    "convolution": lambda x: L.Conv2D(8, 3)(x),
    "convolution_relu": lambda x: L.Conv2D(8, 3, activation="relu")(x),
    "convolution_norm": lambda x: L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, use_bias=False)(x))),
    "grouped": lambda x: L.Conv2D(8, 3, groups=2)(x),
    "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "transposed": lambda x: L.Conv2DTranspose(8, 3, strides=2)(x),
    "separable": lambda x: L.SeparableConv2D(8, 3)(x),
    "convolution_1d": lambda x: L.Conv1D(8, 3)(flat(x)),
    "dense": lambda x: L.Dense(8)(L.Flatten()(x)),
    "dense_places": lambda x: L.Dense(8)(x),
    "einsum": lambda x: L.EinsumDense("abd,dhe->abhe", output_shape=(None, 2, 8), bias_axes="he")(flat(x)),
    "norm": lambda x: L.BatchNormalization()(x),
    "normalization": lambda x: L.Normalization(mean=0.3, variance=1.7)(x),
    "add": lambda x: L.Add()(pair(x)),
    "subtract": lambda x: L.Subtract()(pair(x)),
    "multiply": lambda x: L.Multiply()(pair(x)),
    "maximum": lambda x: L.Maximum()(pair(x)),
    "average": lambda x: L.Average()(pair(x)),
    "concatenate": lambda x: L.Concatenate()(pair(x)),
    "mean": lambda x: L.GlobalAveragePooling2D()(x),
    "average_pooling": lambda x: L.AveragePooling2D(2)(x),
    "padded_average_pooling": lambda x: L.AveragePooling2D(3, 1, padding="same")(x),
    "max_pooling": lambda x: L.MaxPooling2D(2)(x),
    "upsampling": lambda x: L.UpSampling2D(2)(x),
    "bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
    "matmul": scores,
}
APART = {
    "leaky_relu": {"tflite": 0.06, "onnx": 0.006},
    "prelu": {"tflite": 0.02, "onnx": 0.006},
    "padded_average_pooling": {"tflite": 0.05, "onnx": 0.08},
    "maximum": {"tflite": 0.01, "onnx": 0.006},
    "bilinear": {"tflite": 0.06, "onnx": 0.1},
    "matmul": {"tflite": 0.01},
}
"""Net -> format -> the fraction that may be a step away: LiteRT multiplies by fewer bits there (slopes have 8), or what
lies in the middle between two levels is rounded another way, which is common where a grid stays."""


def quantized(name, scheme="int8"):
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:])
    return kpipe.quantize(randomised(keras.Model(x, NETS[name](x))), scheme, calibration=X)


def apart(made, form, folder):
    """Give how many steps each value of a file is away from the model's."""
    path = folder / f"net{FORMATS[form].suffix}"
    kpipe.export(made, path, data=X)
    with FORMATS[form].runtime(path) as runtime:
        (answers,) = runtime.run([X])
    low, high = [layer for layer in made.layers if isinstance(layer, FakeQuant)][-1].grid()
    return np.abs(answers - predict(made, [X])[0]) * 255 / (high - low)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("name", list(NETS))
def test_files_answer_with_the_same_whole_numbers(name, form, tmp_path):
    steps = apart(quantized(name), form, tmp_path)
    assert steps.max() < 1.01
    assert np.mean(steps > 0.5) <= APART.get(name, {}).get(form, SAME)


def test_a_bias_that_is_not_rounded_is_seen(tmp_path, monkeypatch):
    """With weights of 4 bits, whose products have a coarse grid."""
    made = quantized("convolution", "w4a8")
    assert np.mean(apart(made, "onnx", tmp_path) > 0.5) <= SAME
    monkeypatch.setattr(QuantizedBias, "call", lambda self, x, training=None: x)
    assert np.mean(apart(made, "onnx", tmp_path) > 0.5) > SAME
