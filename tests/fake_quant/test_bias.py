"""Biases on the grid of the products: against naive integer arithmetic, and against the files of a deep network."""

import copy
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError
from kpipe.export import FORMATS
from kpipe.export.verify import predict
from kpipe.fake_quant import FakeQuant, QuantizedBias, bake
from kpipe.fake_quant.fold import multiplier_and_offset
from kpipe.fake_quant.layers import QuantizedWeights
from tests.models import randomised


def drawn(*shape):
    """Draw standard-normal inputs."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


PLACES = drawn(8, 5, 5, 3)


def grid_of(x):
    """Give the step and the level of 0 of the least grid of 256 levels, one of them 0, that holds all of `x`."""
    low, high = float(x.min()), float(x.max())
    return min((max(high / (255 - zero), -low / zero), zero) for zero in range(1, 255))


def integer_dense(x, kernel, bias, levels=127):
    """Compute a dense layer as an integer kernel does: whole numbers alone, then one product with the scales.

    Args:
        x: (n, in), on a grid of 8 bits from its least to its greatest value, widened to 0.
        kernel: (in, out).
        bias: (out,).
        levels: Greatest level of the weights.

    Returns:
        (n, out), in float64, not rounded to the output's grid.
    """
    step, zero = grid_of(x)
    scales = np.abs(kernel).max(axis=0) / levels
    inputs = np.clip(np.round(x / step) + zero, 0, 255) - zero
    sums = inputs @ np.round(kernel / scales) + np.round(bias / (step * scales))
    return sums * step * scales


def before_last_range(made, x):
    """Give what goes into the last range of a model."""
    return predict(keras.Model(made.inputs, made.layers[-1].input), [x])[0]


def net(*layers, shape=(6,)):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), *layers])
    return randomised(model)


@pytest.mark.parametrize(("scheme", "levels"), [("int8", 127), ("w4a8", 7)])
@pytest.mark.parametrize("with_norm", [False, True])
def test_a_dense_layer_adds_whole_numbers(scheme, levels, with_norm):
    x = drawn(64, 6)
    model = net(L.Dense(4, name="fc"), *([L.BatchNormalization()] if with_norm else []))
    made = kpipe.quantize(model, scheme, calibration=x)
    kernel, bias = (np.asarray(value, np.float64) for value in model.get_layer("fc").get_weights())
    if with_norm:
        multiplier, offset = multiplier_and_offset(model.layers[-1])
        kernel, bias = kernel * multiplier, bias * multiplier + offset
    expected = integer_dense(x.astype(np.float64), kernel, bias, levels)
    np.testing.assert_allclose(before_last_range(made, x), expected, atol=2e-6)
    step = grid_of(x)[0] * np.abs(kernel).max(axis=0) / levels
    unrounded = expected - np.round(bias / step) * step + bias
    assert np.abs(unrounded - expected).max() > 2e-5  # what a bias in float gives


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (L.BatchNormalization(), None),
        (L.Rescaling(0.4, -0.37), (0.4, -0.37)),
        (L.Normalization(mean=0.3, variance=1.7), (1.7**-0.5, -0.3 * 1.7**-0.5)),
    ],
    ids=["norm", "rescaling", "normalization"],
)
def test_what_scales_alone_adds_whole_numbers(layer, values):
    made = kpipe.quantize(net(layer, shape=(5, 5, 3)), calibration=PLACES)
    m, b = multiplier_and_offset(layer) if values is None else values
    step, zero = grid_of(PLACES)
    grid = step * np.abs(m) / 127
    expected = (np.round(PLACES / step + zero) - zero) * step * m + np.round(b / grid) * grid
    np.testing.assert_allclose(before_last_range(made, PLACES), expected, atol=2e-6)


def test_nothing_is_rounded_in_training_nor_without_a_bias():
    made = kpipe.quantize(net(L.Conv2D(4, 3), L.Conv2D(4, 3, use_bias=False), shape=(5, 5, 3)), calibration=PLACES)
    (layer,) = [layer for layer in made.layers if isinstance(layer, QuantizedBias)]
    low, high = next(one for one in made.layers if isinstance(one, FakeQuant)).grid()
    kernel, bias = made.layers[2].layer.get_weights()
    step = (high - low) / 255 * np.abs(kernel).max(axis=(0, 1, 2)) / 127
    sums = np.random.default_rng(0).integers(-(2**16), 2**16, (1, 3, 3, 4))
    y = (sums * step + bias + 0.3 * step).astype("float32")  # as far off as no order of adding brings it
    np.testing.assert_allclose(layer(y, training=False) / step, sums + np.round(bias / step), rtol=1e-6)
    np.testing.assert_array_equal(layer(y, training=True), y)
    assert not layer.weights


def test_a_layer_called_on_two_grids_has_a_bias_on_each():
    x, wide, shared = keras.Input((6,)), L.Rescaling(7.3), L.Dense(4)
    model = keras.Model(x, L.Concatenate()([L.ReLU()(shared(x)), shared(wide(x))]))
    randomised(model)
    made = kpipe.quantize(model, calibration=drawn(64, 6))
    found = [layer for layer in made.layers if isinstance(layer, QuantizedBias) and "dense" in layer.name]
    ends = [np.asarray(layer.rounding()) for layer in found]
    assert len(found) == 2 and not np.array_equal(*ends)
    (baked,) = [layer for layer in bake(made).layers if isinstance(layer, L.Dense)]
    np.testing.assert_array_equal(baked.bias, shared.bias)  # neither grid is right for both


def test_an_activation_within_the_layer_hides_no_bias():
    within, apart = net(L.Dense(4, "relu", name="fc")), net(L.Dense(4, name="fc"), L.ReLU())
    apart.set_weights(within.get_weights())
    made, behind = (kpipe.quantize(each, "w4a8", calibration=drawn(64, 6)) for each in (within, apart))
    assert len([layer for layer in made.layers if isinstance(layer, QuantizedBias)]) == 1
    np.testing.assert_array_equal(predict(made, [drawn(64, 6)])[0], predict(behind, [drawn(64, 6)])[0])


@pytest.mark.parametrize("copied", ["saved", "cloned", "deep"])
def test_a_copy_rounds_biases_too(copied, tmp_path):
    made = kpipe.quantize(net(L.Conv2D(4, 3), L.BatchNormalization(), shape=(5, 5, 3)), calibration=PLACES)
    if copied == "saved":
        made.save(tmp_path / "q.keras")
        again = keras.models.load_model(tmp_path / "q.keras")
    elif copied == "cloned":
        again = keras.models.clone_model(made)
        again.set_weights(made.get_weights())
    else:
        again = copy.deepcopy(made)
    np.testing.assert_array_equal(before_last_range(again, PLACES), before_last_range(made, PLACES))


def mobile_net():
    """Six depthwise separable blocks, which make much of little."""
    keras.utils.set_random_seed(1)
    y = x = keras.Input((16, 16, 3))
    for index in range(6):
        y = L.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = L.ReLU()(L.BatchNormalization()(y))
        y = L.Conv2D(16, 1, strides=2 if index in (1, 3) else 1, use_bias=False)(y)
        y = L.Activation(["relu", "silu", "hard_silu"][index % 3])(L.BatchNormalization()(y))
    model = keras.Model(x, L.Dense(5)(L.GlobalAveragePooling2D()(y)))
    randomised(model)
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(drawn(256, 16, 16, 3), training=True)
    return model


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", list(FORMATS))
def test_files_of_a_deep_network_answer_as_the_model_does(name, tmp_path, monkeypatch):
    model = mobile_net()
    x = drawn(128, 16, 16, 3)
    made = kpipe.quantize(model, calibration=x[:64])
    last = made.layers[-1]
    assert isinstance(last, FakeQuant)
    step = (last.grid()[1] - last.grid()[0]) / 255
    path = Path(tmp_path) / f"deep{FORMATS[name].suffix}"
    kpipe.export(made, path, data=x)
    with FORMATS[name].runtime(path) as runtime:
        (answers,) = runtime.run([x])
    apart = np.abs(answers - predict(made, [x])[0]).mean() / step
    monkeypatch.setattr(QuantizedBias, "call", lambda self, x, training=None: x)
    without = np.abs(answers - predict(made, [x])[0]).mean() / step
    assert apart < 0.1 < without


def test_kernels_have_a_greatest_weight_for_each_channel():
    layer = QuantizedWeights(L.DepthwiseConv2D(3, depth_multiplier=2))
    layer(PLACES)
    (kernel,) = layer.kernels()
    expected = np.abs(layer.layer.get_weights()[0]).max(axis=(0, 1)).reshape(-1)
    np.testing.assert_array_equal(np.asarray(layer.greatest(kernel)), expected)


@pytest.mark.parametrize("name", list(FORMATS))
def test_images_between_minus_one_and_one_are_rounded_alike(name, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 5, 5, 3))
    x = (pixels / 127.5 - 1).astype("float32")
    made = kpipe.quantize(net(L.Conv2D(4, 3), shape=(5, 5, 3)), calibration=x)
    path = Path(tmp_path) / f"pixels{FORMATS[name].suffix}"
    kpipe.export(made, path, data=x)
    with FORMATS[name].runtime(path) as runtime:
        (answers,) = runtime.run([x])
    low, high = made.layers[-1].grid()
    assert np.mean(np.abs(answers - predict(made, [x])[0]) > (high - low) / 510) < 1e-3


def test_a_norm_behind_two_axes_of_channels_stands_alone(tmp_path):
    x = drawn(32, 5, 4)
    model = net(L.EinsumDense("abc,cde->abde", (5, 2, 3)), L.BatchNormalization(), shape=(5, 4))
    made = kpipe.quantize(model, calibration=x)
    assert kpipe.export(made, tmp_path / "heads.tflite", data=x).agreement.max_steps < 1.01


def test_the_greatest_of_tokens_is_refused_by_name():
    tokens = keras.Input((6,), dtype="int32")
    y = keras.ops.max(keras.ops.cast(tokens, "float32"), axis=-1, keepdims=True)
    model = keras.Model(tokens, L.Dense(2)(y))
    with pytest.raises(KpipeError, match="lies on no grid"):
        kpipe.quantize(model, calibration=np.zeros((8, 6), "int32"))


def test_a_channel_of_next_to_nothing_is_its_offset():
    """The step of its products is less than what a float can be divided by."""
    model = net(L.Dense(4, use_bias=False, name="fc"), L.BatchNormalization(name="norm"), L.Dense(3, name="out"))
    kernel = model.get_layer("fc").get_weights()[0]
    kernel[:, 0] *= 1e-20
    gamma, beta, mean, variance = model.get_layer("norm").get_weights()
    gamma[0], beta[0], mean[0] = 1e-20, 0.5, 0.0
    model.get_layer("fc").set_weights([kernel])
    model.get_layer("norm").set_weights([gamma, beta, mean, variance])
    x = drawn(64, 6)
    made = kpipe.quantize(model, calibration=x)
    (behind,) = [one for one in made.layers if isinstance(one, QuantizedBias) and one.name != "out_bias"]
    found = np.asarray(keras.Model(made.inputs[0], behind.output)(x))
    np.testing.assert_allclose(found[:, 0], 0.5, rtol=1e-6)
    assert np.isfinite(found).all()
