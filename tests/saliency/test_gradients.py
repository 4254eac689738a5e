"""Gradients by passes over data: against finite differences and naive loops over single samples."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.saliency import samples
from kpipe.saliency.gradients import mean_gradients, mean_squared_gradients
from tests.models import build
from tests.models import samples as inputs_of

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def words() -> keras.Model:
    """Tokens through an embedding with a mask and a recurrent layer."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((3,), dtype="int32")
    x = L.SimpleRNN(3)(L.Embedding(7, 4, mask_zero=True)(tokens))
    return keras.Model(tokens, L.Dense(4)(x))


def attention() -> keras.Model:
    """Attention of a sequence to itself."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3, 4))
    x = L.MultiHeadAttention(2, 2)(inputs, inputs)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(x)))


def einsum() -> keras.Model:
    """Products of a sequence with one matrix."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3, 4))
    x = L.EinsumDense("abc,cd->abd", output_shape=(3, 5), bias_axes="d", activation="tanh")(inputs)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(x)))


class Twice(keras.Model):
    """A model of a class of its own that uses one layer twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = L.Dense(6, activation="tanh"), L.Dense(4)

    def call(self, x, training=False):
        return self.last(self.inner(self.inner(x)))


def twice() -> keras.Model:
    keras.utils.set_random_seed(4)
    model = Twice()
    model(np.zeros((1, 6), "float32"))
    return model


def case(name: str) -> tuple[keras.Model, Any, np.ndarray]:
    """Give a model, some samples and their labels."""
    rng = np.random.default_rng(0)
    if name == "words":
        return words(), rng.integers(0, 7, (2, 3)), np.arange(2)
    if name in ("attention", "einsum"):
        return globals()[name](), rng.normal(size=(6, 3, 4)).astype("float32"), np.arange(6) % 4
    if name == "twice":
        return twice(), rng.normal(size=(6, 6)).astype("float32"), np.arange(6) % 4
    model = build(name)
    return model, inputs_of(model, 6)[0], np.arange(6) % 4


def naive(model: keras.Model, variables: list, x: Any, y: Any, loss: Any) -> list[np.ndarray]:
    """Square the gradient of one sample after the other, eagerly."""
    totals: list[Any] = [np.zeros(v.shape) for v in variables]
    values = [v.value for v in variables]
    for i in range(len(y)):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = loss(y[i : i + 1], model(x[i : i + 1], training=False))
        for sum_, g in zip(totals, tape.gradient(total, values), strict=True):
            sum_ += tf.convert_to_tensor(g).numpy() ** 2
    return [total / len(y) for total in totals]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("name", "at_once"),
    [
        *(("conv_bn", 2**22), ("nested", 1), ("words", 2**22), ("twice", 2**22), ("twice", 1)),
        *(("attention", 1), ("attention", 2**22), ("einsum", 2**22)),
    ],
)
def test_squares_are_those_of_single_samples(name, at_once, monkeypatch):
    monkeypatch.setattr(samples, "AT_ONCE", at_once)
    model, x, y = case(name)
    variables = model.trainable_variables
    got = mean_squared_gradients(model, variables, LOGITS)((x, y))
    wanted = naive(model, variables, x, y, LOGITS)
    batch = [g**2 for g in mean_gradients(model, variables, LOGITS)((x, y))]
    for a, b, c in zip(got, wanted, batch, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * b.max() + 1e-12)
        assert b.max() < 1e-9 or not np.allclose(c, b, rtol=1e-2, atol=0), "a batch's gradient is no single one's"


def test_an_operation_that_cannot_be_done_for_samples_together_is_done_one_by_one(monkeypatch):
    model, x, y = case("twice")
    wanted = naive(model, model.trainable_variables, x, y, LOGITS)

    def refuse(*_: Any) -> None:
        raise ValueError("no converter")

    monkeypatch.setattr(tf, "vectorized_map", refuse)
    for a, b in zip(mean_squared_gradients(model, model.trainable_variables, LOGITS)((x, y)), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("left", "right", "unsafe"),
    [
        ((4, 1, 6, 8), (8, 8), True),
        ((None, 1, 6, 8), (8, 8), True),
        ((4, 1, 6, 8), (1, 1, 8, 8), True),
        ((4, 1, 6, 8), (4, 1, 8, 8), False),
        ((4, 6, 8), (8, 8), False),
        ((4, 2, 6, 8), (8, 8), False),
    ],
)
def test_a_product_that_crashes_tensorflow_is_seen_before_it_runs(left, right, unsafe):
    function = tf.function(lambda a, b: tf.raw_ops.BatchMatMulV2(x=a, y=b))
    graph = function.get_concrete_function(tf.TensorSpec(left), tf.TensorSpec(right)).graph
    assert samples._is_unsafe(graph) == unsafe


def siamese() -> tuple[keras.Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two inputs, a shared tower with a shared layer, two outputs: inputs and labels by name."""
    model = build("siamese")
    left, right = inputs_of(model, 5)
    y = {"first": np.arange(5) % 3, "second": np.random.default_rng(2).normal(size=(5, 2)).astype("float32")}
    return model, {"left": left, "right": right}, y


@pytest.mark.slow
def test_losses_by_output_with_weights_as_compiled():
    model, x, y = siamese()
    losses = {"first": LOGITS, "second": "mse"}
    model.compile(loss=losses, loss_weights={"first": 2.0, "second": 0.5})
    variables = model.trainable_variables
    got = mean_squared_gradients(model, variables, None)((x, y))
    plain = mean_squared_gradients(model, variables, losses)((x, y))
    totals = [np.zeros(v.shape) for v in variables]
    for i in range(5):
        with tf.GradientTape() as tape:
            first, second = model({k: v[i : i + 1] for k, v in x.items()}, training=False)
            total = 2.0 * LOGITS(y["first"][i : i + 1], first)
            total += 0.5 * tf.reduce_mean((second - y["second"][i : i + 1]) ** 2)
        for sum_, g in zip(totals, tape.gradient(total, [v.value for v in variables]), strict=True):
            sum_ += g.numpy() ** 2 / 5
    for a, b, c in zip(got, totals, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * b.max())
        assert not np.allclose(c, b, rtol=1e-2), "without the loss weights it is another loss"


@pytest.mark.sweep(1)
@pytest.mark.parametrize("form", ["arrays", "tf.data"])
def test_sample_weights_count(form):
    model, x, y = case("twice")
    w = np.array([0.0, 1.0, 2.0, 0.5, 3.0, 1.0], "float32")
    data: Any = (x, y, w) if form == "arrays" else tf.data.Dataset.from_tensor_slices((x, y, w)).batch(4)
    kernel = [model.last.kernel]
    ones = [mean_gradients(model, kernel, LOGITS)((x[i : i + 1], y[i : i + 1]))[0] for i in range(6)]
    got = mean_squared_gradients(model, kernel, LOGITS)(data)[0]
    np.testing.assert_allclose(got, np.mean([(a * g) ** 2 for a, g in zip(w, ones, strict=True)], 0), rtol=1e-3)
    if form == "arrays":  # one batch: the mean over the batch is that over the samples
        got = mean_gradients(model, kernel, LOGITS)(data)[0]
        np.testing.assert_allclose(got, np.mean([a * g for a, g in zip(w, ones, strict=True)], 0), rtol=1e-3, atol=1e-6)


def test_a_softmax_that_is_sure_of_itself_still_has_a_gradient():
    """Through the probabilities alone it would vanish in the clipping of the loss."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, L.Softmax()(L.Dense(2, use_bias=False)(inputs)))
    model.set_weights([np.array([[0.0, 40.0]])])
    got = mean_squared_gradients(model, model.weights, "sparse_categorical_crossentropy")(
        (np.ones((2, 1)), np.zeros(2))
    )
    np.testing.assert_allclose(got[0], [[1.0, 1.0]], rtol=1e-5)


class Restless(L.Layer):
    """Count its calls and draw a random number in each, also in inference."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + 0.0 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_the_model_stays_as_it_is():
    inputs = keras.Input((6,))
    hidden = L.BatchNormalization()(Restless()(inputs))
    heads = [L.Dense(2, name="a", kernel_regularizer="l2")(hidden), L.Dense(2, name="b")(hidden)]
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"a": "mse", "b": "mse"}, metrics={"a": ["mae"], "b": []})
    x, y = np.ones((4, 6), "float32"), [np.ones((4, 2), "float32")] * 2
    model.fit(x, y, verbose=0)
    held = (model.train_function, model.optimizer, model.loss)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables, *model.metrics_variables)]
    mean_gradients(model, model.trainable_variables, None)((x, y))
    mean_squared_gradients(model, model.trainable_variables, None)((x, y))
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables, *model.metrics_variables)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert (model.train_function, model.optimizer, model.loss) == held
    model(x)
    assert any(not np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables, strict=False)), "it can change"


def test_metrics_that_the_first_loss_makes_start_from_nothing():
    model, x, y = siamese()
    model.compile(loss={"first": LOGITS, "second": "mse"})
    mean_gradients(model, model.trainable_variables, None)((x, y))
    assert all(float(np.sum(v.numpy())) == 0 for v in model.metrics_variables)


def test_frozen_weights_have_no_gradient():
    model, x, y = case("twice")
    model.inner.trainable = False
    for function in (mean_gradients, mean_squared_gradients):
        first, second = function(model, [model.inner.kernel, model.last.kernel], LOGITS)((x, y))
        assert not first.any() and first.shape == (6, 6) and second.any()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_near_full_precision(policy):
    def net(dtype: str) -> keras.Model:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = L.Dense(8, activation="relu", dtype=dtype)(inputs)
        return keras.Model(inputs, L.Dense(4, dtype="float32")(x))

    x, y = np.random.default_rng(0).normal(size=(8, 6)).astype("float32"), np.arange(8) % 4
    for function in (mean_gradients, mean_squared_gradients):
        full, mixed = (function(m, m.weights[:1], LOGITS)((x, y))[0] for m in (net("float32"), net(policy)))
        assert mixed.dtype == np.float32
        assert np.abs(full - mixed).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("function", [mean_gradients, mean_squared_gradients])
def test_what_is_missing_is_said(function):
    model, x, y = case("twice")
    variables = model.trainable_variables
    for data, loss, message in [
        (None, "mse", "labelled data"),
        (x, "mse", "labels"),
        ((x, y), None, "not compiled"),
        ((x[:0], y[:0]), "mse", "no batch"),
    ]:
        with pytest.raises(KpipeError, match=message):
            function(model, variables, loss)(data)


def test_inside_the_scope_of_a_strategy_it_is_refused(monkeypatch):
    model, x, y = case("twice")
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)
    for function in (mean_gradients, mean_squared_gradients):
        with pytest.raises(KpipeError, match=r"strategy\.scope\(\).*outside"):
            function(model, model.trainable_variables, LOGITS)((x, y))


def test_a_model_for_a_fixed_batch_is_refused_for_single_samples():
    inputs = keras.Input((2,), batch_size=4)
    model = keras.Model(inputs, L.Reshape((1,))(L.Dense(1)(keras.ops.reshape(inputs, (4, 2)))))
    data = (np.ones((4, 2), "float32"), np.ones((4, 1), "float32"))
    assert mean_gradients(model, model.weights, "mse")(data)[0].any()
    with pytest.raises(KpipeError, match=r"one sample at a time.*'taylor'"):
        mean_squared_gradients(model, model.weights, "mse")(data)
