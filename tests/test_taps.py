import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.projections.taps import GradientTap

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.integers(0, 3, 32)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)])
    model.compile(optimizer, LOSS, **options)
    return model


def gradient(model, variable, x, y):
    """Differentiate the loss once, outside of any training."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y=y, y_pred=model(x))
    return np.asarray(tape.gradient(loss, variable.value))


def still(**options):
    return keras.optimizers.SGD(0.0, **options)  # the weights stay, so that the mean is known beforehand


def by_name():
    kernels = keras.optimizers.Adam(0.0)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(still(), {".*kernel": kernels}))


CASES = {
    "plain": (still, {}),
    "eager": (still, {"run_eagerly": True}),
    "xla, two steps an execution": (still, {"jit_compile": True, "steps_per_execution": 2}),
    "three steps an execution": (still, {"steps_per_execution": 3}),
    "accumulation": (lambda: still(gradient_accumulation_steps=2), {}),
    "clipped": (lambda: still(clipnorm=1e-3), {}),
    "scaled loss": (lambda: still(loss_scale_factor=8.0), {}),
    "dynamic scale": (lambda: keras.optimizers.LossScaleOptimizer(still(), initial_scale=1024.0), {}),
    "several optimizers": (by_name, {}),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("case", CASES)
def test_the_mean_gradient_and_the_movement_are_those_of_the_batches(case):
    make, options = CASES[case]
    if case == "several optimizers" and getattr(keras.optimizers, "MultiOptimizer", None) is None:
        pytest.skip("this Keras has no MultiOptimizer")
    model = compiled(make(), **options)
    kernel = model.layers[0].kernel
    mean = sum(gradient(model, kernel, x, y) for x, y in BATCHES) / 4
    with GradientTap(model, [kernel], ["grad", "movement"]) as tap:
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        found = tap.read()[id(kernel)]
        assert tap.count == 4
    np.testing.assert_allclose(found["grad"], mean, atol=1e-6)
    np.testing.assert_allclose(found["movement"], -kernel.numpy() * mean * 4, atol=1e-6)


def test_movement_follows_the_weights_as_they_move():
    model = compiled(keras.optimizers.SGD(0.1))
    kernel, expected = model.layers[0].kernel, 0.0
    with GradientTap(model, [kernel], ["movement"]) as tap:
        for x, y in BATCHES:
            expected = expected - kernel.numpy() * gradient(model, kernel, x, y)
            model.train_on_batch(x, y)
        np.testing.assert_allclose(tap.read()[id(kernel)]["movement"], expected, atol=1e-6)


def test_reset_and_since():
    model = compiled(still())
    kernel = model.layers[0].kernel
    with GradientTap(model, [kernel], ["grad", "movement"]) as tap:
        tap.reset(since=3)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        assert tap.count == 1
        np.testing.assert_allclose(tap.read()[id(kernel)]["grad"], gradient(model, kernel, *BATCHES[3]), atol=1e-6)
        tap.reset(["grad"])
        found = tap.read()[id(kernel)]
        assert tap.count == 0 and not found["grad"].any() and found["movement"].any()


def test_steps_that_overflow_are_left_out():
    model = compiled(keras.optimizers.LossScaleOptimizer(still(), initial_scale=3.4e38))  # times a loss above 1: inf
    with GradientTap(model, [model.layers[0].kernel]) as tap:
        model.fit(10 * X, Y, batch_size=8, shuffle=False, verbose=0)
        assert 0 < tap.count < 4 and np.isfinite(tap.read()[id(model.layers[0].kernel)]["grad"]).all()


def test_rows_of_an_embedding_add_up():
    model = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(5, 3), keras.layers.Flatten()])
    model.compile(still(), "mse")
    table, x, y = model.layers[0].embeddings, np.array([[1, 1, 3, 1]]), np.zeros((1, 12), "float32")
    expected = np.zeros((5, 3))
    for row in x[0]:
        expected[row] += 2 * table.numpy()[row] / 12
    with GradientTap(model, [table]) as tap:
        model.fit(x, y, verbose=0)
        np.testing.assert_allclose(tap.read()[id(table)]["grad"], expected, atol=1e-6)


def test_a_frozen_variable_has_no_gradient_and_a_plain_fit_is_seen_again():
    model = compiled(still())
    model.fit(X, Y, verbose=0)  # the traced train function must not be used again
    model.layers[0].trainable = False
    frozen, kernel = model.layers[0].kernel, model.layers[1].kernel
    with GradientTap(model, [frozen, kernel]) as tap:
        model.fit(X, Y, verbose=0)
        assert not tap.read()[id(frozen)]["grad"].any() and tap.read()[id(kernel)]["grad"].any()


@pytest.mark.parametrize("first", [0, 1])
def test_two_taps_let_go_in_any_order_and_give_apply_back(first):
    model = compiled(still())
    seen, own = [], model.optimizer.apply
    model.optimizer.apply = lambda *given, **named: seen.append(0) or own(*given, **named)
    before = model.optimizer.apply
    taps = [GradientTap(model, [model.layers[0].kernel]) for _ in range(2)]
    taps[first].release()
    taps[first].release()
    model.train_on_batch(*BATCHES[0])
    assert [tap.count for tap in taps] == [first, 1 - first] and seen
    taps[1 - first].release()
    assert model.optimizer.apply is before
    model.train_on_batch(*BATCHES[0])
    assert taps[1 - first].count == 1


def test_an_unknown_field_is_refused():
    with pytest.raises(KpipeError, match="grad, movement; received 'curvature'"):
        GradientTap(compiled(still()), [], ["curvature"])
