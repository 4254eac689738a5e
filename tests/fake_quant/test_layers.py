"""The fake-quantized layers: rounding, gradients, ranges, masks, and that they survive a file."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.fake_quant import FakeQuant, QuantizedWeights
from kpipe.fake_quant.affine import on_grid


def rounded(layer: keras.Layer, shape: tuple[int, ...]) -> Any:
    x = keras.Input(shape)
    return keras.Model(x, FakeQuant(name="range")(QuantizedWeights(layer, name="rounded")(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (keras.layers.Dense(4), (6,), (1,)),
        (keras.layers.Conv2D(4, 3), (6, 6, 3), (3,)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3), (2, 3)),
    ],
)
def test_a_layer_computes_with_rounded_kernels_and_keeps_its_own(layer, shape, axes):
    wrapper = QuantizedWeights(layer)
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("float32")
    answer = wrapper(x).numpy()
    kernel = layer.get_weights()[0]
    before = kernel.copy()
    layer.set_weights([on_grid(kernel, axes), *layer.get_weights()[1:]])
    np.testing.assert_allclose(answer, layer(x).numpy(), atol=1e-5)
    layer.set_weights([before, *layer.get_weights()[1:]])
    assert np.abs(answer - layer(x).numpy()).max() > 1e-5  # the float kernel gives something else


def test_gradients_pass_straight_through():
    layer: Any = keras.layers.Dense(3, use_bias=False)
    wrapper, x = QuantizedWeights(layer), np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    wrapper(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x))
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.kernel.value)).numpy()
    np.testing.assert_allclose(gradient, np.repeat(x.sum(0)[:, None], 3, 1), rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_masked_zeros_stay_through_training_under_any_compilation(jit):
    model = rounded(keras.layers.Dense(4), (6,))
    layer = model.get_layer("rounded")
    kernel = layer.layer.kernel.numpy()
    kernel[::2] = 0.0
    layer.layer.kernel.assign(kernel)
    layer.hold_zeros()
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit)
    x, y = np.random.default_rng(0).normal(size=(32, 6)), np.random.default_rng(1).normal(size=(32, 4))
    model.fit(x, y, epochs=3, verbose=0)
    trained = layer.layer.kernel.numpy()
    assert (trained[::2] == 0).all()
    assert (trained[1::2] != kernel[1::2]).all()


def test_a_user_constraint_still_holds():
    model = rounded(keras.layers.Dense(4, kernel_constraint="non_neg"), (6,))
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = np.random.default_rng(0).normal(size=(32, 6)), np.random.default_rng(1).normal(size=(32, 4))
    model.fit(x, y, epochs=2, verbose=0)
    assert (model.get_layer("rounded").layer.kernel.numpy() >= 0).all()


def test_ranges_follow_in_training_only():
    layer = FakeQuant(momentum=0.9)
    layer.set_range(-1.0, 1.0)
    x = np.array([[-3.0, 5.0]], "float32")
    layer(x)
    assert (float(layer.low), float(layer.high)) == (-1.0, 1.0)
    layer(x, training=True)
    np.testing.assert_allclose((float(layer.low), float(layer.high)), (-1.2, 1.4), rtol=1e-6)
    layer(x, training=True, observe=False)
    np.testing.assert_allclose((float(layer.low), float(layer.high)), (-1.2, 1.4), rtol=1e-6)


def test_fixed_ranges_and_full_momentum_do_not_follow():
    x = np.array([[-3.0, 5.0]], "float32")
    for layer in (FakeQuant(fixed=(0.0, 1.0)), FakeQuant(momentum=1.0)):
        layer(x, training=True)
        assert (float(layer.low), float(layer.high)) == (0.0, 1.0)


def test_saved_and_loaded_without_a_scope(tmp_path):
    model = rounded(keras.layers.Conv2D(4, 3, activation="relu"), (6, 6, 3))
    model.get_layer("range").set_range(-0.3, 1.7)
    kernel = model.get_layer("rounded").layer.kernel
    kernel.assign(np.where(np.arange(108).reshape(3, 3, 3, 4) % 3 == 0, 0.0, kernel.numpy()))
    model.get_layer("rounded").hold_zeros()
    model.save(tmp_path / "model.keras")
    again: Any = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))
    again.compile(keras.optimizers.Adam(0.05), "mse")
    again.fit(x, np.zeros((4, 4, 4, 4)), verbose=0)
    assert (again.get_layer("rounded").layer.kernel.numpy().reshape(-1)[::3] == 0).all()


@pytest.mark.parametrize("make", [lambda: FakeQuant(bits=1), lambda: FakeQuant(momentum=2.0)])
def test_bad_arguments(make):
    with pytest.raises(KpipeError, match="expected"):
        make()


def test_a_layer_without_a_kernel():
    with pytest.raises(KpipeError, match=r"'act'.*no kernel"):
        QuantizedWeights(keras.layers.ReLU(name="act"))(np.zeros((1, 2), "float32"))
