"""What is added in files of one sample at a time, where Keras takes it for a bias."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import kpipe
from kpipe.export import load_runtime
from kpipe.export.additions import broadcast_additions


def residual(shape):
    x = keras.Input(shape)
    return keras.Model(x, ops.add(L.Dense(shape[-1], name="dense")(x), x))


def gate(shape):
    x = keras.Input(shape)
    return keras.Model(x, ops.add(L.Dense(shape[-1], name="dense")(x), L.Dense(1, use_bias=False, name="gate")(x)))


CASES = {
    "one channel": lambda: residual((5, 1)),  # (1, 5, 1) + (1, 5, 1)
    "one step": lambda: residual((1, 5)),
    "a number a step": lambda: gate((5, 3)),  # (1, 5, 3) + (1, 5, 1)
    "as many channels as steps": lambda: gate((5, 5)),  # (1, 5, 5) + (1, 5, 1): along which axis?
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_files_of_one_sample_add_as_the_model_does(name, suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model = CASES[name]()
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    layers = {layer.name: layer for layer in model.layers}
    kernel, bias = (np.asarray(one) for one in layers["dense"].weights)
    added = x @ np.asarray(layers["gate"].kernel) if "gate" in layers else x
    file = kpipe.export(model, tmp_path / f"m.{suffix}", batch=1)
    got = np.concatenate([load_runtime(file).run([one[None]])[0] for one in x])
    np.testing.assert_allclose(got, x @ kernel + bias + added, atol=1e-5)


def test_tokens_are_added(tmp_path):
    a, b = (keras.Input((6,), dtype="int32") for _ in range(2))
    model = keras.Model([a, b], L.Flatten()(L.Embedding(9, 2)(ops.add(a, b))))
    tokens = [np.random.default_rng(place).integers(0, 5, (1, 6)).astype("int32") for place in range(2)]
    file = kpipe.export(model, tmp_path / "m.tflite")
    table = np.asarray(model.layers[-2].embeddings)
    np.testing.assert_allclose(load_runtime(file).run(tokens)[0], table[sum(tokens)].reshape(1, -1), atol=1e-6)


def test_keras_adds_along_the_wrong_axis_without():
    """The control: if this fails, Keras was mended and this can go."""
    x, y = ops.zeros((1, 2, 2)), ops.array([[[1.0], [2.0]]])
    assert ops.add(x, y)[0].numpy().tolist() == [[1.0, 2.0], [1.0, 2.0]]
    with broadcast_additions():
        assert ops.add(x, y)[0].numpy().tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert ops.add(x, y)[0].numpy().tolist() == [[1.0, 2.0], [1.0, 2.0]]


@pytest.mark.parametrize("added", [(3,), (1, 1, 3), (1, 4, 1), (4, 1), (2, 1, 1), (2, 4, 3), ()])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("int32", "float32"), ("int32", "int32")])
def test_it_adds_as_numpy_does(added, dtypes):
    rng = np.random.default_rng(0)
    x, y = ((9 * rng.random(shape)).astype(dtype) for shape, dtype in zip(((2, 4, 3), added), dtypes, strict=True))
    with broadcast_additions():
        got = ops.add(ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    np.testing.assert_allclose(got, x + y, rtol=1e-6)
    assert got.dtype.name == keras.backend.result_type(*dtypes)
