"""Figures of answers, against NumPy and Keras."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.saliency.metrics import hits_of, metric_of


def classifier(classes: int, activation: str | None = None, places: tuple[int, ...] = ()) -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((*places, 4)), L.Dense(classes, activation)])


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype("float32")


def measured(net: keras.Model, data, metric="accuracy", loss=None) -> float:
    return metric_of(metric, net, data, loss).of(lambda inputs: [net(inputs[0])], net, data)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_the_accuracy_of_a_single_output_knows_logits_from_probabilities(activation):
    net, x = classifier(1, activation), draw(300, 4)
    logits = (x @ net.layers[0].kernel.numpy())[:, 0]
    y = np.where(np.arange(300) % 3 == 0, logits > 0, 1).astype(int)
    expected = ((logits > 0) == y).mean()
    assert measured(net, (x, y)) == expected == measured(net, (x, y[:, None]))
    assert 0.4 < expected < 0.9


def test_accuracy_of_one_hot_labels_places_and_weights():
    net, x = classifier(3, places=(5,)), draw(300, 5, 4)
    answers = np.asarray(net(x)).argmax(-1)
    y = np.random.default_rng(1).integers(0, 3, (300, 5))
    hits = answers == y
    assert measured(net, (x, y)) == pytest.approx(hits.mean())
    assert measured(net, (x, np.eye(3)[y])) == pytest.approx(hits.mean())
    weights = np.random.default_rng(2).random(300)
    assert measured(net, (x, y, weights)) == pytest.approx((hits * weights[:, None]).sum() / weights.sum() / 5)
    assert measured(net, (x, y, weights)) != pytest.approx(hits.mean(), abs=1e-6)


@pytest.mark.parametrize("bias", [0.3, -0.3])
def test_logits_between_0_and_1_are_logits(bias):
    net, x = classifier(1), draw(20, 4)
    net.layers[0].set_weights([np.zeros((4, 1)), np.array([bias])])
    assert measured(net, (x, np.ones(20, int))) == float(bias > 0)
    squashed = classifier(1, "sigmoid")
    squashed.layers[0].set_weights([np.zeros((4, 1)), np.array([bias])])
    assert measured(squashed, (x, np.ones(20, int))) == float(bias > 0)


def test_a_last_layer_that_does_not_tell_is_asked():
    x = keras.Input((4,))
    net, data = keras.Model(x, L.Lambda(keras.ops.sigmoid)(L.Dense(1)(x))), (draw(20, 4), np.zeros(20, int))
    net.layers[1].set_weights([np.zeros((4, 1)), np.array([-0.3])])
    assert measured(net, data) == 1.0


def test_sample_weights_in_a_column_count_as_in_a_row():
    net, x, y = classifier(3), draw(50, 4), np.arange(50) % 3
    weights = np.random.default_rng(2).random(50)
    hits = np.asarray(net(x)).argmax(-1) == y
    expected = (hits * weights).sum() / weights.sum()
    assert measured(net, (x, y, weights[:, None])) == pytest.approx(expected) == measured(net, (x, y, weights))
    assert expected != pytest.approx(hits.mean(), abs=1e-6)
    with pytest.raises(KpipeError, match="weights sum to 0"):
        measured(net, (x, y, np.zeros(50)))
    with pytest.raises(KpipeError, match=r"sample weights of shape \(50,\) or \(50,\). Received: \(50, 2\)"):
        measured(net, (x, y, np.ones((50, 2))))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(KpipeError, match=r"labels of shape \(2,\) or \(2, 3\). Received: \(2, 4\)"):
        hits_of(np.zeros((2, 3)), np.zeros((2, 4)))
    two = keras.Input((4,))
    net = keras.Model(two, [L.Dense(2)(two), L.Dense(2)(two)])
    with pytest.raises(KpipeError, match="has 2 outputs, and accuracy is about one"):
        metric_of("accuracy", net, (draw(2, 4), np.zeros(2)))


def test_the_loss_is_the_mean_over_samples_whatever_the_batches():
    net, x = classifier(3), draw(300, 4)  # 256 and 44
    y = np.arange(300) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(loss(y, net(x)))
    assert measured(net, (x, y), "loss", loss) == pytest.approx(expected, rel=1e-5)
    net.compile(loss=loss)
    assert measured(net, (x, y), "loss") == pytest.approx(net.evaluate(x, y, verbose=0), rel=1e-5)
    halves = [float(loss(y[part], net(x[part]))) for part in (slice(0, 256), slice(256, 300))]
    assert measured(net, (x, y), "loss") != pytest.approx(np.mean(halves), rel=1e-5)


def test_inputs_and_outputs_by_name():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    keras.utils.set_random_seed(0)
    net = keras.Model([left, right], {"b": L.Dense(1, name="b")(left), "a": L.Dense(1, name="a")(right)})
    x, z = draw(9, 4), draw(9, 4) + 1
    labels = {"a": np.zeros((9, 1)), "b": np.zeros((9, 1))}

    def error(y, found) -> float:
        return float(np.square(found["a"]).mean() + 10 * np.square(found["b"]).mean() + y["a"].sum())

    def answer(inputs):
        found = net(inputs)
        return [found["a"], found["b"]]

    told = {"right": z, "left": x}
    figure = metric_of(error, net, (told, labels)).of(answer, net, (told, labels))
    a, b = z @ net.get_layer("a").kernel.numpy(), x @ net.get_layer("b").kernel.numpy()
    assert figure == pytest.approx(np.square(a).mean() + 10 * np.square(b).mean(), rel=1e-5)
