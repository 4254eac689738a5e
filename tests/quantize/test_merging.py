"""What is written as several layers: sums of many tensors, hard sigmoids, activations of transposed convolutions."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import kpipe
from kpipe.export import inspect, load_runtime
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


def gated():
    """Gates by hard sigmoids, written in each way that Keras knows, and halves that gate each other."""
    x = keras.Input((4, 4, 3))
    y = L.Conv2D(4, 1, activation="hard_sigmoid", name="y")(x)
    by_layer = L.Activation("hard_sigmoid", name="by_layer")(L.Conv2D(4, 1, name="y_linear")(x))
    by_operation = ops.hard_sigmoid(L.Conv2D(4, 1, name="further")(y))
    left, right = ops.split(L.Conv2D(8, 1)(L.Multiply()([by_layer, by_operation])), 2, axis=-1)
    return keras.Model(x, L.Conv2D(2, 1, name="out")(L.ReLU(2.0, name="clip")(left + ops.sigmoid(right))))


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


@pytest.mark.sweep(2)
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("made", [merging, upsampling, gated])
def test_files_of_them_are_in_whole_numbers(made, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model = made()
    quantized = kpipe.quantize(model, calibration=images(), islands="refuse")
    expected = answers(model, images())
    assert 0 < np.abs(answers(quantized, images()) - expected).max() < 0.06 * np.abs(expected).max()
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images())
    assert file.precision == "int8" and not inspect(file).floats


def test_a_hard_sigmoid_is_a_rescaling_and_a_relu():
    keras.utils.set_random_seed(0)
    model = gated()
    apart = split(model)
    names = {layer.name for layer in apart.model.layers if isinstance(layer, (L.Rescaling, L.ReLU))}
    by_operation = next(name for name in names if name.startswith("hard_sigmoid"))  # Keras numbers it
    gates = {"y", "by_layer", by_operation.removesuffix("_rescaled")}
    assert names == {*gates, *(f"{gate}_rescaled" for gate in gates), "clip"}
    assert apart.origins["y_linear_1"] == "y" and apart.origins["y_linear"] == "y_linear"  # a name that was taken
    np.testing.assert_allclose(answers(apart.model, images()), answers(model, images()), atol=1e-5)
    gate, before = (
        answers(keras.Model(apart.model.input, apart.model.get_layer(name).output), 4 * images())
        for name in ("by_layer", "y_linear")
    )
    np.testing.assert_allclose(gate, np.clip(before / 6 + 0.5, 0, 1), atol=1e-6)
    assert gate.min() == 0 and gate.max() == 1


def test_what_holds_no_weights_is_told_no_bits():
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, L.Conv2D(2, 1, name="conv")(L.Activation("hard_sigmoid", name="gate")(x)))
    with pytest.raises(kpipe.errors.KpipeError, match=r"bits='gate' means no layer .*; those are: conv\."):
        kpipe.quantize(model, "w4a8", calibration=images(4), bits={"gate": 8})


@pytest.mark.sweep(2)
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("most", [6.0, 1.0])
def test_a_relu_that_ends_is_not_lost_where_its_values_are_copied_to_a_wider_grid(most, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 3))
    clipped, other = (L.ReLU(most)(10 * L.Conv2D(4, 1)(x)) for _ in range(2))  # each is taken once
    wide = L.Conv2D(4, 1, name="wide")(x) * 30
    model = keras.Model(x, [L.Concatenate()([L.MaxPooling2D(1)(clipped), wide]), L.Maximum()([other, wide])])
    quantized = kpipe.quantize(model, calibration=images(), islands="refuse")
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images())
    with load_runtime(file) as runtime:
        joined, greatest = runtime.run([images()])
        step = runtime.outputs[0].scale or np.ptp(joined) / 255
    assert joined[..., 4:].max() > 2 * most and greatest.max() > 2 * most
    assert most - step < joined[..., :4].max() <= most + step


def joined(branch):
    """What a branch gives is joined with an image that has a grid of its own."""
    x = keras.Input((4, 4, 3), name="x")
    y = branch(x)
    other = L.Reshape(y.shape[1:])(L.Conv2D(y.shape[-1], 1, name="other")(x)) if y.shape[1:-1] != (4, 4) else x
    return keras.Model(x, L.Dense(2, name="y")(L.Flatten()(L.Concatenate(name="join")([y, other]))))


BRANCHES = {
    "moved": (lambda x: L.Permute((2, 1, 3))(L.MaxPooling2D(1)(L.Conv2D(2, 1, name="conv")(x))), None, False),
    "five axes": (lambda x: L.Reshape((4, 4, 1, 2))(L.Conv2D(2, 1, name="conv")(x)), None, True),
    "left out": (lambda x: L.MaxPooling2D(1)(L.Conv2D(2, 1, name="conv")(x)), "conv", True),
}


@pytest.mark.filterwarnings("ignore:.* computes in float in ")
@pytest.mark.sweep(2)
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("case", BRANCHES)
def test_whole_numbers_alone_wait_for_the_grid_that_they_are_copied_to(case, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    branch, exclude, ranged = BRANCHES[case]
    quantized = kpipe.quantize(joined(branch), calibration=images(), exclude=exclude)
    assert ("conv_range" in {layer.name for layer in quantized.layers}) is ranged
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images())
    assert file.precision == "int8"


@pytest.mark.filterwarnings("ignore:.* computes in float in ")
@pytest.mark.sweep(2)
@pytest.mark.parametrize("exclude", ["conv", None])
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_only_what_is_joined_goes_to_the_grid_of_the_join(suffix, exclude, tmp_path):
    """What else takes the pooled values takes them as they are: on the grid of the wide image many would be one."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 3))
    y = L.MaxPooling2D(1)(L.Conv2D(2, 1, name="conv")(x))
    join = L.Concatenate()([L.Permute((2, 1, 3))(y), 30 * x])
    model = keras.Model(x, [L.Dense(2)(L.Flatten()(join)), L.Dense(3, name="other")(y)])
    quantized = kpipe.quantize(model, calibration=images(), exclude=exclude)
    low, high = quantized.get_layer("other_range").grid()
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images())
    assert file.precision == "int8"
    with load_runtime(file) as runtime:
        other = runtime.run([images()])[1]
    np.testing.assert_allclose(other, quantized.predict(images(), verbose=0)[1], atol=1.1 * (high - low) / 255)


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_one_half_of_what_is_split_may_be_joined_with_what_is_made_of_the_other(suffix, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 3))
    left, right = ops.split(L.Conv2D(8, 3, padding="same")(x), 2, axis=-1)
    model = keras.Model(x, L.Concatenate()([left, L.Conv2D(4, 3, padding="same")(right)]))
    file = kpipe.export(kpipe.quantize(model, calibration=images()), tmp_path / f"m.{suffix}", data=images())
    assert file.precision == "int8" and file.agreement is not None and file.agreement.max_steps < 1.1


def test_a_function_that_is_called_twice_takes_no_name_of_another(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 3))
    gate, other = (L.Activation("hard_sigmoid", name=name) for name in ("gate", "gate_1"))
    y = [layer(L.Conv2D(2, 1)(x)) for layer in (gate, gate, other)]
    quantized = kpipe.quantize(keras.Model(x, L.Dense(2)(L.Concatenate()(y))), calibration=images())
    for suffix in ("tflite", "onnx"):
        assert not inspect(kpipe.export(quantized, tmp_path / f"m.{suffix}", data=images()).path).floats


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


@pytest.mark.sweep(2)
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
