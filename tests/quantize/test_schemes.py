"""The schemes: what each rounds, that a model knows its own, and that its files hold what it says and compute so."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError, KpipeError, NoEffectWarning
from kpipe.export import FORMATS, inspect, load_runtime, write
from kpipe.export.verify import predict
from kpipe.fake_quant import SCHEMES, FakeQuant, QuantizedWeights, bake, float_layers, scheme_of, wider_layers
from tests.models import build, samples

SUFFIXES = [FORMATS[name].suffix[1:] for name in FORMATS]
WEIGHTS_ONLY = [name for name in SCHEMES if SCHEMES[name].activations is None]
LEVELS = {"int8": 127, "int8_dynamic": 127, "w4a8": 7, "int4": 7}
"""Greatest level of a kernel."""
WORDS = {4: "int4", 8: "int8", 16: "float16"}


def rounded(model: keras.Model, scheme: str, **kwargs: Any) -> Any:
    x = samples(model, 64)
    given = {} if SCHEMES[scheme].activations is None else {"calibration": x if len(x) > 1 else x[0]}
    return kpipe.quantize(model, scheme, **given, **kwargs)


def by_hand(kernel: np.ndarray, scheme: str) -> np.ndarray:
    """Round a kernel (..., out): to halves, or to so many levels either side of 0 for each channel."""
    if scheme == "float16":
        return kernel.astype(np.float16).astype(np.float32)
    out = np.empty_like(kernel)
    for channel in range(kernel.shape[-1]):
        step = np.abs(kernel[..., channel]).max() / LEVELS[scheme]
        out[..., channel] = np.round(kernel[..., channel] / step) * step
    return out


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_weights_are_rounded_as_the_scheme_says_and_activations_if_it_does(scheme):
    model = keras.Sequential([keras.Input((12,)), L.Dense(7, use_bias=False, name="fc")])
    made = rounded(model, scheme)
    x = samples(model)
    expected = x[0] @ by_hand(model.get_layer("fc").kernel.numpy(), scheme)
    whole = SCHEMES[scheme].activations is not None
    assert any(isinstance(layer, FakeQuant) for layer in made.layers) == whole
    np.testing.assert_allclose(predict(made, x)[0], expected, atol=0.05 if whole else 1e-6)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_model_knows_its_scheme_after_save_and_load(scheme, tmp_path):
    made = rounded(build("conv_bn"), scheme)
    made.save(tmp_path / "q.keras")
    again: Any = keras.models.load_model(tmp_path / "q.keras")
    assert scheme_of(made) == scheme_of(again) == scheme
    assert scheme_of(build("conv_bn")) is None
    x = samples(made)
    np.testing.assert_array_equal(predict(again, x)[0], predict(made, x)[0])


def marked(values, quick):
    """Mark as slow what the fast suite leaves to the heavy sweep."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", marked(["conv_bn", "depthwise"], {"conv_bn"}))
@pytest.mark.parametrize("scheme", marked([name for name in SCHEMES if name != "int8"], {"w4a8"}))
def test_files_hold_what_the_scheme_says_and_agree(scheme, name, suffix, tmp_path):
    made = rounded(build(name), scheme)
    file: Any = kpipe.export(made, tmp_path / f"m.{suffix}")
    assert file.precision == scheme
    stored = inspect(file.path).stored
    for layer in made.layers:
        if isinstance(layer, QuantizedWeights):
            size = layer.kernels()[0].variable.numpy().size
            assert (WORDS[layer.bits], size) in stored and ("float32", size) not in stored
    if scheme in WEIGHTS_ONLY:
        exact = suffix == "onnx" and scheme != "float16"
        assert file.agreement.max_relative_error < (1e-5 if exact else 0.01 if scheme == "float16" else 0.03)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scheme", marked(WEIGHTS_ONLY, {"int8_dynamic"}))
def test_a_float_model_is_rounded_as_it_is_written(scheme, suffix, tmp_path):
    model = build("dense")
    file: Any = kpipe.export(model, tmp_path / f"m.{suffix}", precision=scheme)
    assert file.precision == inspect(file.path).precision == scheme
    if scheme != "float16":
        same = kpipe.export(rounded(model, scheme), tmp_path / f"same.{suffix}")
        with load_runtime(file.path) as one, load_runtime(same.path) as two:
            np.testing.assert_array_equal(one.run(samples(model)), two.run(samples(model)))
    kpipe.verify(file, model)
    other = keras.models.clone_model(model)  # its weights are drawn anew
    with pytest.raises(ExportError, match="does not agree"):
        kpipe.verify(file, other)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_lost_its_rounding_is_refused(suffix, monkeypatch, tmp_path):
    """Write in float what should hold whole numbers: nothing but the types in the file can tell."""
    made = rounded(build("dense"), "int8_dynamic")

    def other_kernels(model):
        baked: Any = bake(model)
        for layer in baked.layers:
            if layer.name == "hidden2":
                layer.kernel.assign(layer.kernel * np.random.default_rng(0).uniform(0.999, 1.001, layer.kernel.shape))
        return baked

    monkeypatch.setattr(write, "bake", other_kernels)
    with pytest.raises(ExportError, match="the weights of 'hidden2' are not stored as int8"):
        kpipe.export(made, tmp_path / f"m.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", marked(WEIGHTS_ONLY, {"int4"}))
def test_it_trains_and_keeps_zeros(scheme):
    model = build("dense")
    kernel = model.get_layer("hidden1").kernel
    pruned = np.random.default_rng(0).random(kernel.shape) < 0.6
    kernel.assign(np.where(pruned, 0.0, kernel.numpy()))
    x = samples(model, 64)[0]
    target = predict(model, [x])[0] + 1.0
    made = rounded(model, scheme)
    made.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    before = made.evaluate(x, target, verbose=0)
    made.fit(x, target, epochs=4, batch_size=16, verbose=0)
    assert made.evaluate(x, target, verbose=0) < before
    found = made.get_layer("hidden1").kernels()[0].variable.numpy()
    assert (found[pruned] == 0).all() and (found[~pruned] != kernel.numpy()[~pruned]).any()


def test_layers_whose_weights_stay_in_float_are_named(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 5)), L.Dense(8, name="fc"), L.ELU(name="elu"), L.LSTM(4, name="lstm"), L.Dense(3, name="out")]
    )
    with pytest.warns(UserWarning, match=r"keeps weights in float in 'lstm': no integer kernel is known for it\.$"):
        made = kpipe.quantize(model, "int8_dynamic", exclude="out")
    assert float_layers(made) == {"lstm": "no integer kernel is known for it", "out": "it was left out"}
    file = kpipe.export(made, tmp_path / "m.onnx")
    assert {dtype for dtype, _ in inspect(file.path).stored} == {"int8", "float32"}
    with pytest.raises(KpipeError, match=r"No integer kernels for 'lstm'"):
        kpipe.quantize(model, "int8_dynamic", islands="refuse")


def test_what_does_nothing_is_said():
    model = build("dense")
    with pytest.warns(NoEffectWarning, match="int8_dynamic leaves activations in float: .* calibration did nothing"):
        kpipe.quantize(model, "int8_dynamic", calibration=samples(model)[0])
    with pytest.raises(KpipeError, match="no layer whose weights int8_dynamic could round"):
        kpipe.quantize(keras.Sequential([keras.Input((3,)), L.ReLU()]), "int8_dynamic")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_levels_of_four_bits_are_stored_as_they_are(suffix, tmp_path):
    """Read the file without kpipe: two numbers a byte, -7 to 7, and scales of max|w| / 7."""
    model = keras.Sequential([keras.Input((9,)), L.Dense(5, name="fc")])
    kernel = model.get_layer("fc").kernel.numpy()
    for scheme in ("w4a8", "int4"):
        file = kpipe.export(rounded(model, scheme), tmp_path / f"{scheme}.{suffix}")
        levels, scales = four_bits(file.path)
        expected = np.abs(kernel).max(0) / 7
        np.testing.assert_allclose(scales, expected, rtol=1e-5)
        np.testing.assert_array_equal(levels, np.round(kernel / expected))


def four_bits(path) -> tuple[np.ndarray, np.ndarray]:
    """Give the 4-bit numbers (in, out) of a file's one kernel, and its scales."""
    if path.suffix == ".onnx":
        import onnx

        arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
        (levels,) = [array for array in arrays if array.dtype.name == "int4"]
        (scales,) = [array for array in arrays if array.dtype == np.float32 and array.size == levels.shape[1]][:1]
        return levels.astype(int), scales.reshape(-1)
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (tensor,) = [one for one in model.subgraphs[0].tensors if one.type == schema.TensorType.INT4]
    data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
    halves = np.stack([data & 15, data >> 4], 1).reshape(-1)[: int(np.prod(tensor.shape))].astype(int)
    return np.where(halves > 7, halves - 16, halves).reshape(tensor.shape).T, np.asarray(tensor.quantization.scale)


@pytest.mark.slow
def test_four_bits_take_half_the_room_of_eight(tmp_path):
    model = keras.Sequential([keras.Input((200,)), L.Dense(300, name="fc")])
    for suffix in SUFFIXES:
        sizes = {
            scheme: kpipe.export(rounded(model, scheme), tmp_path / f"{scheme}.{suffix}").bytes
            for scheme in ("int8", "w4a8", "int8_dynamic", "int4")
        }
        for eight, four in (("int8", "w4a8"), ("int8_dynamic", "int4")):
            assert abs(sizes[eight] - sizes[four] - 200 * 300 / 2) < 600


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scheme", marked(["w4a8", "int4"], {"w4a8"}))
def test_each_layer_may_have_bits_of_its_own(scheme, suffix, tmp_path):
    made = rounded(build("conv_bn"), scheme, bits={"conv2": 8, "logits": None}, exclude="conv1")
    found = {layer.name: layer.bits for layer in made.layers if isinstance(layer, QuantizedWeights)}
    assert found == {"conv2": 8, "fc": 4} and scheme_of(made) == scheme
    assert set(float_layers(made)) == {"conv1", "logits"}
    file = kpipe.export(made, tmp_path / f"m.{suffix}", data=samples(made, 64)[0])
    kinds = {size: dtype for dtype, size in inspect(file.path).stored}
    # conv1 has 3·3·3·8 weights, conv2 3·3·8·12, fc 4·4·12·14, logits 14·5
    assert [kinds[size] for size in (216, 864, 2688, 70)] == ["float32", "int8", "int4", "float32"]


def test_the_fewest_bits_name_the_scheme():
    assert scheme_of(rounded(build("dense"), "int8", bits={"hidden2": 4})) == "w4a8"
    assert scheme_of(rounded(build("dense"), "int8_dynamic", bits={"hidden2": 4})) == "int4"
    assert scheme_of(rounded(build("dense"), "int8", bits={"hidden2": None})) == "int8"


@pytest.mark.parametrize(
    ("scheme", "given", "why"),
    [
        ("int8", {"nothing": 4}, r"bits='nothing' means no layer .*: hidden1, hidden2, logits"),
        ("int8", {"(": 4}, r"bits is '\(', which is no regular expression"),
        ("int8", {"logits": 5}, "bits of 'logits' is 5; expected 4, 8 or None"),
        ("int8", {"logits": True}, "bits of 'logits' is True"),
        ("int8", {}, "bits is {}; expected expressions"),
        ("float16", {"logits": 8}, "beside float16 weights can only stay in float"),
        ("int8", {"hidden": 4, "hidden2": 8}, "'hidden2' 8 bits, and another expression 4"),
    ],
    ids=["no layer", "no expression", "five", "truth value", "empty", "halves", "contradiction"],
)
def test_bits_that_cannot_be(scheme, given, why):
    with pytest.raises(KpipeError, match=why):
        rounded(build("dense"), scheme, bits=given)


def test_layers_without_a_kernel_of_four_bits_keep_eight_and_are_named(tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), L.Conv2D(4, 3, name="conv"), L.Conv2DTranspose(5, 3, strides=2, name="up")]
    )
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32")
    with pytest.warns(UserWarning, match=r"keeps weights of 8 bits in 'up': no runtime has an integer kernel"):
        made = kpipe.quantize(model, "w4a8", x)
    assert list(wider_layers(made)) == ["up"]
    for suffix in SUFFIXES:
        file = kpipe.export(made, tmp_path / f"m.{suffix}", data=x)
        assert {("int4", 108), ("int8", 180)} <= set(inspect(file.path).stored)
    with pytest.raises(KpipeError, match="No layer would have weights of 4 bits, as w4a8 says"):
        kpipe.quantize(model, "w4a8", x, exclude="conv")
    with pytest.raises(KpipeError, match="bits of 'up' is 4; no runtime has an integer kernel"):
        kpipe.quantize(model, "int8", x, bits={"up": 4})


@pytest.mark.parametrize("scheme", marked(["int8", "w4a8"], {"int8"}))
def test_files_in_whole_numbers_take_and_give_floats_where_asked(scheme, tmp_path):
    made = rounded(build("dense"), scheme)
    x = samples(made, 40, seed=5)
    whole, floats = (kpipe.export(made, tmp_path / f"{io}.tflite", io=io) for io in (None, "float32"))
    assert floats.precision == inspect(floats.path).precision == scheme
    with load_runtime(whole.path) as one, load_runtime(floats.path) as two:
        assert {port.dtype for port in (*one.inputs, *one.outputs)} == {"int8"}
        assert {port.dtype for port in (*two.inputs, *two.outputs)} == {"float32"}
        assert two.outputs[0].scale == one.outputs[0].scale
        np.testing.assert_allclose(two.run(x)[0], one.run(x)[0], atol=1e-6)
    assert floats.agreement.max_steps is not None
    assert kpipe.verify(floats, made, data=x[0]).within_two_steps > 0.97


def test_inputs_and_outputs_that_cannot_be(tmp_path):
    made = rounded(build("dense"), "int8")
    for model, suffix, io, why in (
        (made, "onnx", "int8", "onnx files take and give float32, whatever they compute in"),
        (build("dense"), "tflite", "int8", "Files in float32 take and give float32"),
        (made, "tflite", "uint8", "io is 'uint8'; expected 'float32' or 'int8'"),
    ):
        with pytest.raises(ExportError, match=why):
            kpipe.export(model, tmp_path / f"m.{suffix}", io=io)
    assert not list(tmp_path.iterdir())
    assert kpipe.export(made, tmp_path / "m.onnx", io="float32").precision == "int8"


def test_weights_that_no_scheme_has():
    x = keras.Input((4,))
    odd = keras.Model(x, QuantizedWeights(L.Dense(2), bits=3)(x))
    with pytest.raises(KpipeError, match="has weights of 3 bits; the schemes have"):
        scheme_of(odd)
    with pytest.raises(KpipeError, match="bits is 12; expected 2 to 8, or 16"):
        QuantizedWeights(L.Dense(2), bits=12)
