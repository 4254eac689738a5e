"""How a file is called: names out of dicts, batches of one size or of any, loops written out."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError
from kpipe.export import FORMATS, inspect, load_runtime, read_metadata, verify
from kpipe.export.runtime import batches_of
from kpipe.export.signature import input_names, output_names
from kpipe.export.verify import predict
from tests.models import build, samples

SUFFIXES = [FORMATS[name].suffix[1:] for name in FORMATS]


def two_by_two() -> keras.Model:
    inputs = {"wide": keras.Input((3,), name="wide"), "deep": keras.Input((5,), name="deep")}
    joined = L.Concatenate(name="join")([inputs["wide"], inputs["deep"]])
    hidden = L.Dense(4, name="hidden")(inputs["deep"])
    return keras.Model(inputs, {"score": L.Dense(2, name="head")(joined), "kinds": [L.Dense(1)(hidden), hidden]})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_keys_of_dicts_are_the_names_in_the_file(suffix, tmp_path):
    model = two_by_two()
    assert input_names(model) == ["deep", "wide"] and output_names(model) == ["kinds_0", "kinds_1", "score"]
    rng = np.random.default_rng(0)
    data = {"wide": rng.normal(size=(6, 3)).astype("float32"), "deep": rng.normal(size=(6, 5)).astype("float32")}
    file = kpipe.export(model, tmp_path / f"m.{suffix}", data=data)
    assert file.agreement.max_relative_error < 1e-5
    expected = model(data)
    named = {"kinds_0": expected["kinds"][0], "kinds_1": expected["kinds"][1], "score": expected["score"]}
    for name, answer in by_name(file.path, data).items():
        np.testing.assert_allclose(answer, named.pop(name)[: len(answer)], atol=1e-5)
    assert not named


def by_name(path, data) -> dict[str, np.ndarray]:
    """Call a file by the names of its signature, without kpipe; LiteRT files on the first sample."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return {end.name: np.asarray(y) for end, y in zip(session.get_outputs(), session.run(None, data), strict=True)}
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return {name: np.asarray(answer) for name, answer in runner(**{key: x[:1] for key, x in data.items()}).items()}


def test_a_list_of_inputs_keeps_the_names_of_its_tensors():
    x, y = keras.Input((3,), name="x"), keras.Input((3,), name="y")
    model = keras.Model([x, y], [L.Add(name="sum")([x, y]), L.Subtract(name="rest")([x, y])])
    assert (input_names(model), output_names(model)) == (["x", "y"], ["sum", "rest"])
    with pytest.warns(UserWarning, match="must match the names"):
        model = keras.Model({"b": x, "a": y}, {"out": L.Add()([x, y])})
    assert (input_names(model), output_names(model)) == (["a", "b"], ["out"])


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("suffix", "batch", "quantized"),
    [("tflite", None, False), ("tflite", 4, False), ("tflite", None, True), ("tflite", 4, True), ("onnx", 4, False)],
)
def test_batches_of_one_size_and_of_any(suffix, batch, quantized, tmp_path):
    model = build("conv_bn")
    x = samples(model, 32)
    made: Any = kpipe.quantize(model, calibration=x[0]) if quantized else model
    file = kpipe.export(made, tmp_path / f"m.{suffix}", batch=batch)
    assert file.metadata["batch"] == batch == read_metadata(file.path)["batch"]
    with load_runtime(file.path) as runtime:
        assert runtime.inputs[0].shape[0] == batch
        reference = predict(made, x)[0]
        for count in (7, 1, 4):
            answer = runtime.run([array[:count] for array in x])[0]
            assert answer.shape[0] == count
            step = runtime.outputs[0].scale
            np.testing.assert_allclose(answer, reference[:count], atol=2.01 * step if step else 1e-5)
    assert verify(file, made).samples == 64
    assert kpipe.benchmark(file, runs=2).median_ms > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_size_that_a_format_has_of_its_own(suffix, tmp_path):
    file = kpipe.export(build("dense"), tmp_path / f"m.{suffix}")
    assert file.metadata["batch"] == (1 if suffix == "tflite" else None)


@pytest.mark.parametrize("batch", [0, -1, 2.0, True, "any"])
def test_sizes_that_are_none_are_refused(batch, tmp_path):
    with pytest.raises(ExportError, match="expected None for any size, or a whole number"):
        kpipe.export(build("dense"), tmp_path / "m.onnx", batch=batch)
    assert not list(tmp_path.iterdir())


def test_a_model_that_looks_across_the_batch_is_refused_where_that_is_open(tmp_path):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, x - keras.ops.mean(x, axis=0, keepdims=True))
    with pytest.raises(ExportError, match=r"Export with batch=1|does not agree"):
        kpipe.export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def recurrent(layer: Any) -> keras.Model:
    return keras.Sequential([keras.Input((3, 3), name="x"), layer, L.Dense(2, name="y")], name="steps")


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("suffix", "layer"),
    [
        ("tflite", L.LSTM(3)),
        ("onnx", L.LSTM(3)),
        ("onnx", L.GRU(3)),
        ("tflite", L.Bidirectional(L.SimpleRNN(2), merge_mode="sum")),
    ],
    ids=["lstm_tflite", "lstm_onnx", "gru_onnx", "bidirectional_tflite"],
)
def test_loops_and_written_out_steps_compute_the_same(suffix, layer, tmp_path):
    model = recurrent(layer)
    x = samples(model, 5)
    told = {}
    for unroll in (False, True):
        file = kpipe.export(model, tmp_path / f"{unroll}.{suffix}", unroll=unroll)
        told[unroll] = file.metadata["recurrent"]
        with load_runtime(file.path) as runtime:
            np.testing.assert_allclose(runtime.run(x)[0], predict(model, x)[0], atol=1e-5)
        loops = {"WHILE", "Loop", "LSTM", "Scan"} & {one.name for one in inspect(file.path).operations}
        assert bool(loops) != unroll
    assert told == {False: "loop", True: "unrolled"}
    assert not any(inner.unroll for inner in model._flatten_layers() if isinstance(inner, L.RNN))


def test_an_open_batch_needs_the_steps_written_out_in_litert(tmp_path):
    model = recurrent(L.LSTM(4))
    with pytest.raises(ExportError, match="with an open batch"):
        kpipe.export(model, tmp_path / "m.tflite", batch=None)
    assert not list(tmp_path.iterdir())
    assert kpipe.export(model, tmp_path / "m.tflite", batch=None, unroll=True).metadata["recurrent"] == "unrolled"


def test_there_must_be_steps_of_a_known_number_to_be_written_out(tmp_path):
    with pytest.raises(ExportError, match="no recurrent layer"):
        kpipe.export(build("dense"), tmp_path / "m.onnx", unroll=True)
    assert kpipe.export(build("dense"), tmp_path / "m.onnx").metadata["recurrent"] is None


def test_batches_are_filled_up_with_their_own_rows():
    x, y = np.arange(5), np.arange(5) * 10
    found = [([part.tolist() for part in batch], count) for batch, count in batches_of([x, y], 3)]
    assert found == [([[0, 1, 2], [0, 10, 20]], 3), ([[3, 4, 3], [30, 40, 30]], 2)]
