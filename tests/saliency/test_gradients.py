"""Gradients by passes over data: against finite differences and naive loops over single samples."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from kpipe.saliency import samples
from kpipe.saliency.gradients import mean_gradients, mean_squared_gradients
from tests.models import build
from tests.models import samples as inputs_of

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def words() -> keras.Model:
    """Tokens through an embedding with a mask, a recurrent layer and attention."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((5,), dtype="int32")
    x = L.Embedding(7, 4, mask_zero=True)(tokens)
    x = L.LSTM(3, return_sequences=True)(x)
    x = L.MultiHeadAttention(2, 2)(x, x)
    return keras.Model(tokens, L.Dense(4)(L.GlobalAveragePooling1D()(x)))


@keras.saving.register_keras_serializable("tests")
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
    """Give a model, six samples and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(6) % 4
    if name == "words":
        return words(), rng.integers(0, 7, (6, 5)), labels
    if name == "twice":
        return twice(), rng.normal(size=(6, 6)).astype("float32"), labels
    model = build(name)
    return model, inputs_of(model, 6)[0], labels


def naive(model: keras.Model, variables: list, x: Any, y: Any, loss: Any, weights: Any = None) -> list[np.ndarray]:
    """Square the gradient of one sample after the other, eagerly."""
    totals = [np.zeros(v.shape) for v in variables]
    for i in range(len(y)):
        with tf.GradientTape() as tape:
            tape.watch([v.value for v in variables])
            total = loss(y[i : i + 1], model(x[i : i + 1], training=False))
        for sum_, g in zip(totals, tape.gradient(total, [v.value for v in variables]), strict=True):
            sum_ += (tf.convert_to_tensor(g).numpy() * (1 if weights is None else weights[i])) ** 2
    return [total / len(y) for total in totals]


@pytest.mark.parametrize("at_once", [2**22, 1], ids=["together", "one_by_one"])
@pytest.mark.parametrize("name", ["conv_bn", "nested", "words", "twice"])
def test_squares_are_those_of_single_samples(name, at_once, monkeypatch):
    monkeypatch.setattr(samples, "AT_ONCE", at_once)
    model, x, y = case(name)
    variables = model.trainable_variables
    got = mean_squared_gradients(model, variables, (x, y), LOGITS)
    wanted = naive(model, variables, x, y, LOGITS)
    batch = [g**2 for g in mean_gradients(model, variables, (x, y), LOGITS)]
    for a, b, c in zip(got, wanted, batch, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * b.max())
        assert not np.allclose(c, b, rtol=1e-2, atol=1e-5 * b.max()), "a batch's gradient is no single one's"
