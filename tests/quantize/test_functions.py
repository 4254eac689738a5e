"""Activation functions written as layers, which compute the same in Keras and in both runtimes."""

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.export import FORMATS, dissect
from kpipe.export.verify import predict
from kpipe.quantize.split import split

X = np.random.default_rng(0).normal(0.0, 2.0, (64, 6, 6, 3)).astype("float32")
GATED = {"silu": ["gate", "act"], "hard_silu": ["gate_rescaled", "gate", "act"]}


def alone(function):
    return lambda x: L.Activation(function, name="act")(x)


def within(function):
    return lambda x: L.Conv2D(4, 3, activation=function, name="act")(x)


def operation(function):
    return lambda x: L.Identity(name="act")(getattr(keras.ops, function)(x))


def net(make):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 3), name="x")
    return keras.Model(x, make(x))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("make", [alone, within, operation])
@pytest.mark.parametrize("function", ["silu", "hard_silu", "hard_sigmoid"])
def test_a_model_that_is_taken_apart_computes_the_same(function, make):
    model = net(make(function))
    apart = split(model).model
    np.testing.assert_allclose(predict(apart, [X])[0], predict(model, [X])[0], atol=1e-5)
    functions = {getattr(layer, "activation", None) for layer in apart.layers}
    assert not functions & {keras.activations.silu, keras.activations.hard_silu, keras.activations.hard_sigmoid}
    assert apart.layers[-1].name == "act"


@pytest.mark.parametrize("function", list(GATED))
def test_a_gate_has_a_range_of_its_own(function):
    model = net(alone(function))
    made = kpipe.quantize(model, calibration=X)
    found = [layer.name for layer in made.layers]
    assert [name for name in found if name.startswith("act") and not name.endswith(("_range", "_bias"))] == [
        "act" if part == "act" else f"act_{part}" for part in GATED[function]
    ]
    low, high = made.get_layer("act_gate_range").grid()
    assert low == 0.0 and 0.9 < high <= 1.0


@pytest.mark.parametrize("function", list(GATED))
def test_where_weights_alone_are_rounded_functions_stay_whole(function):
    made = kpipe.quantize(net(within(function)), "int8_dynamic")
    assert [layer.name for layer in made.layers] == ["x", "act_linear", "act"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("function", [*GATED, "hard_sigmoid"])
def test_files_answer_with_the_same_whole_numbers(function, name, tmp_path):
    made = kpipe.quantize(net(within(function)), calibration=X[:32])
    path = tmp_path / f"net{FORMATS[name].suffix}"
    kpipe.export(made, path, data=X)
    with FORMATS[name].runtime(path) as runtime:
        (answers,) = runtime.run([X])
    low, high = made.layers[-1].grid()
    assert np.mean(np.abs(answers - predict(made, [X])[0]) > (high - low) / 510) < 1e-3


def test_no_kernel_of_its_own_stands_in_the_file(tmp_path):
    kpipe.export(kpipe.quantize(net(within("hard_silu")), calibration=X), tmp_path / "net.tflite")
    names = {node.name for node in dissect(tmp_path / "net.tflite").nodes}
    assert "HARD_SWISH" not in names and "MUL" in names


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", list(FORMATS))
def test_one_function_may_be_shared_by_tensors_of_several_widths(name, tmp_path):
    keras.utils.set_random_seed(0)
    act, x = L.Activation("hard_silu"), keras.Input((6, 6, 3))
    model = keras.Model(x, act(L.Conv2D(5, 1)(act(L.Conv2D(4, 3)(x)))))
    made = kpipe.quantize(model, calibration=X)
    file = kpipe.export(made, tmp_path / f"net{FORMATS[name].suffix}", data=X)
    assert file.agreement.max_steps < 1.01
