"""Norms of activations: the score of wanda is how far a layer's output moves when the weight goes."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.saliency import gather, score
from kpipe.saliency.activations import input_norms
from kpipe.saliency.criteria import wanda

LINEAR: dict[str, tuple] = {  # layer, shape of one sample, name of the weight
    "dense": (lambda: L.Dense(3), (4,), "kernel"),
    "dense on a sequence": (lambda: L.Dense(3), (5, 4), "kernel"),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 4), "kernel"),
    "einsum, order of axes": (lambda: L.EinsumDense("abcd,dec->abe", (None, 3)), (5, 2, 4), "kernel"),
    "einsum, one matrix a place": (lambda: L.EinsumDense("abc,bcd->abd", (5, 3)), (5, 4), "kernel"),
    "einsum, ellipsis": (lambda: L.EinsumDense("...x,yx->...y", 3), (5, 4), "kernel"),
    "conv1d": (lambda: L.Conv1D(3, 2, padding="causal", dilation_rate=2), (6, 2), "kernel"),
    "conv2d": (lambda: L.Conv2D(3, 3, strides=2, padding="same"), (5, 6, 2), "kernel"),
    "conv2d, groups": (lambda: L.Conv2D(4, (2, 3), groups=2), (5, 5, 4), "kernel"),
    "conv3d": (lambda: L.Conv3D(2, 2), (3, 3, 3, 2), "kernel"),
    "conv1d, transposed": (lambda: L.Conv1DTranspose(2, 3, strides=2), (4, 3), "kernel"),
    "conv2d, transposed": (lambda: L.Conv2DTranspose(2, 3, strides=2, padding="same"), (3, 4, 3), "kernel"),
    "depthwise": (lambda: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2), (5, 5, 2), "kernel"),
    "separable": (lambda: L.SeparableConv2D(3, 2, strides=2, depth_multiplier=2), (5, 5, 2), "pointwise_kernel"),
    "separable1d": (lambda: L.SeparableConv1D(3, 2), (5, 2), "pointwise_kernel"),
    "embedding": (lambda: L.Embedding(5, 3), None, "embeddings"),
}


def scored(model: keras.Model, variable: keras.Variable, data: Any, role: str = "kernel") -> np.ndarray:
    found = score(wanda, gather(model, [("w", role, variable)], "inputs", data)["w"], "w")
    assert found is not None
    return found


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", LINEAR)
def test_the_score_is_the_change_of_the_layers_output(name):
    """Take one weight after the other away, and measure."""
    make, shape, attribute = LINEAR[name]
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (6, 3)) if shape is None else rng.normal(size=(6, *shape)).astype("float32")
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    layer = make()
    model = keras.Model(inputs, L.Activation("relu")(layer(inputs)))
    variable = getattr(layer, attribute)
    start, before = variable.numpy(), layer(x)
    run = tf.function(lambda: tf.norm(layer(x) - before))
    wanted = np.zeros(start.shape)
    for place in np.ndindex(*start.shape):
        moved = start.copy()
        moved[place] = 0
        variable.assign(moved)
        wanted[place] = run().numpy()
    variable.assign(start)
    got = scored(model, variable, tf.data.Dataset.from_tensor_slices(x).batch(4))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    assert not np.allclose(np.abs(start), wanted, rtol=1e-2), "a magnitude alone is no such change"


def test_the_depthwise_part_of_a_separable_convolution():
    keras.utils.set_random_seed(0)
    separable, depthwise = L.SeparableConv2D(3, 3, padding="same"), L.DepthwiseConv2D(3, padding="same")
    inputs = keras.Input((5, 5, 2))
    models = [keras.Model(inputs, layer(inputs)) for layer in (separable, depthwise)]
    x = np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype("float32")
    got, wanted = input_norms(models[0], [separable.depthwise_kernel])(x), input_norms(models[1], [depthwise.kernel])(x)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    inner = x[:, 1:-1, 1:-1]  # the middle of the window never lies on the padding, its corners do
    np.testing.assert_allclose(got[0][1, 1, :, 0], np.sqrt((x**2).sum((0, 1, 2))), rtol=1e-5)
    np.testing.assert_allclose(got[0][0, 0, :, 0], np.sqrt((x[:, :-1, :-1] ** 2).sum((0, 1, 2))), rtol=1e-5)
    assert not np.allclose(got[0][0, 0, :, 0], np.sqrt((inner**2).sum((0, 1, 2))), rtol=1e-3)


RECURRENT: dict[str, Any] = {
    "simple": lambda: L.SimpleRNN(3, return_sequences=True),
    "lstm, last state alone": lambda: L.LSTM(3),
    "lstm, backwards": lambda: L.LSTM(3, go_backwards=True),
    "gru": lambda: L.GRU(3, return_state=True),
    "cell": lambda: L.RNN(L.LSTMCell(3)),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_kernels_meet_the_states_that_enter_the_steps(name, masked):
    """Step through the cell by hand, over the steps that count, from a given state."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 2)).astype("float32")
    if masked:
        x[0, 2:], x[1, 0] = 0, 0
    layer = RECURRENT[name]()
    start = [rng.normal(size=(3, 3)).astype("float32") for _ in layer.state_size]
    inputs, states = keras.Input((4, 2)), [keras.Input((3,)) for _ in start]
    mask = keras.ops.any(keras.ops.not_equal(inputs, 0), axis=-1) if masked else None
    model = keras.Model([inputs, *states], layer(inputs, initial_state=states, mask=mask))
    of_inputs, of_states = np.zeros(2), np.zeros(3)
    for i in range(3):
        state = [s[i : i + 1] for s in start]
        for step in range(4)[::-1] if layer.go_backwards else range(4):
            if masked and not x[i, step].any():
                continue
            of_inputs += x[i, step] ** 2
            of_states += np.asarray(state[0])[0] ** 2
            _, state = layer.cell(x[i : i + 1, step], state)
    got = input_norms(model, [layer.cell.kernel, layer.cell.recurrent_kernel])([x, *start])
    np.testing.assert_allclose(got[0], np.sqrt(of_inputs)[:, None], rtol=1e-4)
    np.testing.assert_allclose(got[1], np.sqrt(of_states)[:, None], rtol=1e-4)


def test_layers_inside_others_shared_layers_and_models_of_a_class_of_their_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.shared, self.steps = L.Dense(3), L.TimeDistributed(L.Dense(2))
            self.both = L.Bidirectional(L.GRU(2))
            self.attention = L.MultiHeadAttention(2, 2)

        def call(self, x, training=False):
            x = self.shared(self.shared(x))
            return self.both(self.steps(self.attention(x, x)))

    keras.utils.set_random_seed(0)
    model = Own()
    x = np.random.default_rng(0).normal(size=(3, 4, 3)).astype("float32")
    before = model(x).numpy()
    first = model.shared(x).numpy()
    second = model.shared(first).numpy()
    attended = model.attention(second, second).numpy()
    stepped = model.steps(attended).numpy()

    def norm(*arrays: np.ndarray) -> np.ndarray:
        return np.sqrt(sum((a**2).sum((0, 1)) for a in arrays))[:, None]

    variables = [
        model.shared.kernel,
        model.attention._query_dense.kernel,
        model.steps.layer.kernel,
        model.both.forward_layer.cell.kernel,
        model.both.backward_layer.cell.kernel,
    ]
    wanted = [norm(x, first), norm(second)[..., None], norm(attended), norm(stepped), norm(stepped)]
    for got, expected in zip(input_norms(model, variables)(x), wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert "call" not in vars(model.shared) and np.array_equal(model(x).numpy(), before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reversible_embedding_meets_tokens_and_features(tied):
    keras.utils.set_random_seed(0)
    layer = L.ReversibleEmbedding(4, 2, tie_weights=tied)
    tokens = keras.Input((3,), dtype="int32")
    hidden = layer(tokens)
    model = keras.Model(tokens, layer(hidden, reverse=True))
    x = np.array([[0, 1, 1], [3, 1, 0]])
    counts, features = np.array([2.0, 3.0, 0.0, 1.0])[:, None], (layer(x).numpy() ** 2).sum((0, 1))
    got = input_norms(model, layer.weights)(x)
    np.testing.assert_allclose(got[0] ** 2, np.broadcast_to(counts + (features if tied else 0), (4, 2)), rtol=1e-4)
    if not tied:
        np.testing.assert_allclose(got[1] ** 2, features[:, None], rtol=1e-4)


def test_two_recurrent_layers_around_one_cell():
    keras.utils.set_random_seed(0)
    cell = L.SimpleRNNCell(2)
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, L.RNN(cell)(L.RNN(cell, return_sequences=True)(inputs)))
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    between = model.layers[1](x).numpy()
    got = input_norms(model, [cell.kernel])(x)[0]
    np.testing.assert_allclose(got[:, 0], np.sqrt((x**2).sum((0, 1)) + (between**2).sum((0, 1))), rtol=1e-4)


def test_a_weight_of_which_nothing_is_known_is_not_judged():
    gated = L.GRU(2, reset_after=False)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, L.LayerNormalization()(gated(inputs)))
    x = np.ones((2, 4, 3), "float32")
    assert [norm is None for norm in input_norms(model, [gated.cell.kernel, gated.cell.recurrent_kernel])(x)] == [
        False,
        True,
    ]
    assert wanda(gather(model, [("k", "recurrent_kernel", gated.cell.recurrent_kernel)], "inputs", x)["k"]) is None
    for data in (None, x[:0]):
        with pytest.raises(KpipeError, match="needs data"):
            input_norms(model, [gated.cell.kernel])(data)


def test_a_call_that_fails_leaves_the_layers_as_they_are():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with pytest.raises(ValueError, match="incompatible"):
        input_norms(model, model.weights)(np.ones((2, 5), "float32"))
    assert "call" not in vars(model.layers[0])
