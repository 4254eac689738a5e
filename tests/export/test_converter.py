"""Float models that TensorFlow's converter rounds by name: as it does itself, held against the model, or refused."""

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import kpipe
from kpipe.errors import ExportError, KpipeError
from kpipe.export import Agreement, File, dissect, inspect, load_runtime, native, read_metadata
from kpipe.export.litert.compiled import CompiledRuntime
from kpipe.export.micro import c_array
from kpipe.export.tolerance import check
from kpipe.export.verify import signal_to_noise
from tests.models import build, samples

KINDS = {"int8": (tf.int8, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)}
KINDS["int16x8"] = (tf.int16, tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8)
BY_CONVERTER = {"method": "converter"}


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2), name="image")
    y = L.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)), name="net")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


X = drawn(48, 6, 6, 2)


def noise(file: File) -> Any:
    """Give the signal to noise that `export` measured; it always measures."""
    assert file.agreement is not None
    return file.agreement.signal_to_noise_db


def sequence(*layers: keras.Layer, shape: tuple[int, ...] = (4, 3)) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, name="x"), *layers], name="net")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files of the net in both precisions, and the net."""
    folder, model = tmp_path_factory.mktemp("written"), net()
    before = [np.array(weight) for weight in model.weights]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is in float, so nothing is to be said
        files = {
            kind: kpipe.export(model, folder / f"{kind}.tflite", kind, method="converter", calibration=X)
            for kind in KINDS
        }
    for weight, kept in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    return files, model


def by_hand(model: keras.Model, kind: str) -> bytes:
    """Call TensorFlow's converter as its own guide does."""
    dtype, kernels = KINDS[kind]
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([X[n : n + 1]] for n in range(len(X)))
    converter.target_spec.supported_ops = [kernels]
    converter.inference_input_type = converter.inference_output_type = dtype
    return converter.convert()


def run_by_hand(content: bytes, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Run a file in TensorFlow's own interpreter; give its answers and the step of their grid."""
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (step, middle) = taken["quantization"], given["quantization"]
    ends, rows = np.iinfo(taken["dtype"]), []
    for row in x:
        levels = np.clip(np.round(row / scale) + zero, ends.min, ends.max).astype(taken["dtype"])
        interpreter.set_tensor(taken["index"], levels[None])
        interpreter.invoke()
        rows.append((interpreter.get_tensor(given["index"])[0].astype(np.float64) - middle) * step)
    return np.stack(rows), step


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated", "ignore:Statistics for quantized inputs")
@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_are_those_of_the_converter_called_by_hand(kind, written):
    files, model = written
    expected, step = run_by_hand(by_hand(model, kind), X)
    with load_runtime(files[kind].path) as runtime:
        np.testing.assert_allclose(runtime.run([X])[0], expected, atol=2.01 * step)
        assert runtime.outputs[0].scale == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_file_says_what_it_is_and_is_whole(kind, written):
    file = written[0][kind]
    found, facts, dtype = inspect(file.path), read_metadata(file.path), KINDS[kind][0].name
    assert file.precision == found.precision == facts["precision"] == dissect(file.path).precision == kind
    assert (facts["method"], facts["scheme"]) == ("converter", None)
    assert (found.faults, found.floats, found.hybrids) == ((), (), 0)
    assert {"int8"} == {stored for stored, entries in found.stored if entries > 4}
    with load_runtime(file.path) as runtime:
        assert {port.dtype for port in (*runtime.inputs, *runtime.outputs)} == {dtype}
    assert file.agreement is not None and file.agreement.max_steps is None
    assert (file.agreement.source, file.agreement.samples) == ("data", len(X))  # the calibration samples
    assert noise(file) > 30


def test_sixteen_bits_are_nearer_than_eight_and_weights_take_as_much_room(written):
    files, _ = written
    eight, sixteen = (files[kind] for kind in KINDS)
    assert noise(sixteen) > noise(eight) + 2
    assert abs(sixteen.bytes - eight.bytes) < 500
    plain = kpipe.export(net(), eight.path.with_name("float.tflite"))
    assert read_metadata(plain.path)["method"] is None and noise(plain) is None


def test_inputs_outputs_batches_and_arrays_of_eight_bits(tmp_path):
    file = kpipe.export(
        net(), tmp_path / "m.tflite", "int16x8", X, io="float32", batch=4, calibration=X, **BY_CONVERTER
    )
    with load_runtime(file.path) as runtime:
        assert [(port.dtype, port.shape[0]) for port in (*runtime.inputs, *runtime.outputs)] == [("float32", 4)] * 2
        assert signal_to_noise(runtime.run([X])[0], np.asarray(net()(X))) > 30
    array = kpipe.export(net(), tmp_path / "n.tflite", "int8", X, c_array=True, calibration=X, **BY_CONVERTER)
    assert [path.name for path in array.beside] == ["n.cc", "n.h"]
    with pytest.raises(ExportError, match=r"computes in 16 bits with some of its operators only"):
        c_array(file.path.read_bytes(), "m")


class Refusing:
    """A buffer that takes no values."""

    def write(self, _: Any) -> None:
        raise ValueError("no such type")


def test_float_ends_are_advised_only_where_they_are_what_helps(written, monkeypatch):
    with pytest.raises(ExportError, match=r"do not take the inputs .* Export with io='float32', or run it in another"):
        CompiledRuntime(written[0]["int16x8"].path)
    CompiledRuntime(written[0]["int8"].path).close()  # the control
    real = native.litert_compiled

    def refusing(path: Any, threads: int) -> Any:
        model = real(path, threads)
        monkeypatch.setattr(type(model), "create_input_buffer_by_name", lambda *_: Refusing())
        return model

    monkeypatch.setattr(native, "litert_compiled", refusing)
    with pytest.raises(ExportError, match=r"no such type\. Run it in another engine"):
        CompiledRuntime(written[0]["int8"].path)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("factor", [0.1, 300.0])
def test_wrong_calibration_is_refused_and_leaves_nothing(kind, factor, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"old")
    wrong = {"data": X, "calibration": factor * X, **BY_CONVERTER}
    if (kind, factor) == ("int16x8", 300.0):  # the control: 16 bits have room for that
        assert noise(kpipe.export(net(), tmp_path / "n.tflite", kind, **wrong)) > 20
        return
    with pytest.raises(
        ExportError, match=rf"\({kind}\) does not agree .* dB (below|above) the scatter .* at least 20 dB"
    ):
        kpipe.export(net(), tmp_path / "m.tflite", kind, **wrong)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("m.onnx", {"precision": "int16x8"}, "int16x8 is written by method='converter' alone, .* into a .tflite file"),
        ("m.tflite", {"precision": "int16x8"}, "int16x8 is written by method='converter' alone"),
        ("m.onnx", {"precision": "int16x8", **BY_CONVERTER}, "method='converter' writes .tflite files; for onnx files"),
        ("m.onnx", {"precision": "int8", **BY_CONVERTER}, "call kpipe.quantize, and leave method out"),
        ("m.tflite", {"precision": "float16", **BY_CONVERTER}, "writes int8 or int16x8; received the precision 'float"),
        ("m.tflite", BY_CONVERTER, "writes int8 or int16x8; received the precision None"),
        ("m.tflite", {"precision": "int16x4", **BY_CONVERTER}, "Unknown precision .* Did you mean 'int16x8'"),
        ("m.tflite", {"precision": "int8", "method": "convertor"}, "Unknown method .* Did you mean 'converter'"),
        ("m.tflite", {"precision": "int8", "calibration": None, **BY_CONVERTER}, "needs calibration data"),
        ("m.tflite", {"method": "kpipe"}, "calibration is what method='converter' finds ranges on"),
        ("m.tflite", {"precision": "int8"}, "not quantized.* or let TensorFlow's converter round it: method="),
        ("m.tflite", {"precision": "w4a8"}, r"not quantized.*export what it gives\.$"),
        ("m.tflite", {"precision": "int16x8", "io": "int8", **BY_CONVERTER}, "expected 'float32' or 'int16'"),
        ("m.tflite", {"precision": "int16x8", "c_array": True, **BY_CONVERTER}, "c_array=True is not for int16x8"),
        ("m.tflite", {"precision": "int8", "io": "int16", **BY_CONVERTER}, "expected 'float32' or 'int8'"),
        ("m.tflite", {"precision": "int8", "calibration": X[:, :5], **BY_CONVERTER}, "calibration data .* expected"),
        ("m.tflite", {"precision": "int8", "calibration": X[:1], **BY_CONVERTER}, "one sample have no scatter"),
    ],
)
def test_what_does_not_go_together(name, given, why, tmp_path):
    with pytest.raises(KpipeError, match=why):
        kpipe.export(net(), tmp_path / name, **{"calibration": X, **given})
    assert not list(tmp_path.iterdir())


def test_quantized_models_are_refused_and_no_model_computes_in_sixteen_bits(tmp_path):
    quantized = kpipe.quantize(net(), calibration=X)
    with pytest.raises(ExportError, match="is quantized: its file is int8, and method='converter' rounds float models"):
        kpipe.export(quantized, tmp_path / "m.tflite", "int8", calibration=X, **BY_CONVERTER)
    with pytest.raises(KpipeError, match=r"kpipe\.export\(model, path, 'int16x8', method='converter'"):
        kpipe.quantize(net(), "int16x8", X)
    assert not list(tmp_path.iterdir())


def test_what_stays_in_float_is_named(tmp_path):
    model = sequence(L.Dense(6, name="first"), L.ELU(name="curve"), L.Dense(3, name="logits"), shape=(8,))
    with pytest.warns(
        UserWarning, match=r"int8 file of 'net' is not all whole numbers: ELU computes in float \(.*curve"
    ):
        file = kpipe.export(model, tmp_path / "m.tflite", "int8", calibration=drawn(64, 8), **BY_CONVERTER)
    assert [one.what for one in inspect(file.path).floats] == ["ELU computes in float"]
    with warnings.catch_warnings(), pytest.raises(UserWarning):  # who takes warnings for errors gets no file
        warnings.simplefilter("error")
        kpipe.export(model, tmp_path / "n.tflite", "int8", calibration=drawn(64, 8), **BY_CONVERTER)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]


def test_loops_are_refused_before_they_end_the_process_and_written_out_they_are_rounded(tmp_path):
    model, x = sequence(L.LSTM(4), L.Dense(2)), drawn(64, 4, 3)
    with pytest.raises(ExportError, match=r"cannot calibrate model 'net': its file has WHILE.*unroll=True"):
        kpipe.export(model, tmp_path / "m.tflite", "int8", calibration=x, **BY_CONVERTER)
    assert not list(tmp_path.iterdir())
    file = kpipe.export(model, tmp_path / "m.tflite", "int16x8", unroll=True, calibration=x, **BY_CONVERTER)
    assert noise(file) > 30 and not inspect(file.path).floats


def test_attention_with_a_mask_is_refused_and_a_softmax_over_the_middle_is_rounded(tmp_path):
    x = keras.Input((4, 6), name="x")
    keras.utils.set_random_seed(0)
    attended = L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    with pytest.raises(ExportError, match=r"dB (below|above) the scatter"):
        kpipe.export(
            keras.Model(x, attended), tmp_path / "m.tflite", "int8", calibration=drawn(64, 4, 6), **BY_CONVERTER
        )
    middle = sequence(L.Dense(4), L.Softmax(axis=1), L.Dense(3), shape=(5, 6))
    file = kpipe.export(middle, tmp_path / "s.tflite", "int8", calibration=drawn(64, 5, 6), **BY_CONVERTER)
    assert "SOFTMAX" in {one.name for one in inspect(file.path).operations} and not inspect(file.path).floats
    with pytest.warns(UserWarning, match="axis is 1"):  # what kpipe does with it
        kpipe.quantize(middle, calibration=drawn(64, 5, 6))


@pytest.mark.slow
def test_a_bias_on_the_grid_of_another_input_is_refused(tmp_path):
    model = build("siamese")
    x = [100 * each for each in samples(model, 48)]  # means of pixels hardly vary otherwise
    with pytest.raises(ExportError, match=r"The converter gave siamese.*shared.* a bias on the grid of another input"):
        kpipe.export(model, tmp_path / "m.tflite", "int16x8", calibration=x, **BY_CONVERTER)
    assert not list(tmp_path.iterdir())
    assert noise(kpipe.export(model, tmp_path / "m.tflite", "int8", calibration=x, **BY_CONVERTER)) > 20  # the control


def two_ranges(left: keras.layers.Layer, right: keras.layers.Layer) -> tuple[keras.Model, list[np.ndarray]]:
    """Give a model of two branches, and samples of which the second branch sees values ten times as great."""
    inputs = [keras.Input((5, 5, 2), name=name) for name in ("a", "b")]
    outputs = [left(inputs[0]), right(inputs[1])]
    return keras.Model(inputs, outputs, name="branches"), [drawn(48, 5, 5, 2), 10 * drawn(48, 5, 5, 2, seed=1)]


def convolution(kind: type, name: str, bias: float | None = None) -> keras.layers.Layer:
    start = "zeros" if bias is None else keras.initializers.Constant(bias)
    return kind(3, 3, bias_initializer=start, kernel_initializer=keras.initializers.GlorotUniform(len(name)), name=name)


@pytest.mark.slow
def test_a_shared_bias_of_a_transposed_convolution_is_refused_and_zeros_or_biases_apart_are_not(tmp_path):
    kind, by = L.Conv2DTranspose, {"precision": "int16x8", **BY_CONVERTER}
    shared = convolution(kind, "shared", 0.5)
    for left, right in ((shared, shared), (convolution(kind, "one", 0.5), convolution(kind, "second", 0.5))):
        model, x = two_ranges(left, right)
        with pytest.raises(ExportError, match="layers whose biases are equal, or one called on several inputs"):
            kpipe.export(model, tmp_path / "m.tflite", calibration=x, **by)
    for biases in ((None, None), (0.5, 0.25)):
        model, x = two_ranges(*(convolution(kind, *each) for each in zip(("one", "second"), biases, strict=True)))
        assert noise(kpipe.export(model, tmp_path / "m.tflite", calibration=x, **by)) > 25


def test_verify_holds_a_rounded_file_against_the_float_model(written):
    files, model = written
    found = kpipe.verify(files["int16x8"], model, X)
    assert found == files["int16x8"].agreement
    with pytest.raises(ExportError, match=r"is int16x8, and 'net' is a float model: .* Give data="):
        kpipe.verify(files["int16x8"], model)
    other = net()
    other.get_layer("conv").kernel.assign(-other.get_layer("conv").kernel)
    with pytest.raises(ExportError, match=r"dB (below|above) the scatter"):
        kpipe.verify(files["int16x8"], other, X)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated", "ignore:Statistics for quantized inputs")
def test_a_file_that_kpipe_rounded_is_not_held_by_the_looser_bar(written, tmp_path):
    files, model = written
    quantized = kpipe.quantize(model, calibration=X)
    own = kpipe.export(quantized, tmp_path / "own.tflite", data=X)
    with pytest.raises(ExportError, match=r"is int8 as kpipe rounded it, .* Give the quantized model"):
        kpipe.verify(own, model, X)
    with pytest.raises(ExportError, match=r"is int8 as TensorFlow's converter rounded it, .* Give the float model"):
        kpipe.verify(files["int8"], quantized, X)
    assert read_metadata(own.path)["method"] == "kpipe"
    assert kpipe.verify(own, quantized, X).max_steps is not None  # the controls
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(by_hand(model, "int8"))
    assert kpipe.verify(foreign, model, X).signal_to_noise_db == noise(files["int8"])


def test_the_noise_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    reference = rng.normal(3, 2, size=(50, 7)).astype("float32")
    answer = reference + rng.normal(0, 0.1, size=reference.shape).astype("float32")
    power = np.mean(np.square(answer - reference, dtype=np.float64), axis=0)
    expected = np.min(10 * np.log10(np.var(reference, axis=0, dtype=np.float64) / power))
    assert signal_to_noise(answer, reference) == pytest.approx(expected, abs=0.01)
    offset = 1000 * np.arange(7)  # columns far apart are no signal
    assert signal_to_noise(answer + offset, reference + offset) == pytest.approx(expected, abs=0.01)
    images = [array.reshape(10, 5, 7) for array in (answer, reference)]
    power = np.sum(np.mean(np.square(images[0] - images[1], dtype=np.float64), axis=0), axis=0)
    expected = np.min(10 * np.log10(np.sum(np.var(images[1], axis=0, dtype=np.float64), axis=0) / power))
    assert signal_to_noise(*images) == pytest.approx(expected, abs=0.01)
    assert signal_to_noise(reference, reference) == np.inf
    assert signal_to_noise(np.full_like(reference, np.nan), reference) == -np.inf
    assert signal_to_noise(answer, np.ones_like(reference)) == -np.inf
    assert signal_to_noise(answer[:, 0], reference[:, 0]) == signal_to_noise(answer[:, :1], reference[:, :1])


@pytest.mark.parametrize(
    ("small", "decibels"),
    [(1.0, 20.0), (0.5, 20 * np.log10(5)), (0.01, 10.0), (0.0, 40.0)],  # its own, a tenth of the greatest, not counted
)
def test_the_entry_with_the_most_noise_counts_by_its_own_variance_unless_that_is_little(small, decibels):
    sign = np.tile([[1.0], [-1.0]], (8, 1))
    reference, errors = sign * [1.0, small], np.tile([[0.01, 0.1], [-0.01, 0.1]], (8, 1))
    assert signal_to_noise(reference + errors, reference) == pytest.approx(decibels, abs=0.01)


def test_columns_on_a_grid_that_offsets_make_coarse_are_refused(tmp_path):
    model, x = sequence(L.Dense(2), shape=(4,)), drawn(64, 4)
    assert noise(kpipe.export(model, tmp_path / "m.tflite", "int8", calibration=x, **BY_CONVERTER)) > 30  # the control
    model.layers[-1].bias.assign([0.0, 1000.0])
    with pytest.raises(ExportError, match=r"dB (below|above) the scatter"):
        kpipe.export(model, tmp_path / "n.tflite", "int8", calibration=x, **BY_CONVERTER)


def test_the_tolerances_are_those_promised():
    good = {"max_relative_error": 0.5, "within_two_steps": None, "max_steps": None, "samples": 9, "source": "data"}
    check(Agreement(**good, argmax_agreement=0.9, signal_to_noise_db=20.0), "int16x8", "it")
    check(Agreement(**{**good, "source": "random"}, argmax_agreement=0.5, signal_to_noise_db=20.0), "int8", "it")
    for worse in ((0.89, 20.0), (1.0, 19.9), (1.0, float("-inf")), (1.0, float("nan"))):
        with pytest.raises(ExportError, match=r"it \(int8\) does not agree"):
            check(Agreement(**good, argmax_agreement=worse[0], signal_to_noise_db=worse[1]), "int8", "it")


@pytest.mark.parametrize(
    ("decibels", "said"),
    [
        (4.0, "lies 4.0 dB below the"),
        (-4.0, "lies 4.0 dB above the"),
        (float("-inf"), "not finite, or one of the model"),
    ],
)
def test_each_kind_of_noise_has_words(decibels, said):
    with pytest.raises(ExportError, match=said):
        check(Agreement(0.5, None, None, None, 9, "data", decibels), "int8", "it")
