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
from kpipe.fake_quant import SCHEMES, FakeQuant, QuantizedWeights, bake, float_layers, scheme_of
from tests.models import build, samples

SUFFIXES = [FORMATS[name].suffix[1:] for name in FORMATS]
WEIGHTS_ONLY = [name for name in SCHEMES if SCHEMES[name].activations is None]
LEVELS = {"int8": 127, "int8_dynamic": 127}
"""Greatest level of a kernel."""
WORDS = {8: "int8", 16: "float16"}


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


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["conv_bn", "depthwise"])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "int8"])
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


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scheme", WEIGHTS_ONLY)
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


@pytest.mark.parametrize("scheme", WEIGHTS_ONLY)
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


def test_weights_that_no_scheme_has():
    x = keras.Input((4,))
    odd = keras.Model(x, QuantizedWeights(L.Dense(2), bits=3)(x))
    with pytest.raises(KpipeError, match="has weights of 3 bits; the schemes have"):
        scheme_of(odd)
    with pytest.raises(KpipeError, match="bits is 12; expected 2 to 8, or 16"):
        QuantizedWeights(L.Dense(2), bits=12)
