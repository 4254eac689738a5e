"""Better post-training quantization: its parts against naive NumPy, and what it is worth on small nets."""

import itertools
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError
from kpipe.export.verify import predict
from kpipe.fake_quant import QuantizedWeights
from kpipe.fake_quant.affine import channel_axes, on_grid
from kpipe.quantize.bias import correct_biases
from kpipe.quantize.calibrate import calibrate
from kpipe.quantize.rounding import Moments, adapt_rounding, on_best_levels
from kpipe.quantize.rows import grouped, rows_of, ungrouped
from kpipe.quantize.side_by_side import side_by_side
from tests.models import build, samples

NETS = ("conv_bn", "siamese")


def in_four_bits(model: keras.Model, x: Any) -> Any:
    made: Any = kpipe.quantize(model, calibration=x)
    for layer in made.layers:
        if isinstance(layer, QuantizedWeights):
            layer.bits = 4
    return calibrate(made, x if isinstance(x, list) else [x])


def off(made: keras.Model, model: keras.Model, x: list[np.ndarray]) -> float:
    """Give the mean squared difference of the outputs."""
    pairs = zip(predict(made, x), predict(model, x), strict=True)
    return float(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))


@pytest.mark.parametrize("name", NETS)
def test_both_runs_are_those_of_the_two_models(name):
    model = build(name)
    x = samples(model, 32)
    made = in_four_bits(model, x if len(x) > 1 else x[0])
    found = side_by_side(made, x, lambda *_: None)
    for pair, exact, rounded in zip(found, predict(model, x), predict(made, x), strict=True):
        np.testing.assert_allclose(pair.exact, exact, atol=1e-4)
        np.testing.assert_allclose(pair.rounded, rounded, atol=1e-4)
        assert np.abs(exact - rounded).max() > 1e-3


CASES = {
    "dense": (L.Dense(5), (7,)),
    "dense of a sequence": (L.Dense(5), (3, 7)),
    "conv": (L.Conv2D(6, 3, padding="same"), (7, 6, 4)),
    "strides": (L.Conv2D(6, (3, 2), strides=(2, 1), padding="same"), (7, 6, 4)),
    "dilated groups": (L.Conv2D(6, 3, dilation_rate=2, groups=2), (7, 6, 4)),
    "conv1d": (L.Conv1D(6, 3, strides=2, padding="same"), (9, 4)),
    "causal": (L.Conv1D(6, 3, dilation_rate=2, padding="causal"), (9, 4)),
    "depthwise": (L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2), (7, 6, 4)),
    "depthwise1d": (L.DepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
    "einsum": (L.EinsumDense("abc,cde->abde", output_shape=(3, 2, 5), bias_axes="de"), (3, 4)),
    "einsum over heads": (L.EinsumDense("abcd,cde->abe", output_shape=(3, 5), bias_axes="e"), (3, 2, 4)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_rows_times_matrices_are_what_the_layer_computes(name):
    layer, shape = CASES[name]
    x = tf.constant(np.random.default_rng(0).normal(size=(5, *shape)).astype("float32"))
    expected = np.asarray(layer(x))
    kernel = np.random.default_rng(1).normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    rows: Any = rows_of(layer, x, 10**9)
    found = np.einsum("rgi,gio->rgo", rows, grouped(layer, kernel))
    np.testing.assert_allclose(found.reshape(expected.shape), layer(x), atol=1e-4)
    np.testing.assert_array_equal(ungrouped(layer, grouped(layer, kernel)), kernel)
    assert np.abs(expected - np.asarray(layer(x))).max() > 0.1


def test_other_layers_are_no_rows():
    layer = L.EinsumDense("abc,dc->abd", output_shape=(3, 5))
    x = tf.zeros((2, 3, 4))
    layer(x)
    assert rows_of(layer, x, 10) is None
    assert rows_of(L.Conv2DTranspose(2, 3), tf.zeros((2, 3, 4, 1)), 10) is None
    assert len(rows_of(L.Dense(2), tf.zeros((100, 4)), 10)) == 10


def squared(weights: np.ndarray, found: np.ndarray, moments: Moments) -> np.ndarray:
    """Give E (w·x - w'·x')² for each channel, up to what does not depend on w', by loops over no trick."""
    (gram,), (cross,) = moments.gram, moments.cross
    return np.array(
        [f @ gram @ f - 2 * f @ cross @ w for w, f in zip(weights[0].T, found[0].T.astype("float64"), strict=True)]
    )


def test_levels_are_better_than_the_nearest_and_no_single_move_is_better():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1, 2)) @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(200, 1, 4))
    moments = Moments.of(x, x + 0.05 * rng.normal(size=x.shape), damping=0.0)
    weights = rng.normal(size=(1, 4, 6))
    weights[0, 1, :3] = 0.0
    found = on_best_levels(weights, moments, bits=3)
    exact = squared(weights, weights, moments)
    ours, theirs = (squared(weights, each, moments) - exact for each in (found, on_grid(weights, (0, 2), 3)))
    assert (ours < theirs + 1e-6).all()
    assert ours.mean() < 0.8 * theirs.mean()
    step = np.abs(found).max(1, keepdims=True) / 3
    best = np.full(6, np.inf)
    for levels in itertools.product(range(-3, 4), repeat=4):
        candidate = np.array(levels, "float64")[None, :, None] * step
        allowed = ((candidate == 0) | (weights != 0)).all(1)[0]
        error = squared(weights, candidate, moments) - exact
        best = np.where(allowed, np.minimum(best, error), best)
        moves = (np.abs(candidate - found) > 1e-6).sum(1)[0]
        keeps = (np.abs(candidate - found) < 1e-6)[0, np.abs(weights[0]).argmax(0), np.arange(6)]
        assert (error >= ours - 1e-6)[(moves == 1) & allowed & keeps].all()
    assert (ours < best + 1e-6).sum() >= 5
    assert (found[weights == 0] == 0).all()
    np.testing.assert_allclose(on_grid(found, (0, 2), 3), found, atol=1e-7)  # it is a grid that others find again


def test_a_corrected_bias_gives_back_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 1.0, (256, 6)).astype("float32")
    net = keras.Sequential([keras.Input((6,)), L.Dense(4, name="fc")])
    made = in_four_bits(net, x)
    before = np.abs(np.asarray(made(x)).mean(0) - np.asarray(net(x)).mean(0)).max()
    correct_biases(made, [x])
    step = (made.layers[-1].grid()[1] - made.layers[-1].grid()[0]) / 255
    after = np.abs(np.asarray(made(x)).mean(0) - np.asarray(net(x)).mean(0)).max()
    assert after < step / 2 < 0.02 < before


def test_a_batch_norm_takes_the_correction_where_there_is_one():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 1.0, (256, 6)).astype("float32")
    net: Any = keras.Sequential(
        [keras.Input((6,)), L.Dense(4, use_bias=False, name="fc"), L.BatchNormalization(name="n")]
    )
    made = in_four_bits(net, x)
    seen = made.get_layer(made.layers[1].name)(x)
    kernel = np.asarray(net.get_layer("fc").kernel)
    shift = (x @ kernel).mean(0) - (np.asarray(seen) @ on_grid(kernel, (1,), 4)).mean(0)
    correct_biases(made, [x])
    np.testing.assert_allclose(made.get_layer("n").moving_mean, -shift, atol=1e-5)
    assert np.abs(shift).max() > 0.01 and not np.asarray(net.get_layer("n").moving_mean).any()


@pytest.mark.parametrize("name", ("conv_bn", "dense"))
def test_each_way_brings_the_answers_nearer(name):
    model = build(name)
    x, fresh = samples(model, 128), samples(model, 64, seed=5)
    given = x if len(x) > 1 else x[0]
    plain = off(in_four_bits(model, given), model, fresh)
    assert off(adapt_rounding(in_four_bits(model, given), x), model, fresh) < 0.7 * plain
    assert off(correct_biases(in_four_bits(model, given), x), model, fresh) < 1.02 * plain


def test_blocks_change_no_move(monkeypatch):
    x = np.maximum(np.random.default_rng(0).normal(size=(300, 1, 40)), 0)
    moments, weights = Moments.of(x, x), np.random.default_rng(1).normal(size=(1, 40, 7))
    whole = on_best_levels(weights, moments, bits=4)
    monkeypatch.setattr(sys.modules["kpipe.quantize.rounding"], "BLOCK", 7)
    np.testing.assert_array_equal(on_best_levels(weights, moments, bits=4), whole)


def test_embeddings_and_layers_without_bias_are_taken_as_they_are():
    keras.utils.set_random_seed(0)
    layers = [L.Embedding(9, 4, name="words"), L.Dense(5, use_bias=False, name="fc"), L.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *layers, L.Dense(3, name="logits")])
    x = np.random.default_rng(0).integers(0, 9, (64, 6)).astype("int32")
    made = in_four_bits(model, x)
    plain, table = off(made, model, [x]), made.get_layer("words").get_weights()[0]
    assert off(adapt_rounding(made, [x]), model, [x]) < plain
    np.testing.assert_array_equal(made.get_layer("words").get_weights()[0], table)
    assert made.get_layer("fc").layer.bias is None


def test_adapted_kernels_keep_their_zeros_and_lie_on_the_grid_that_files_find():
    model = build("depthwise")
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, (L.Conv2D, L.Dense)):
            values = layer.get_weights()
            layer.set_weights([np.where(rng.random(values[0].shape) < 0.5, 0.0, values[0]), *values[1:]])
    x = samples(model, 64)
    made = adapt_rounding(in_four_bits(model, x[0]), x)
    held = 0
    for layer in made.layers:
        if isinstance(layer, QuantizedWeights):
            (kernel,) = layer.kernels()
            value, mask = np.asarray(kernel.variable), np.asarray(layer.masks[0])
            held += int((mask == 0).sum())
            assert (value[mask == 0] == 0).all()
            again = on_grid(value, channel_axes(kernel.layout, value.ndim), 4)
            np.testing.assert_allclose(again, value, atol=1e-6 * np.abs(value).max())
    assert held > 100


def levels_of(kernel: np.ndarray, axes: tuple[int, ...], bits: int) -> np.ndarray:
    """Give how often each level stands in a kernel, without its sign: folding a norm may turn a channel."""
    rest = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    step = np.abs(kernel).max(rest, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.bincount(np.abs(np.round(kernel / step)).astype(int).ravel(), minlength=128)


def stored(path: Any) -> list[np.ndarray]:
    """Give the 8-bit arrays of several axes that a file holds."""
    if path.suffix == ".onnx":
        import onnx
        from onnx import numpy_helper

        arrays = [numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer]
        return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    tensors = [one for one in model.subgraphs[0].tensors if one.type == schema.TensorType.INT8 and len(one.shape) > 1]
    data = [(one, model.buffers[one.buffer].data) for one in tensors]
    return [np.asarray(held, np.uint8).view(np.int8).reshape(one.shape) for one, held in data if held is not None]


def test_what_was_chosen_is_what_the_files_hold_bit_for_bit(tmp_path):
    model = build("conv_bn")
    x = samples(model, 64)[0]
    made: Any = kpipe.quantize(model, calibration=x, improve="adaptive_rounding")
    layer = made.get_layer("conv2")
    chosen = levels_of(np.asarray(layer.layer.kernel), (3,), 8)
    assert (chosen != levels_of(np.asarray(model.get_layer("conv2").kernel), (3,), 8)).any()
    for suffix in ("tflite", "onnx"):
        file = kpipe.export(made, tmp_path / f"m.{suffix}", data=x)
        (held,) = [array for array in stored(file.path) if array.size == layer.layer.kernel.numpy().size]
        np.testing.assert_array_equal(np.bincount(np.abs(held.astype(int)).ravel(), minlength=128), chosen)
    four: Any = kpipe.quantize(model, "w4a8", x, improve="adaptive_rounding")
    file = kpipe.export(four, tmp_path / "four.tflite", data=x)
    assert file.precision == "w4a8" and file.agreement.max_steps < 2.01
    four.compile("sgd", "mse")
    kernel = four.get_layer("conv2").layer.kernel.numpy()
    four.fit(x, predict(model, [x])[0], verbose=0)
    assert 0 < np.abs(four.get_layer("conv2").layer.kernel.numpy() - kernel).max() < 0.1


def test_quantize_improves_by_name_and_says_what_it_cannot():
    model = build("dense")
    x = samples(model, 64)[0]
    plain, better = (kpipe.quantize(model, "int4", x if improve else None, improve=improve) for improve in NAMES)
    assert off(better, model, [x]) < 0.7 * off(plain, model, [x])
    with pytest.raises(KpipeError, match=r"Unknown improvement 'adaround'.*adaptive_rounding, bias_correction"):
        kpipe.quantize(model, calibration=x, improve="adaround")
    with pytest.raises(KpipeError, match="needs calibration data"):
        kpipe.quantize(model, "int4", improve="adaptive_rounding")
    with pytest.raises(KpipeError, match="those of float16 are floats"):
        kpipe.quantize(model, "float16", x, improve="bias_correction")


NAMES = (None, "adaptive_rounding")
