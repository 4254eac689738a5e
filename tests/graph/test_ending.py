"""What a model ends in, and whether it answers with probabilities."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.graph import before_probabilities, gives_probabilities, last_activation


def chain(*layers) -> keras.Model:
    return keras.Sequential([keras.Input((4, 3)), *layers])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([L.Dense(2)], keras.activations.linear),
        ([L.Dense(2, "relu")], keras.activations.relu),
        ([L.Dense(2, "softmax"), L.Flatten(), L.Reshape((2, 4))], keras.activations.softmax),
        ([L.Dense(2), L.Softmax()], keras.activations.softmax),
        ([L.Conv1D(2, 1), L.Activation("sigmoid")], keras.activations.sigmoid),
        ([L.TimeDistributed(L.Dense(2, "sigmoid"))], keras.activations.sigmoid),
        ([keras.Sequential([L.Dense(2, "softmax")])], keras.activations.softmax),
        ([L.Dense(2, "softmax"), L.Lambda(lambda y: 2 * y)], None),
    ],
    ids="linear relu moved layer activation distributed nested unknown".split(),
)
def test_the_last_activation_is_found(layers, expected):
    assert last_activation(chain(*layers)) is expected


@pytest.mark.parametrize(("handed_on", "expected"), [(0, "tanh"), (1, "softmax")])
def test_the_last_activation_is_found_through_a_model_that_hands_an_input_on(handed_on, expected):
    ends = [keras.Input((3,)), keras.Input((3,))]
    inner = keras.Model(ends, [ends[handed_on], L.Dense(2, "relu")(ends[0])])
    x = keras.Input((4,))
    model = keras.Model(x, inner([L.Dense(3, "tanh")(x), L.Dense(3, "softmax")(x)])[0])
    assert last_activation(model) is getattr(keras.activations, expected)


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = L.Dense(2, "softmax")

    def call(self, x):
        return self.out(x)


def test_nothing_is_known_of_a_model_without_a_graph():
    model = Own()
    answers = model(np.ones((5, 3)))
    assert last_activation(model) is None
    assert not gives_probabilities(model) and gives_probabilities(model, lambda: np.asarray(answers))


def never() -> np.ndarray:
    raise AssertionError("the model is asked although its last layer tells")


@pytest.mark.parametrize(("activation", "expected"), [(None, False), ("sigmoid", True), ("softmax", True)])
def test_a_last_layer_that_tells_is_not_asked(activation, expected):
    assert gives_probabilities(chain(L.Dense(1, activation)), never) is expected


def test_where_the_last_layer_does_not_tell_the_answers_do():
    x = keras.Input((3,))
    two = keras.Model(x, L.Average()([L.Dense(2, "softmax")(x), L.Dense(2, "softmax")(x)]))
    shares = np.array([[0.25, 0.75], [1.0, 0.0]])
    for answers, expected in [(shares, True), (shares + 0.1, False), (2 * shares - 0.5, False), (shares[:, :1], True)]:
        assert gives_probabilities(two, lambda answers=answers: answers) is expected
    assert gives_probabilities(two, lambda: np.asarray(two(np.ones((3, 3)))))
    assert not gives_probabilities(two)


@pytest.mark.parametrize(
    "layers",
    [
        [L.Dense(2, "softmax")],
        [L.Dense(2), L.Softmax()],
        [L.Dense(2), L.Activation("sigmoid")],
        [L.TimeDistributed(L.Dense(2, "sigmoid"))],
        [keras.Sequential([L.Dense(2, "softmax")])],
    ],
    ids="layer itself activation distributed nested".split(),
)
def test_a_model_answers_with_its_logits_for_a_while(layers):
    model, x = chain(*layers), np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    dense = next(layer for layer in model._flatten_layers() if isinstance(layer, L.Dense))
    logits, answers = x @ np.asarray(dense.kernel) + np.asarray(dense.bias), np.asarray(model(x))
    with pytest.raises(KeyboardInterrupt), before_probabilities(model, model) as (left_out,):
        np.testing.assert_allclose(model(x), logits, atol=1e-6)
        np.testing.assert_allclose(left_out(ops.convert_to_tensor(logits)), answers, atol=1e-6)
        with before_probabilities(model, model):
            pass
        np.testing.assert_allclose(model(x), logits, atol=1e-6)
        raise KeyboardInterrupt
    np.testing.assert_array_equal(model(x), answers)
    assert last_activation(model) in (keras.activations.softmax, keras.activations.sigmoid)


def test_every_output_counts_and_what_is_no_probability_stays():
    x = keras.Input((3,))
    outputs = [ops.softmax(L.Dense(2, name="a")(x)), L.Dense(2, "sigmoid")(x), L.Dense(2, "tanh")(x)]
    model, values = keras.Model(x, outputs), np.full((1, 3), 2.0)
    with before_probabilities(model, model) as left_out:
        first, second, third = model(values)
    softmax, sigmoid, tanh = model(values)
    np.testing.assert_allclose(np.exp(first) / np.exp(first).sum(), softmax, rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(second))), sigmoid, rtol=1e-5)
    np.testing.assert_array_equal(third, tanh)
    assert left_out[2] is None and None not in left_out[:2]


def gate(name):
    """Probabilities that are used inside: their logs, a gate of the same layer, an output that goes on."""
    x, squash = keras.Input((3,)), L.Activation("sigmoid", name="squash")
    y = L.Dense(3, name="dense")(x)
    if name == "goes on":
        p = squash(y)
        return keras.Model(x, [p, ops.sum(p * ops.log(p), axis=-1)])
    if name == "shared":
        return keras.Model(x, squash(L.Dense(3)(ops.sqrt(squash(y)))))
    return keras.Model(x, L.Softmax()(y, mask=ops.ones((1, 3), "bool")))


@pytest.mark.parametrize("name", ["goes on", "shared", "masked"])
def test_an_end_that_is_used_elsewhere_is_none(name):
    model, values = gate(name), np.full((1, 3), 0.5)
    expected = keras.tree.flatten(model(values))
    with before_probabilities(model, model) as left_out:
        assert not any(left_out)
        for got, before in zip(keras.tree.flatten(model(values)), expected, strict=True):
            np.testing.assert_array_equal(got, before)


def test_only_what_two_models_have_in_common_is_left_out():
    first, second = chain(L.Dense(2, "softmax", name="a")), chain(L.Dense(2, "softmax", name="b"))
    with before_probabilities(first, second) as left_out:
        assert left_out == [None]
        assert first.layers[-1].activation is keras.activations.softmax
