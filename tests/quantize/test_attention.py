"""Attention with masks, against Keras's own layers: the softmax in float, all that is multiplied in whole numbers."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import kpipe
from kpipe.errors import KpipeError
from kpipe.export import inspect, load_runtime
from kpipe.fake_quant import MaskedSoftmax, float_layers
from kpipe.quantize.attention import Attention
from kpipe.quantize.split import split
from tests.models import build

STEPS, WIDTH = 6, 8


def tokens(count=64, padded=True, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.integers(1, 20, (count, STEPS))
    for row, length in zip(found, rng.integers(2, STEPS + 1, count), strict=True):
        row[length:] = 0 if padded else row[length:]
    return found.astype("int32")


def states(count=64, seed=0):
    return np.random.default_rng(seed).normal(size=(count, STEPS, WIDTH)).astype("float32")


def causal():
    """Two blocks, in which no step sees a later one."""
    x = y = keras.Input((STEPS, WIDTH), name="x")
    for n in range(2):
        y = L.Add(name=f"add{n}")([y, L.MultiHeadAttention(2, 3, name=f"attend{n}")(y, y, use_causal_mask=True)])
    return keras.Model(x, L.Dense(3, name="y")(y)), states()


def padded():
    """Two blocks on tokens of which the zeros are padding, carried along as a mask, the first one causal too."""
    x = keras.Input((STEPS,), dtype="int32", name="x")
    y = L.Embedding(20, WIDTH, mask_zero=True, name="embed")(x)
    y = L.Add(name="add0")([y, L.MultiHeadAttention(2, 3, name="attend0")(y, y, use_causal_mask=True)])
    y = L.Add(name="add1")([y, L.MultiHeadAttention(2, 3, name="attend1")(y, y)])
    return keras.Model(x, L.GlobalAveragePooling1D(name="pool")(L.Dense(3, name="y")(y))), tokens()


def grouped():
    """Key and value heads for two query heads each, on tokens with padding, causal."""
    x = keras.Input((STEPS,), dtype="int32", name="x")
    y = L.Embedding(20, WIDTH, mask_zero=True, name="embed")(x)
    y = L.GroupQueryAttention(4, 4, 2, name="attend")(y, y, use_causal_mask=True)
    return keras.Model(x, L.Dense(3, name="y")(y)), tokens()


def crossed():
    """From states to the tokens of another input, with a mask as an input of its own and a key that is no value."""
    x = keras.Input((STEPS, WIDTH), name="x")
    words, mask = keras.Input((4,), dtype="int32", name="words"), keras.Input((STEPS, 4), name="mask")
    y = L.Embedding(20, WIDTH, mask_zero=True, name="embed")(words)
    y = L.MultiHeadAttention(2, 3, name="attend")(x, y, key=L.Dense(WIDTH, name="keys")(y), attention_mask=mask)
    given = np.random.default_rng(1).integers(0, 2, (64, STEPS, 4)).astype("float32")
    given[:, :, 0] = 1
    return keras.Model([x, words, mask], L.Dense(3, name="y")(y)), [states(), tokens()[:, :4], given]


CASES = {case.__name__: case for case in (causal, padded, grouped, crossed)}
HEAVY = [pytest.param(name, marks=pytest.mark.slow) for name in ("causal", "grouped", "crossed")]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),  # GroupQueryAttention's
    pytest.mark.filterwarnings("ignore:.* computes in float in:UserWarning"),
]


@pytest.fixture(params=CASES)
def case(request):
    keras.utils.set_random_seed(0)
    return CASES[request.param]()


def answers(model, data):
    return np.asarray(model.predict(data, verbose=0))


def test_taken_apart_it_is_the_same(case):
    model, data = case
    apart = split(model).model
    assert any(isinstance(layer, MaskedSoftmax) for layer in apart.layers)
    np.testing.assert_allclose(answers(apart, data), answers(model, data), atol=1e-5)


def test_a_lost_mask_would_be_seen(monkeypatch):  # the control of the one above
    keras.utils.set_random_seed(0)
    model, _ = padded()
    monkeypatch.setattr(Attention, "_weights", lambda self, scores, mask: self.softmax(scores))
    with pytest.raises(KpipeError, match=r"computes otherwise when the attention in 'attend0', 'attend1'"):
        split(model)


def test_only_a_mask_that_the_query_carries_counts_as_in_keras():
    keras.utils.set_random_seed(0)
    x, mask = keras.Input((STEPS, WIDTH)), keras.Input((STEPS,), dtype="bool")
    y = L.MultiHeadAttention(2, 3)(x, x, query_mask=mask, value_mask=mask)
    model = keras.Model([x, mask], y)
    data = [states(8), np.random.default_rng(0).random((8, STEPS)) < 0.7]
    np.testing.assert_allclose(answers(split(model).model, data), answers(model, data), atol=1e-5)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", [{"exclude": "attend"}, {"bits": {"attend": None}}])
def test_attention_is_left_in_float(how, causal, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((STEPS, WIDTH))
    y = L.MultiHeadAttention(2, 3, name="attend")(x, x, use_causal_mask=causal)
    model = keras.Model(x, L.Dense(3, name="y")(y))
    quantized = kpipe.quantize(model, calibration=states(), **how)
    expected = answers(model, states())
    assert np.abs(answers(quantized, states()) - expected).max() < 0.1 * np.abs(expected).max()
    for suffix in ("onnx", "tflite"):
        file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=states())
        assert file.precision == "int8"
        assert {"attend_query", "attend_value", "attend_key", "attend"} <= set(float_layers(quantized))
        assert inspect(file).floats


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_a_classifier_is_left_in_float(suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), L.Dense(6, "relu"), L.Dense(3, "softmax", name="classes")])
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    file = kpipe.export(kpipe.quantize(model, calibration=x, exclude="classes"), tmp_path / f"m.{suffix}", data=x)
    assert file.precision == "int8" and inspect(file).floats


def test_a_mask_of_another_value_than_zero_is_refused():
    x = keras.Input((STEPS, WIDTH))
    for value in (-1.0, 0.0):
        y = L.Masking(value, name="masking")(x)
        model = keras.Model(x, L.Dense(2)(L.MultiHeadAttention(2, 3)(y, y)))
        if value:
            with pytest.raises(KpipeError, match=r"'masking' .*-1.0, which need not lie on the grid"):
                kpipe.quantize(model, calibration=states())
            kpipe.quantize(model, "int8_dynamic")
        else:
            kpipe.quantize(model, calibration=states())


def padded_with(value):
    """Steps of which the last are padding, and most are not."""
    data = np.random.default_rng(0).normal(size=(64, STEPS, WIDTH)).astype("float32")
    data[::2, STEPS // 2 :] = value
    return data


MASKS = {
    "not equal": lambda x, value: ops.not_equal(x[:, :, 0], value),
    "greater": lambda x, value: ops.greater(x[:, :, 0], value),
    "any": lambda x, value: ops.any(ops.not_equal(x, value), axis=-1),
    "behind float": lambda x, value: ops.not_equal(ops.max(x, axis=-1), value),
    "close": lambda x, value: ops.logical_not(ops.isclose(x[:, :, 0], value)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_rounding_would_change_is_refused(name):
    keras.utils.set_random_seed(0)
    x = keras.Input((STEPS, WIDTH))
    for value in (-1.03, 0.0):
        mask = ops.expand_dims(MASKS[name](x, value), 1)
        model = keras.Model(x, L.Dense(2)(L.MultiHeadAttention(2, 3)(x, x, attention_mask=mask)))
        data = padded_with(value) if name != "greater" or value else np.abs(padded_with(value))
        if value:
            with pytest.raises(KpipeError, match=r"cannot be quantized: of the numbers .* rounding changes"):
                kpipe.quantize(model, calibration=data)
        else:
            expected, got = answers(model, data), answers(kpipe.quantize(model, calibration=data), data)
            assert np.abs(got - expected).mean() < 0.02 * np.abs(expected).max()


def test_each_call_of_what_compares_is_looked_at():
    keras.utils.set_random_seed(0)
    x, y, looked = keras.Input((STEPS, WIDTH)), keras.Input((STEPS, WIDTH)), keras.Input((STEPS, WIDTH))
    padding = keras.Model(looked, ops.cast(ops.equal(looked, -1.03), "float32"))
    model = keras.Model([x, y], L.Dense(2)(L.Concatenate()([padding(x), padding(y)])))
    with pytest.raises(KpipeError, match="rounding changes 100%"):
        kpipe.quantize(model, calibration=[padded_with(-1.03), padded_with(0.0)])


def test_a_threshold_that_hardly_a_number_lies_at_is_none():
    keras.utils.set_random_seed(0)
    x = keras.Input((STEPS, WIDTH))
    y = ops.where(ops.greater(L.Dense(4, "sigmoid")(x), 0.5), L.Dense(4)(x), 0.0)
    data = padded_with(0.5)
    model = keras.Model(x, L.Dense(2)(y))
    expected = answers(model, data)
    assert (
        np.abs(answers(kpipe.quantize(model, calibration=data), data) - expected).mean() < 0.05 * np.abs(expected).max()
    )


@pytest.mark.parametrize("merged", [False, True])
def test_tokens_may_be_compared_with_any_number(merged):
    keras.utils.set_random_seed(0)
    t = keras.Input((STEPS,), dtype="int32")
    compared = L.Minimum()([t, t]) if merged else t  # of which Keras says that it gives floats
    y = L.Embedding(20, WIDTH)(t)
    y = L.MultiHeadAttention(2, 3)(y, y, attention_mask=ops.expand_dims(ops.not_equal(compared, 3), 1))
    model, data = keras.Model(t, L.Dense(2)(y)), np.random.default_rng(0).integers(2, 5, (64, STEPS)).astype("int32")
    expected = answers(model, data)
    assert (
        np.abs(answers(kpipe.quantize(model, calibration=data), data) - expected).max() < 0.1 * np.abs(expected).max()
    )


def test_a_mask_that_is_lost_where_zeros_are_would_be_seen(monkeypatch):
    x = keras.Input((STEPS, WIDTH))
    mask = ops.expand_dims(ops.not_equal(x[:, :, 0], 0.0), 1)  # all true unless some inputs are 0
    model = keras.Model(x, L.MultiHeadAttention(2, 3, name="attend")(x, x, attention_mask=mask))
    np.testing.assert_allclose(answers(split(model).model, states()), answers(model, states()), atol=1e-5)
    monkeypatch.setattr(Attention, "_weights", lambda self, scores, mask: self.softmax(scores))
    with pytest.raises(KpipeError, match="computes otherwise when the attention in 'attend'"):
        split(model)


def test_no_warning_of_lost_masks():
    keras.utils.set_random_seed(0)
    x = keras.Input((STEPS,), dtype="int32")
    y = L.Dense(WIDTH)(L.Embedding(20, WIDTH, mask_zero=True)(x))
    model = keras.Model(x, L.Dense(2)(L.MultiHeadAttention(2, 3)(y, y)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kpipe.quantize(model, calibration=tokens())
    assert len(said) == 1 and "computes in float in" in str(said[0].message)


@pytest.mark.parametrize("name", ["padded", *HEAVY])
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_files_multiply_in_whole_numbers(name, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model, data = CASES[name]()
    quantized = kpipe.quantize(model, calibration=data)
    expected = answers(model, data)
    assert 0 < np.abs(answers(quantized, data) - expected).max() < 0.1 * np.abs(expected).max()
    file = kpipe.export(quantized, tmp_path / f"m.{suffix}", data=data)
    assert file.precision == "int8" and file.agreement is not None and file.agreement.max_steps is not None
    assert file.agreement.max_steps < 6.01
    found = inspect(file)
    products = [one for one in found.operations if one.name in ("BATCH_MATMUL", "FULLY_CONNECTED")]
    assert all(set(one.inputs) == {"int8"} for one in products)
    assert bool(products) == (suffix == "tflite")
    assert {type(quantized.get_layer(each)) for each in float_layers(quantized) if "attend" in each} == {MaskedSoftmax}


def test_no_step_of_a_file_sees_a_later_one(tmp_path):
    keras.utils.set_random_seed(0)
    model, data = causal()
    x, other = data[:8], data[:8].copy()
    other[:, -1] = data[8:16, -1]
    attended = keras.Input((STEPS, WIDTH))
    free = keras.Model(attended, L.MultiHeadAttention(2, 3)(attended, attended))
    for net, alike in ((model, True), (free, False)):  # without a mask, the control
        file = kpipe.export(kpipe.quantize(net, calibration=data), tmp_path / "m.tflite", data=data)
        with load_runtime(file) as runtime:
            one, two = (runtime.run([each])[0] for each in (x, other))
        assert np.array_equal(one[:, :-1], two[:, :-1]) == alike
        assert not np.array_equal(one[:, -1], two[:, -1])


def test_it_is_trained_and_saved(tmp_path):
    keras.utils.set_random_seed(0)
    model, data = padded()
    quantized = kpipe.quantize(model, calibration=data)
    quantized.compile("adam", "mse")
    loss = quantized.fit(data, np.zeros((len(data), 3)), epochs=2, verbose=0).history["loss"]
    assert loss[1] < loss[0]
    quantized.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(answers(again, data), answers(quantized, data))


def test_the_softmax_is_named():
    keras.utils.set_random_seed(0)
    model, data = causal()
    with pytest.warns(UserWarning, match="'attend0_masked_softmax': it takes a mask; 'attend1_masked_softmax'"):
        kpipe.quantize(model, calibration=data)
    with pytest.raises(KpipeError, match="attend0_masked_softmax"):
        kpipe.quantize(model, calibration=data, islands="refuse")
    kpipe.quantize(build("dense"), calibration=np.ones((4, 12), "float32"), islands="refuse")  # the control
