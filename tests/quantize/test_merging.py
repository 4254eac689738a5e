"""Layers that merge several tensors, and activations behind transposed convolutions: each is rounded for itself."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import kpipe
from kpipe.export import inspect
from kpipe.fake_quant import FakeQuant
from kpipe.quantize.split import split

MERGING = (L.Add, L.Multiply, L.Average, L.Maximum, L.Minimum)


def images(count=64):
    return np.random.default_rng(0).normal(size=(count, 4, 4, 3)).astype("float32")


def merging():
    x = keras.Input((4, 4, 3))
    parts = [L.Conv2D(2, 1, name=f"part{number}")(x) for number in range(3)]
    order = {L.Average: parts[::-1]}  # a sum that is there twice would be computed once
    merged = [cls(name=cls.__name__.lower())(order.get(cls, parts)) for cls in MERGING]
    return keras.Model(x, L.Concatenate(name="y")(merged))


def upsampling():
    x = keras.Input((4, 4, 3))
    y = L.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu", name="up")(x)
    y = L.BatchNormalization()(L.Conv2DTranspose(4, 3, strides=2, padding="same", name="further")(y))
    return keras.Model(x, L.Conv2D(2, 1, name="y")(L.ReLU(6.0, name="clip")(y)))


def answers(model, data):
    return np.asarray(model.predict(data, verbose=0))


def test_several_tensors_are_merged_two_by_two():
    keras.utils.set_random_seed(0)
    model = merging()
    apart = split(model)
    names = {layer.name for layer in apart.model.layers if isinstance(layer, MERGING)}
    assert names == {
        *("add_pair", "add", "multiply_pair", "multiply", "average_pair", "average_pair_1"),
        *("maximum_pair", "maximum", "minimum_pair", "minimum"),
    }
    assert apart.origins["average"] == apart.origins["average_pair"] == "average"
    a, b, c = (answers(keras.Model(model.input, model.get_layer(f"part{n}").output), images()) for n in range(3))
    expected = [a + b + c, a * b * c, (a + b + c) / 3, np.maximum(np.maximum(a, b), c), np.minimum(np.minimum(a, b), c)]
    np.testing.assert_allclose(answers(apart.model, images()), np.concatenate(expected, axis=-1), atol=1e-5)


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("made", [merging, upsampling])
def test_files_of_them_are_in_whole_numbers(made, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model = made()
    quantized = kpipe.quantize(model, calibration=images(), islands="refuse")
    expected = answers(model, images())
    assert 0 < np.abs(answers(quantized, images()) - expected).max() < 0.06 * np.abs(expected).max()
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images())
    assert file.precision == "int8" and not inspect(file).floats


def test_a_transposed_convolution_has_a_range_before_its_activation():
    """The control: a convolution has none, the runtimes compute its activation with it."""
    x = keras.Input((4, 4, 3))
    for cls, count in ((L.Conv2DTranspose, 3), (L.Conv2D, 2)):
        quantized = kpipe.quantize(keras.Model(x, cls(2, 3, activation="relu")(x)), calibration=images(4))
        assert sum(isinstance(layer, FakeQuant) for layer in quantized.layers) == count


def test_what_was_float_is_brought_to_the_grid_of_what_copies_it(tmp_path):
    """Two norms compute in float; one of them is rounded to a grid of its own, too, for the layer that it goes into."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 6))
    a, b = L.LayerNormalization(name="a")(x), L.LayerNormalization(name="b")(L.Dense(6)(x))
    model = keras.Model(x, [L.Dense(2)(L.Concatenate()([a, b])), L.Dense(2)(L.Maximum()([a, b])), L.Dense(2)(a)])
    data = np.random.default_rng(0).normal(size=(64, 4, 6)).astype("float32")
    with pytest.warns(UserWarning, match="computes in float in 'a'.*'b'"):
        quantized = kpipe.quantize(model, calibration=data)
    file = kpipe.export(quantized, tmp_path / "m.tflite", data=data)
    assert file.precision == "int8" and file.agreement is not None and file.agreement.max_steps <= 2


class MeanAdd(L.Add):
    """It merges otherwise than what it is a subclass of."""

    def _merge_function(self, inputs):
        return sum(inputs) / len(inputs)


def test_what_only_looks_like_a_sum_stays_whole_and_names_do_not_clash():
    x = keras.Input((3,))
    parts = [L.Dense(2)(x) for _ in range(3)]
    y = L.Add(name="add")(parts)
    y = L.Add(name="add_pair")([y, parts[0]])
    model = keras.Model(x, MeanAdd(name="mean")([y, *parts[1:]]))
    data = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    apart = split(model).model
    np.testing.assert_allclose(answers(apart, data), answers(model, data), atol=1e-5)
    assert {"add", "add_pair", "add_pair_1", "mean"} <= {layer.name for layer in apart.layers}


def test_a_layer_that_is_called_in_two_ways_stays_one():
    x, first = keras.Input((4, 3)), keras.Input((5,))
    lstm = L.LSTM(5)
    model = keras.Model([x, first], L.Add()([lstm(x), lstm(x, initial_state=[first, first])]))
    assert split(model).model.count_params() == model.count_params()


@pytest.mark.parametrize(
    "copy",
    [
        lambda a, b: ops.max(ops.stack([a, b], axis=1), axis=1),
        lambda a, b: ops.min(ops.stack([a, b], axis=-1), axis=-1),
        lambda a, b: ops.concatenate([a, b], axis=-1),
        lambda a, b: ops.concatenate([a, ops.maximum(a, b)], axis=-1),
    ],
    ids="stack stack_last concatenate maximum".split(),
)
def test_operations_that_copy_have_one_grid(copy, tmp_path):
    """The converter would take numbers of several grids for those of one."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    a, b = L.Dense(4)(x), 3.0 * L.Dense(4)(x)
    model = keras.Model(x, [L.Dense(2)(copy(a, b)), a, b])
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    for got, expected in zip(split(model).model(data), model(data), strict=True):
        np.testing.assert_array_equal(got, expected)
    quantized = kpipe.quantize(model, calibration=data, islands="refuse")
    for suffix in ("tflite", "onnx"):
        file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=data)
        assert file.agreement is not None and file.agreement.max_steps < 2.01
        assert not inspect(file).floats
