import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.pipeline.task import accuracy, classifies, gives_probabilities, loss_for
from kpipe.quantize import quantize


def net(units, activation=None):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, activation=activation)])


@pytest.mark.parametrize(
    ("units", "labels", "expected"),
    [
        (4, np.array([0, 3, 1]), "sparse_categorical_crossentropy"),
        (1, np.array([0, 1, 1]), "binary_crossentropy"),
        (3, np.eye(3), "categorical_crossentropy"),
        (2, np.array([[0.5, 3.0], [1.0, 1.0]]), "mean_squared_error"),
        (1, np.array([0.5, 3.0]), "mean_squared_error"),
    ],
)
def test_the_loss_fits_output_and_labels(units, labels, expected):
    assert loss_for(net(units), labels).name == expected


def test_logits_and_probabilities_give_the_same_loss():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([0, 2, 1, 1, 0])
    naive = -np.mean(np.log(shares[np.arange(5), labels]))
    assert float(loss_for(net(3), labels)(labels, logits)) == pytest.approx(naive, rel=1e-5)
    assert float(loss_for(net(3, "softmax"), labels)(labels, shares)) == pytest.approx(naive, rel=1e-5)
    # The control: probabilities taken for logits give another value.
    assert float(loss_for(net(3), labels)(labels, shares)) != pytest.approx(naive, rel=1e-2)


def test_a_named_loss_is_taken_and_an_unknown_one_refused():
    assert loss_for(net(2), np.array([0, 1]), "huber").name == "huber_loss"
    with pytest.raises(KpipeError, match=r"Unknown loss 'hubr'.*Did you mean 'huber'"):
        loss_for(net(2), np.array([0, 1]), "hubr")


def test_several_outputs_are_refused():
    x = keras.Input((3,))
    model = keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])
    with pytest.raises(KpipeError, match="has 2 outputs"):
        loss_for(model, np.array([0, 1]))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([keras.layers.Dense(2)], False),
        ([keras.layers.Dense(2), keras.layers.Softmax()], True),
        ([keras.layers.Dense(2), keras.layers.Activation("sigmoid")], True),
        ([keras.Sequential([keras.layers.Dense(2, activation="softmax")])], True),
    ],
)
def test_the_last_activation_is_found(layers, expected):
    assert gives_probabilities(keras.Sequential([keras.Input((3,)), *layers])) is expected


def test_accuracy_counts_right_answers():
    rng = np.random.default_rng(1)
    outputs, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    naive = sum(int(max(range(4), key=lambda k, row=row: row[k]) == label) for row, label in zip(outputs, labels)) / 50  # noqa: B905
    assert accuracy(outputs, labels) == pytest.approx(naive)
    assert accuracy(outputs, np.eye(4)[labels]) == pytest.approx(naive)


def test_accuracy_of_one_output_knows_probabilities():
    outputs, labels = np.array([[0.3], [0.9]]), np.array([0, 1])
    assert accuracy(outputs, labels, probabilities=True) == 1.0
    assert accuracy(outputs, labels) == 0.5


def test_labels_that_are_no_classes_have_no_accuracy():
    assert not classifies(np.array([0.25, 1.5]))
    assert accuracy(np.zeros((2, 1)), np.array([0.25, 1.5])) is None


def gated(activation):
    """Give a net whose squeeze-and-excite block ends in a sigmoid of its own."""
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = keras.layers.Conv2D(4, 1, activation="sigmoid")(gate)
    x = keras.layers.Flatten()(keras.layers.Multiply()([x, gate]))
    return keras.Model(image, keras.layers.Dense(3, activation=activation)(x))


@pytest.mark.parametrize(("activation", "expected"), [(None, False), ("softmax", True), ("sigmoid", True)])
def test_a_quantized_net_ends_as_its_float_one(activation, expected):
    model = gated(activation)
    quantized = quantize(model, calibration=np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32"))
    assert gives_probabilities(model) is expected
    assert gives_probabilities(quantized) is expected
    assert loss_for(quantized, np.array([0, 2])).get_config()["from_logits"] is not expected


def test_nested_models_are_followed_to_what_makes_the_output():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    moving = keras.Sequential([keras.Input((2,)), keras.layers.Reshape((2, 1)), keras.layers.Flatten()])
    assert gives_probabilities(keras.Sequential([keras.Input((3,)), inner, moving]))
    assert not gives_probabilities(keras.Sequential([keras.Input((3,)), inner, moving, keras.layers.Dense(2)]))
    x = keras.Input((3,))
    assert gives_probabilities(keras.Model(x, keras.ops.softmax(keras.layers.Dense(2)(x))))


def test_labels_are_classes_to_a_cross_entropy_only():
    outputs, labels = np.array([[0.1, 2.0], [3.0, 0.5]]), np.array([1, 1])
    assert accuracy(outputs, labels, loss="sparse_categorical_crossentropy") == 0.5
    assert accuracy(outputs, labels, loss="mean_squared_error") is None
    assert classifies(np.eye(3), "categorical_crossentropy")
    assert not classifies(np.eye(3), "huber")
    assert not classifies(np.array([0.5, 1.0]), "binary_crossentropy")


@pytest.mark.parametrize(("units", "labels"), [(2, np.array([0, 2])), (2, np.array([-1, 1])), (1, np.array([0, 7]))])
def test_labels_outside_the_classes_are_refused(units, labels):
    with pytest.raises(KpipeError, match=rf"labels run from {labels.min()} to {labels.max()}.*{units} output.*0 to 1"):
        loss_for(net(units), labels)
    loss_for(net(units), np.array([0, 1]))
