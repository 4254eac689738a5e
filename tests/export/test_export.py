"""Files of both formats: they agree with the model, hold what they claim, and bad ones never take their place."""

import dataclasses
from typing import Any, cast

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError, KpipeError
from kpipe.export import FORMATS, Agreement, inspect, load_runtime, write
from kpipe.export import verify as verify_file
from kpipe.export.sizes import gzip_size, zstd_size
from kpipe.export.steps import Squashing, squashing_of, steps_apart
from kpipe.export.tolerance import check
from kpipe.export.verify import predict, relative_error, same_argmax
from kpipe.fake_quant import QuantizedWeights
from tests.models import ZOO, build, samples

SUFFIXES = [FORMATS[name].suffix[1:] for name in FORMATS]
WITHIN_TWO = {name: 2.01 for name in ZOO} | {"concat": 3.01}
"""Steps off at most. `concat` compares, pools and copies: a step at its branches is two or three at its logits."""


def plain(arrays):
    return arrays[0] if len(arrays) == 1 else arrays


def agreement(file) -> Any:
    """Give what `export` measured; it always measures."""
    assert file.agreement is not None
    return file.agreement


@pytest.fixture(scope="module")
def quantized():
    made = {}

    def get(name):
        if name not in made:
            model = build(name)
            made[name] = kpipe.quantize(model, calibration=plain(samples(model, 64)))
        return made[name]

    return get


@pytest.mark.sweep(3)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["conv_bn", "grouped", "nested", "siamese"])
def test_float_files_agree(name, suffix, tmp_path):
    model = build(name)
    file = kpipe.export(model, tmp_path / f"m.{suffix}")
    assert FORMATS[file.format].suffix == f".{suffix}"
    assert (file.precision, agreement(file).samples) == ("float32", 64)
    assert agreement(file).max_relative_error < 1e-5
    assert file.bytes == file.path.stat().st_size and file.gzip_bytes == gzip_size(file.path.read_bytes())
    assert file.zstd_bytes == zstd_size(file.path.read_bytes())
    with load_runtime(file.path) as runtime:  # an independent look: names, order and values
        assert [port.name for port in runtime.inputs] == [tensor.name for tensor in model.inputs]
        x = samples(model, 3, seed=9)
        for answer, reference in zip(runtime.run(x), predict(model, x), strict=True):
            np.testing.assert_allclose(answer, reference, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [f"m.{suffix}"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", list(ZOO))
def test_int8_files_agree_and_are_whole(name, suffix, quantized, tmp_path):
    model = quantized(name)
    file = kpipe.export(model, tmp_path / f"m.{suffix}", data=plain(samples(model, 200, seed=5)))
    assert file.precision == "int8"
    assert agreement(file).max_steps < WITHIN_TWO[name]
    found = inspect(file.path)
    assert (found.precision, found.faults) == ("int8", ())
    if suffix == "tflite":
        assert not any("float" in kind for o in found.operations for kind in (*o.inputs, *o.outputs))
    with load_runtime(file.path) as runtime:
        assert all(port.scale for port in runtime.outputs)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["conv_bn", "depthwise"])
def test_float16_is_smaller_and_agrees(name, tmp_path):
    model = build(name)
    half = kpipe.export(model, tmp_path / "half.tflite", precision="float16")
    assert half.precision == inspect(half.path).precision == "float16"
    assert 1e-6 < agreement(half).max_relative_error < 1e-2


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_file_of_another_precision_is_refused(stored, monkeypatch, tmp_path):
    form, wanted = FORMATS["tflite"], "float16" if stored == "float32" else "float32"

    def convert(model, precision, names, batch, io):
        return form.convert(model, stored, names, batch, io)

    monkeypatch.setattr(write, "format_of", lambda path: ("tflite", dataclasses.replace(form, convert=convert)))
    with pytest.raises(ExportError, match=f"to be {wanted} but is {stored}"):
        kpipe.export(build("dense"), tmp_path / "m.tflite", precision=wanted)
    assert not list(tmp_path.iterdir())


def test_inputs_and_outputs_keep_their_names_and_order(tmp_path):
    left, right = keras.Input((3,), name="z"), keras.Input((5,), name="a")
    outputs = [L.Dense(2, name="second.head")(right), L.Dense(4, name="first")(left)]
    model = keras.Model([left, right], outputs)
    for suffix in SUFFIXES:
        kpipe.export(model, tmp_path / f"m.{suffix}")
        with load_runtime(tmp_path / f"m.{suffix}") as runtime:
            assert [port.name for port in runtime.inputs] == ["z", "a"]
            assert [port.name for port in runtime.outputs] == ["second_head", "first"]


def test_exact_gelu_in_onnx(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="gelu"), L.Dense(3)])
    assert agreement(kpipe.export(model, tmp_path / "m.onnx")).max_relative_error < 1e-5


@pytest.mark.parametrize("name", ["conv_bn", "reshaped"])
def test_an_onnx_file_computes_no_shapes_that_are_known(name, tmp_path):
    file = kpipe.export(build(name), tmp_path / "m.onnx")
    assert "Gather" not in {operation.name for operation in inspect(file.path).operations}


def test_a_dictionary_of_inputs_and_outputs(tmp_path):
    inputs = {"wide": keras.Input((3,), name="wide"), "deep": keras.Input((5,), name="deep")}
    joined = L.Concatenate(name="join")([inputs["wide"], inputs["deep"]])
    model = keras.Model(inputs, {"y": L.Dense(2, name="y")(joined), "x": L.Dense(1, name="x")(joined)})
    for suffix in SUFFIXES:
        data = {"wide": np.ones((4, 3), "float32"), "deep": np.ones((4, 5), "float32")}
        assert agreement(kpipe.export(model, tmp_path / f"m.{suffix}", data=data)).samples == 4


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pruned_zeros_are_exact_zeros_in_the_file(suffix, tmp_path):
    model = build("conv_bn")
    rng = np.random.default_rng(0)
    layers: list[Any] = [layer for layer in model.layers if isinstance(layer, (L.Conv2D, L.Dense))]
    for layer in layers:
        kernel = layer.kernel.numpy()
        layer.kernel.assign(np.where(rng.random(kernel.shape) < 0.7, 0.0, kernel))
    made = kpipe.quantize(model, calibration=samples(model, 64)[0])
    file = kpipe.export(made, tmp_path / f"m.{suffix}")
    stored = stored_weights(file.path)
    for layer in made.layers:
        if isinstance(layer, QuantizedWeights):
            kernel = layer.kernels()[0].variable.numpy()
            levels = in_keras_order(stored, kernel, suffix)
            assert (levels[kernel == 0] == 0).all(), layer.name
            assert np.abs(levels).reshape(-1, kernel.shape[-1]).max(0).tolist() == [127] * kernel.shape[-1]
            assert np.mean(levels != 0) > 0.2  # the rest is there


def stored_weights(path) -> list[np.ndarray]:
    """Read all int8 constants with several axes from a file, without kpipe."""
    if path.suffix == ".onnx":
        import onnx

        tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
        return [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim > 1]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    weights = [
        detail for detail in interpreter.get_tensor_details() if len(detail["quantization_parameters"]["scales"]) > 1
    ]
    return [interpreter.get_tensor(detail["index"]) for detail in weights if detail["dtype"] == np.int8]


def in_keras_order(stored, kernel, suffix) -> np.ndarray:
    """Pick the constant of a kernel's shape and lay it out as Keras does: (h, w, in, out) or (in, out)."""
    if kernel.ndim == 4:
        axes = (2, 3, 1, 0) if suffix == "onnx" else (1, 2, 3, 0)  # from (out, in, h, w) or (out, h, w, in)
    else:
        axes = (0, 1) if suffix == "onnx" else (1, 0)
    (found,) = [each for each in stored if each.ndim == kernel.ndim and each.transpose(axes).shape == kernel.shape]
    return found.transpose(axes)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_other_weights_is_refused(suffix, quantized, tmp_path):
    for model in (build("dense"), quantized("dense")):
        file = kpipe.export(model, tmp_path / f"m.{suffix}")
        assert verify_file(file, model, data=samples(model, 100)[0]).source == "data"
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        kernel = next(v for v in other.trainable_variables if v.name == "kernel")
        kernel.assign(kernel.numpy() + 0.2)
        with pytest.raises(ExportError, match="does not agree"):
            verify_file(file, other)


def test_the_tolerances_are_those_promised():
    good = {"max_relative_error": 0.01, "argmax_agreement": 0.99, "samples": 100, "source": "data"}
    check(Agreement(within_two_steps=0.97, max_steps=6.0, **good), "int8", "it")
    for worse in (
        {"within_two_steps": 0.969, "max_steps": 6.0},
        {"within_two_steps": 1.0, "max_steps": 6.1},
        {"within_two_steps": 1.0, "max_steps": 1.0, "argmax_agreement": 0.98},
    ):
        with pytest.raises(ExportError, match=r"it \(int8\) does not agree"):
            check(Agreement(**{**good, **worse}), "int8", "it")
    check(Agreement(1e-4, None, None, None, 1, "random"), "float32", "it")
    for error in (1.1e-4, float("nan"), float("inf")):
        with pytest.raises(ExportError, match="relative error"):
            check(Agreement(error, None, None, None, 1, "random"), "float32", "it")


def test_measures_by_hand():
    a, b = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[1.0, 1.0], [4.0, 0.0]])
    assert relative_error(a, b) == 0.25
    assert steps_apart(a, b, 0.5).tolist() == [[0.0, 2.0], [2.0, 0.0]]
    assert same_argmax(a, b).tolist() == [True, True]  # a tie of the model may be settled either way
    assert same_argmax(a[:, ::-1], b).tolist() == [True, False]


def test_steps_before_a_function_by_hand():
    p, step = 0.3, 0.2
    raised = {  # what becomes of the function's value when what goes in grows by three steps
        0.0: 1 / (1 + (1 - p) / p * np.exp(-3 * step)),
        -1.0: np.tanh(np.arctanh(p) + 3 * step),
    }
    for low, value in raised.items():
        squashing = Squashing(low, (1 - low) / 256, step)
        found = steps_apart(np.array([value, low]), np.array([p, low]), squashing.grid, squashing)
        assert np.allclose(found, [3.0, 0.0])
        assert np.allclose(steps_apart(np.array([value]), np.array([p]), 0.5, squashing), (value - p) * 2)  # fewer
        wild = steps_apart(np.array([np.nan, np.inf, 5.0]), np.array([p, 1.0, 1.0]), squashing.grid, squashing)
        assert np.isnan(wild[0]) and np.isinf(wild[1]) and np.isclose(wild[2], 4 / squashing.grid)
        coarse = Squashing(low, squashing.grid, 100.0)  # from end to end twelve steps, be they as coarse as they may
        assert np.allclose(steps_apart(np.array([low]), np.array([1.0]), squashing.grid, coarse), 12.0)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "tanh"])
def test_behind_a_function_of_steep_logits_steps_are_those_of_the_logits(function, tmp_path):
    keras.utils.set_random_seed(0)
    wide = keras.initializers.RandomNormal(stddev=4.0)
    x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), L.Dense(3, function, kernel_initializer=wide, name="logits")])
    quantized = kpipe.quantize(model, calibration=x)
    file = kpipe.export(quantized, tmp_path / "net.tflite", data=x)
    with load_runtime(file) as runtime:
        (answer,), (port,) = runtime.run([x]), runtime.outputs
    squashing = squashing_of(quantized.outputs[0], port.scale)
    logits = x @ model.get_weights()[0]
    span = np.max(logits) - np.min(logits)
    assert squashing is not None and abs(squashing.step - span / 255) < 1e-3 and squashing.step > 0.1

    bias = next(weight for weight in quantized.weights if weight.path.endswith("bias"))
    bias.assign([squashing.step, 0.0, 0.0])
    assert steps_apart(answer, predict(quantized, [x])[0], port.scale).max() > 6  # of the output's own grid
    assert kpipe.verify(file, quantized).max_steps <= 2.5
    bias.assign([12 * squashing.step, 0.0, 0.0])
    with pytest.raises(ExportError, match="steps off, at most 6 are allowed"):
        kpipe.verify(file, quantized)


def test_a_file_without_the_function_or_of_another_net_is_no_file_of_it(tmp_path):
    wide = keras.initializers.RandomNormal(stddev=100.0, seed=0)
    x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")

    def net(function):
        return keras.Sequential([keras.Input((8,)), L.Dense(3, function, kernel_initializer=wide, name="logits")])

    squashed, bare = (kpipe.quantize(net(function), calibration=x) for function in ("softmax", None))
    kpipe.verify(kpipe.export(squashed, tmp_path / "net.tflite", data=x), squashed)
    wide = keras.initializers.RandomNormal(stddev=100.0, seed=1)
    other = kpipe.quantize(net("softmax"), calibration=x)
    for wrong in (bare, other):
        file = kpipe.export(wrong, tmp_path / "wrong.tflite", data=x)
        with pytest.raises(ExportError, match="does not agree"):
            kpipe.verify(file, squashed)


def test_precisions_that_cannot_be(quantized, tmp_path):
    model = build("dense")
    for made, suffix, precision, why in (
        (model, "tflite", "int8", "Call kpipe.quantize"),
        (quantized("dense"), "tflite", "float32", "is quantized"),
        (model, "tflite", "float61", "Did you mean 'float16'"),
    ):
        with pytest.raises(ExportError, match=why):
            kpipe.export(made, tmp_path / f"m.{suffix}", precision=precision)
    assert not list(tmp_path.iterdir())


def test_models_without_a_fixed_signature(tmp_path):
    class Own(keras.Model):
        def build(self, shape):
            self.inner = L.Dense(2)
            self.inner.build(shape)

        def call(self, x):
            return self.inner(x)

    own = Own()
    own(np.zeros((1, 3), "float32"))
    opened = keras.Sequential([keras.Input((None, 4), name="steps"), L.Dense(2)])
    for model, why in (
        ("m.keras", "Keras 3 model"),
        (keras.Sequential([L.Dense(2)]), "not built"),
        (own, "Functional"),
        (opened, "'steps' has an open size"),
    ):
        with pytest.raises(ExportError, match=why):
            kpipe.export(model, tmp_path / "m.tflite")


def test_targets_that_cannot_be_written(tmp_path):
    model = build("dense")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.onnx").mkdir()
    for path, why in (
        (tmp_path / "m.tflight", "Did you mean '.tflite'"),
        (tmp_path / "m", "Known: .tflite, .onnx"),
        (tmp_path / "file" / "m.tflite", "is a file"),
        (tmp_path / "folder.onnx", "is a folder"),
    ):
        with pytest.raises(ExportError, match=why):
            kpipe.export(model, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.onnx"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_refused_file_leaves_nothing_and_spares_what_was_there(suffix, monkeypatch, tmp_path):
    def refuse(*_):
        raise ExportError("refused")

    monkeypatch.setattr(write, "check", refuse)
    old = tmp_path / f"old.{suffix}"
    old.write_bytes(b"old")
    for path in (old, tmp_path / "new" / "deep" / f"m.{suffix}"):
        with pytest.raises(ExportError, match="refused"):
            kpipe.export(build("dense"), path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_int8_file_with_a_float_operation_is_refused(suffix, quantized, monkeypatch, tmp_path):
    from kpipe.fake_quant import FakeQuant, bake
    from kpipe.graph import replay

    def careless(model):
        """Bake, and lose the range behind the first dense layer."""
        baked = bake(model)
        return replay(
            baked,
            lambda site, *args, **kw: args[0] if site.path == "hidden1_relu_range" else site.operation(*args, **kw),
        )

    assert any(
        isinstance(layer, FakeQuant) and layer.name == "hidden1_relu_range" for layer in quantized("dense").layers
    )
    monkeypatch.setattr(write, "bake", careless)
    with pytest.raises(ExportError, match=r"float|not rounded"):
        kpipe.export(quantized("dense"), tmp_path / f"m.{suffix}")
    assert not list(tmp_path.iterdir())


def test_what_no_file_can_hold_is_refused_by_name(tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [x, L.Dense(2)(x)])
    with pytest.raises(ExportError, match=r"Output 'x' .*is an input as it came"):
        kpipe.export(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="'a b' is not a valid scope name"):
        kpipe.export(keras.Sequential([keras.Input((4,)), L.Dense(2, name="a b")]), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"unroll=True writes it out"):
        kpipe.export(keras.Sequential([keras.Input((5, 4)), L.GRU(2)]), tmp_path / "m.tflite", batch=None)
    with pytest.raises(ExportError, match="Received int for a path"):
        kpipe.export(build("dense"), cast(Any, 3))
    with pytest.raises(ExportError, match=r"metadata is \['a'\]; expected a mapping"):
        kpipe.export(build("dense"), tmp_path / "m.tflite", metadata=cast(Any, ["a"]))
    assert not list(tmp_path.iterdir())


def test_bad_data(tmp_path):
    with pytest.raises(KpipeError, match="verification data is empty"):
        kpipe.export(build("dense"), tmp_path / "m.tflite", data=np.zeros((0, 12), "float32"))
    assert not list(tmp_path.iterdir())
