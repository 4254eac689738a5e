"""A weight that is not finite is named, wherever it shows; and where the data is at fault, that is said."""

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.checks import broken_in, broken_weights, not_finite
from kpipe.errors import ExportError, KpipeError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("float32"), RNG.integers(0, 3, 64)
CULPRIT = r"^Weight 'a/kernel' holds 1 value that is not finite \(NaN or infinity\)\. Train the model again, or load"


def net():
    layers = [L.Dense(16, "relu", name="a"), L.Dense(16, "relu", name="b"), L.Dense(3, name="c")]
    model = keras.Sequential([keras.Input((8,)), *layers], name="mlp")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def broken(model):
    kernel = model.get_layer("a").kernel
    kernel.assign(np.where(np.arange(kernel.shape[0] * 16).reshape(kernel.shape) == 0, np.nan, kernel))
    return model


@pytest.fixture(scope="module")
def plan():
    return kpipe.plan_filters(net(), 0.5)


CALLS = {
    "plan": lambda model, plan, folder: kpipe.plan_filters(model, 0.5),
    "plan whole": lambda model, plan, folder: kpipe.plan_filters(model, 0.5, criterion="fpgm"),
    "plan taylor": lambda model, plan, folder: kpipe.plan_filters(model, 0.5, criterion="taylor", data=(X, Y)),
    "prune weights": lambda model, plan, folder: kpipe.prune_weights(model, 0.5),
    "cut": lambda model, plan, folder: kpipe.prune_filters(model, plan),
    "scan": lambda model, plan, folder: kpipe.sensitivity(model, (X, Y)),
    "tflite": lambda model, plan, folder: kpipe.export(model, folder / "m.tflite"),
    "onnx": lambda model, plan, folder: kpipe.export(model, folder / "m.onnx"),
    "weights alone": lambda model, plan, folder: kpipe.export(model, folder / "m.onnx", precision="int4"),
    "quantize": lambda model, plan, folder: kpipe.quantize(model, calibration=X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_weight_is_named_first(call, plan, tmp_path):
    with pytest.raises(KpipeError, match=CULPRIT):
        call(broken(net()), plan, tmp_path)
    call(net(), plan, tmp_path)  # negative control: with finite weights nothing is said
    assert not list(tmp_path.glob("*.part"))


def test_a_bias_that_is_broken_is_named_by_quantize():
    model = net()
    model.get_layer("b").bias.assign(np.full(16, np.inf))
    with pytest.raises(KpipeError, match=r"^Weight 'b/bias' holds 16 values that are not finite"):
        kpipe.quantize(model, calibration=X)


def test_a_broken_weight_elsewhere_is_named_where_gradients_show_it():
    model = net()
    model.get_layer("c").kernel.assign(np.full((16, 3), np.nan))
    with pytest.raises(KpipeError, match=r"^Weight 'c/kernel' holds 48 values"):
        kpipe.prune_weights(model, 0.5, layers="a/kernel", criterion="taylor", data=(X, Y))


@pytest.mark.parametrize("criterion", ["taylor", "wanda"])
def test_data_that_are_broken_are_said_to_be(criterion):
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(KpipeError, match="The data hold 1 NaN or infinite value in their inputs, and every weight"):
        kpipe.prune_weights(net(), 0.5, criterion=criterion, data=(x, Y))


def test_a_criterion_that_gives_nan_for_finite_weights_is_itself_named():
    with pytest.raises(KpipeError, match=r"The criterion gave scores of shape .* all finite: False"):
        kpipe.plan_filters(net(), 0.5, criterion=lambda known: known.weight * np.nan)


def test_a_model_that_masks_by_infinity_is_written(tmp_path):
    """Weights of infinity are no fault where the answers are finite."""
    x = keras.Input((8,))
    y = L.Softmax()(L.Dense(4, name="scores")(x))
    model = keras.Model(x, y)
    model.get_layer("scores").bias.assign([0, 0, 0, -np.inf])
    assert kpipe.export(model, tmp_path / "m.onnx").agreement.max_relative_error < 1e-5


def test_an_answer_that_is_not_finite_though_the_weights_are_blames_no_weight(tmp_path):
    x = keras.Input((6,))
    model = keras.Model(x, keras.ops.log(L.Dense(2, kernel_initializer="zeros")(x) - 1.0))
    with pytest.raises(ExportError, match="does not agree"):
        kpipe.export(model, tmp_path / "m.tflite")


def test_weights_are_counted_and_the_first_are_named():
    bad = np.array([np.nan, np.inf, 1.0])
    assert not_finite(bad.astype("float16")) == 2 and not_finite(np.arange(3)) == 0
    assert not_finite(keras.Variable(bad, dtype="bfloat16")) == 2
    assert broken_weights([("fine", np.ones(3))]) == broken_in(net()) == ""
    said = broken_weights((f"w{n}", bad) for n in range(6))
    assert said.startswith("Weight 'w0' holds 2 values that are not finite (NaN or infinity), 'w1' 2, 'w2' 2, 'w3' 2,")
    assert "and 2 more weights hold some." in said
