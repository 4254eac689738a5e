"""The Gauss-Newton diagonal: against finite differences in float64, the Hessian itself, and a plain Jacobian."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import kpipe
from kpipe.data import load
from kpipe.errors import KpipeError
from kpipe.saliency import samples
from kpipe.saliency.curvature import gauss_newton_diagonal
from tests.models import build
from tests.models import samples as inputs_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 5)).astype("float32"), np.arange(7) % 3
ONE_HOT = np.eye(3, dtype="float32")[Y]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


LOSSES: dict[str, tuple] = {  # output activation, loss, labels, Hessian of one sample's loss by z (NumPy, float64)
    "mse": (None, "mse", ONE_HOT, lambda z: np.eye(3) * 2 / 3),
    "mse of a sigmoid": ("sigmoid", "mse", ONE_HOT, lambda z: np.eye(3) * 2 / 3),
    "logits": (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), Y, lambda z: _multinomial(z)),
    "softmax": ("softmax", "sparse_categorical_crossentropy", Y, lambda z: _multinomial(z)),
    "softmax, one-hot": ("softmax", keras.losses.CategoricalCrossentropy(), ONE_HOT, lambda z: _multinomial(z)),
    "sigmoid": ("sigmoid", "binary_crossentropy", ONE_HOT, lambda z: np.diag(sigmoid(z) * (1 - sigmoid(z))) / 3),
    "divergence": ("softmax", "kl_divergence", ONE_HOT, lambda z: _multinomial(z)),
}


def _multinomial(z: np.ndarray) -> np.ndarray:
    p = softmax(z)
    return np.diag(p) - np.outer(p, p)


def net(hidden: str, last: str | None) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    outputs = L.Dense(3, activation=last)(L.Dense(4, activation=hidden)(inputs))
    return keras.Model(inputs, outputs)


def point(weights: list[np.ndarray], hidden: Callable, last: Callable) -> np.ndarray:
    """Run the net in NumPy."""
    w1, b1, w2, b2 = weights
    return last(hidden(X.astype("float64") @ w1 + b1) @ w2 + b2)


def differences(function: Callable, weights: list[np.ndarray], step: float, order: int) -> list[np.ndarray]:
    """Differentiate a function of the weights once or twice by each single weight: (*weight, *function)."""
    found = []
    for w in weights:
        entries = []
        for place in np.ndindex(*w.shape):
            middle = w[place]
            values = []
            for moved in (middle + step, middle, middle - step):
                w[place] = moved
                values.append(function(weights))
            w[place] = middle
            up, here, down = values
            entries.append((up - down) / (2 * step) if order == 1 else (up - 2 * here + down) / step**2)
        found.append(np.reshape(entries, (*w.shape, *np.shape(entries[0]))))
    return found


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("name", "at_once"), [(name, 2**22) for name in LOSSES] + [("logits", 1)])
def test_it_is_that_of_finite_differences(name, at_once, monkeypatch):
    """J by differences of the outputs in float64, H by its formula."""
    monkeypatch.setattr(samples, "AT_ONCE", at_once)
    last, loss, labels, hessian = LOSSES[name]
    model = net("tanh", last)
    weights = [w.astype("float64") for w in model.get_weights()]
    end = sigmoid if name == "mse of a sigmoid" else lambda z: z  # elsewhere z are the logits
    jacobians = differences(lambda w: point(w, np.tanh, end), weights, 1e-5, 1)
    h = [hessian(z) for z in point(weights, np.tanh, end)]
    wanted = [np.einsum("...ni,nij,...nj->...", j, h, j) / len(X) for j in jacobians]
    for got, exact in zip(gauss_newton_diagonal(model, model.weights, loss)((X, labels)), wanted, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, exact, rtol=2e-3, atol=1e-6)
        assert not np.allclose(got, exact * 1.05, rtol=1e-2), "the check tells five percent"


@pytest.mark.parametrize("name", ["mse", "softmax"])
def test_with_relu_it_is_the_diagonal_of_the_hessian(name):
    """The outputs are piecewise linear in each weight: the second difference of the mean loss is J'HJ."""
    last, loss, labels, _ = LOSSES[name]
    model = net("relu", last)
    weights = [w.astype("float64") for w in model.get_weights()]

    def mean_loss(w: list[np.ndarray]) -> float:
        z = point(w, lambda a: np.maximum(a, 0), lambda z: z)
        return float(np.mean((z - ONE_HOT) ** 2) if name == "mse" else -np.mean(np.log(softmax(z)[range(7), Y])))

    got = gauss_newton_diagonal(model, model.weights, loss)((X, labels))
    for a, b in zip(got, differences(mean_loss, weights, 1e-4, 2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5)
    curved = net("tanh", last)
    weights = [w.astype("float64") for w in curved.get_weights()]
    bent = gauss_newton_diagonal(curved, curved.weights[:1], loss)((X, labels))[0]
    assert not np.allclose(bent, differences(mean_loss, weights, 1e-4, 2)[0], rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_a_convolution_with_batch_norm_in_inference_and_uneven_batches():
    """A kernel that is used at many places is one weight; J by one plain Jacobian a sample."""
    model = build("conv_bn")
    x, y = inputs_of(model, 3)[0], np.arange(3)
    kernel = model.get_layer("conv1").kernel
    wanted = np.zeros(kernel.shape)
    for i in range(3):
        with tf.GradientTape() as tape:
            z = model(x[i : i + 1], training=False)[0]
        j = tape.jacobian(z, kernel.value).numpy()
        wanted += np.einsum("i...,ij,j...->...", j, _multinomial(z.numpy()), j) / 3
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    got = gauss_newton_diagonal(model, [kernel], keras.losses.SparseCategoricalCrossentropy(from_logits=True))(data)[0]
    np.testing.assert_allclose(got, wanted, rtol=5e-3, atol=1e-5 * wanted.max())


@pytest.mark.slow
def test_outputs_add_up_by_their_loss_weights_and_samples_by_theirs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    shared = L.Dense(4, activation="tanh")
    hidden = shared(inputs)
    first, second = L.Dense(3, activation="softmax", name="first")(hidden), L.Dense(2, name="second")(hidden)
    model = keras.Model(inputs, [first, second])
    y = {"first": Y, "second": RNG.normal(size=(7, 2)).astype("float32")}
    losses = {"first": "sparse_categorical_crossentropy", "second": "mse"}
    alone = [
        gauss_newton_diagonal(keras.Model(inputs, output), [shared.kernel], losses[name])((X, y[name]))[0]
        for name, output in (("first", first), ("second", second))
    ]
    model.compile(loss=losses, loss_weights={"first": 3.0, "second": 0.25})
    got = gauss_newton_diagonal(model, [shared.kernel], None)((X, y))[0]
    np.testing.assert_allclose(got, 3 * alone[0] + 0.25 * alone[1], rtol=1e-3, atol=1e-6)
    assert not np.allclose(got, alone[0] + alone[1], rtol=0.1)
    thrice = np.where(np.arange(7) < 3, 3.0, 0.0).astype("float32")  # counts three samples thrice, the others never
    weighted = gauss_newton_diagonal(model, [shared.kernel], None)((X, y, thrice))[0]
    few = gauss_newton_diagonal(model, [shared.kernel], None)((X[:3], {k: v[:3] for k, v in y.items()}))[0]
    np.testing.assert_allclose(weighted, few * 9 / 7, rtol=1e-3, atol=1e-6)


def test_what_has_no_gauss_newton_matrix_is_refused():
    model = net("tanh", None)
    with pytest.raises(KpipeError, match=r"not convex in its outputs.*'fisher'"):
        gauss_newton_diagonal(model, model.weights, lambda y, z: -keras.ops.mean((y - z) ** 2, axis=-1))((X, ONE_HOT))
    inputs = keras.Input((2,))
    wide = keras.Model(inputs, L.Dense(1025)(inputs), name="wide")
    with pytest.raises(KpipeError, match=r"'wide' has 1025 outputs.*at most 1024.*'fisher'"):
        gauss_newton_diagonal(wide, wide.weights, "mse")((np.ones((1, 2)), np.ones((1, 1025))))


@pytest.mark.slow
def test_on_real_data_the_loss_rises_least_by_optimal_brain_damage():
    """Half the weights of a net for digits go at once, nothing is retrained; the order of the paper."""
    x, y = load("digits").train
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(24, activation="tanh"), L.Dense(10)])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=8, batch_size=64, verbose=0)
    rise = {}
    for criterion in ("obd", "fisher", "magnitude", "random"):
        pruned = kpipe.prune_weights(model, 0.5, criterion, scope="global", data=(x[:256], y[:256]), loss=model.loss)
        pruned.compile(loss=model.loss)
        rise[criterion] = pruned.evaluate(x, y, verbose=0) - model.evaluate(x, y, verbose=0)
    print(rise)
    assert rise["obd"] < 0.2 * rise["random"] and rise["fisher"] < 0.5 * rise["random"]
    assert rise["magnitude"] < rise["random"]
