"""How a wrapped layer may be called, and what of it is left alone."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import NoEffectWarning
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured import UpdatePruningStep, prune_low_magnitude

HALF = ConstantSparsity(0.5, 0, frequency=1)


@pytest.mark.parametrize(
    ("layer", "names"),
    [(L.MultiHeadAttention(2, 4), ("query", "value")), (L.LSTM(3), ("sequences",)), (L.Dense(2), ("inputs",))],
    ids=["attention", "lstm", "dense"],
)
def test_the_first_argument_may_go_by_the_layers_own_name(layer, names):
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    wrapped = prune_low_magnitude(layer, HALF)
    by_name = wrapped(**dict.fromkeys(names, x))
    np.testing.assert_array_equal(by_name, wrapped(*[x] * len(names)))
    np.testing.assert_array_equal(by_name, layer(*[x] * len(names)))
    assert wrapped.masked


def test_a_layer_that_is_not_wrapped_keeps_the_input_shape_that_came_with_it():
    with pytest.warns(NoEffectWarning, match="wrapped nothing"):
        first = prune_low_magnitude(L.DepthwiseConv2D(3), HALF, input_shape=(8, 8, 2))
    assert not hasattr(first, "masked")
    assert keras.Sequential([first]).output_shape == (None, 6, 6, 2)


class Cell(L.Layer):
    """A cell of which kpipe knows nothing."""

    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, shape):
        self.mix = self.add_weight(shape=(shape[-1], self.units), name="mix")

    def call(self, x, states):
        return keras.ops.matmul(x, self.mix), states


def test_the_weights_of_a_layer_that_is_known_in_part_are_named():
    layer = prune_low_magnitude(L.RNN([L.LSTMCell(3), Cell()]), HALF)
    model = keras.Sequential([keras.Input((4, 5)), layer])
    model.compile("sgd", "mse")
    assert [path.rpartition("/")[2] for path, _ in layer.left_dense] == ["mix"]
    with pytest.warns(UserWarning, match="leaves weights dense .*mix: kpipe does not know what it does"):
        model.fit(np.ones((4, 4, 5)), np.ones((4, 2)), verbose=0, callbacks=[UpdatePruningStep()])
    whole = prune_low_magnitude(L.Bidirectional(L.LSTM(3)), HALF)
    whole.build((None, 4, 5))
    assert whole.masked and not whole.left_dense
