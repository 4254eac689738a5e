"""Models that compute in half precision: files, rounding and targets go by their copies in float32."""

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.copies import half_policies
from kpipe.costs.file_size import measure_int8_bytes
from kpipe.costs.latency import measure_in_turns, time_layers
from kpipe.errors import ExportError
from kpipe.export import load_runtime
from kpipe.export.verify import compare
from kpipe.fake_quant import is_quantized

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8, 8, 1)).astype("float32")
SAID = r"computes in float32, and 'net' in mixed_float16"


@pytest.fixture(autouse=True)
def mixed_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture
def mixed(mixed_policy):
    layers = [L.Conv2D(8, 3, activation="relu", name="a"), L.Conv2D(8, 3, name="b"), L.BatchNormalization(name="n")]
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Flatten(), L.Dense(3, name="c")], name="net")


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_a_mixed_model_is_written_in_float32_and_agrees(mixed, suffix, tmp_path):
    with pytest.warns(UserWarning, match=f"The file {SAID}"):
        file = kpipe.export(mixed, tmp_path / f"m.{suffix}")
    assert file.precision == "float32" and file.agreement.max_relative_error < 1e-5
    assert kpipe.verify(file, mixed).max_relative_error < 1e-5, "no warning: nothing is written"
    other = keras.models.clone_model(mixed)
    with pytest.raises(ExportError, match="does not agree"):
        kpipe.verify(file, other)


def test_against_the_mixed_model_itself_the_file_would_not_agree(mixed, tmp_path):
    """Negative control: without the copy, halves are beyond the tolerance of 1e-4."""
    with pytest.warns(UserWarning, match=SAID):
        file = kpipe.export(mixed, tmp_path / "m.tflite")
    with load_runtime(file.path) as runtime:
        assert compare(runtime, mixed).max_relative_error > 1e-4


def test_weights_alone_are_rounded_of_the_copy(mixed, tmp_path):
    with pytest.warns(UserWarning, match=SAID):
        file = kpipe.export(mixed, tmp_path / "m.onnx", precision="int8_dynamic")
    assert kpipe.verify(file, mixed).max_relative_error < 1e-5


def test_a_cut_mixed_model_is_quantized_in_float32_and_written(mixed, tmp_path):
    small = kpipe.prune_filters(mixed, kpipe.plan_filters(mixed, 0.5))
    with pytest.warns(UserWarning, match=f"The quantized model {SAID}"):
        quantized = kpipe.quantize(small, calibration=X)
    assert is_quantized(quantized) and not half_policies(quantized)
    assert {layer.compute_dtype for layer in quantized._flatten_layers() if layer.weights} == {"float32"}
    assert kpipe.export(quantized, tmp_path / "q.tflite", data=X).precision == "int8"


def test_the_rounding_of_each_layer_is_measured_in_float32(mixed):
    with pytest.warns(UserWarning, match=SAID) as caught:
        found = kpipe.quantization_sensitivity(mixed, X)
    assert len(caught) == 1 and found.baseline < 1e-6
    assert {row.layer for row in found.layers} >= {"a", "b", "c"}


def test_a_float32_model_is_quantized_in_float32_whatever_policy_is_set():
    layers = [L.Dense(4, dtype="float32"), L.Dense(2, dtype="float32")]
    quantized = kpipe.quantize(keras.Sequential([keras.Input((8,)), *layers]), calibration=np.ones((2, 8)))
    assert not half_policies(quantized)


def test_targets_measure_the_copy(mixed):
    measure = measure_int8_bytes(mixed)
    with pytest.warns(UserWarning, match=f"The int8 file {SAID}"):
        whole = measure(mixed)
    assert measure(kpipe.prune_filters(mixed, kpipe.plan_filters(mixed, 0.5))) < whole
    with pytest.warns(UserWarning, match=f"The LiteRT file {SAID}"):
        in_turns = measure_in_turns(mixed)
    assert in_turns(mixed) > 0
    assert {"a", "b", "c"} <= set(time_layers(mixed))
