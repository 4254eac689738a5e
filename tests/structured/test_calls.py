"""Layers that are called in several ways, of which only one has channels that may go; and inputs of every kind."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.errors import SurgeryError
from kpipe.graph import random_inputs, trace
from kpipe.schedules import ConstantSparsity
from kpipe.structured import FilterPruning, plan_filters, prune_filters, remove_layers, sensitivity
from tests.structured.by_hand import hold, same


def norm_along_and_across(make, along_first):
    """A shared norm: in one call "a" lies along its weights, in the other "b" lies beside them."""
    x, norm = keras.Input((6, 4)), make()
    a, b = L.Dense(6, name="a")(x), L.Permute((2, 1))(L.Dense(6, name="b")(x))
    a, b = (norm(a), norm(b)) if along_first else (norm(b), norm(a))[::-1]
    return keras.Model(x, L.Concatenate()([L.Dense(2)(a), L.Dense(2, name="end")(L.Permute((2, 1))(b))]))


@pytest.mark.parametrize("along_first", [True, False])
def test_channels_that_lie_along_a_shared_norm_in_one_call_alone_stay(along_first):
    def make():
        return norm_along_and_across(lambda: L.BatchNormalization(name="norm"), along_first)

    hold(make, {"b": [("end", "kernel", 0, same)]})
    assert "'norm' is called in different ways" in trace(make()).frozen["a"]


@pytest.mark.parametrize("along_first", [True, False])
def test_a_shared_layer_norm_is_cut_where_its_channels_lie_beside_its_weights(along_first):
    model = norm_along_and_across(lambda: L.LayerNormalization(name="norm"), along_first)
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert [small.get_layer(name).units for name in "ab"] == [6, 3]


def shared_reshape():
    x, reshape = keras.Input((12,)), L.Reshape((3, 4), name="reshape")
    return x, reshape(x), reshape(L.Dense(12, name="made")(x))


def shared_slope():
    form = {"data_format": "channels_first"}
    x, slope = keras.Input((4, 6, 5)), L.PReLU(shared_axes=[2, 3], name="slope")
    return x, slope(L.Conv2D(4, 3, padding="same", name="made", **form)(x)), slope(x)


def nested_operations():
    taken = keras.Input((12,))
    inner = keras.Model(taken, ops.reshape(taken, (-1, 3, 4))[..., :3], name="inner")
    x = keras.Input((12,))
    return x, inner(x), inner(L.Dense(12, name="made")(x))


@pytest.mark.parametrize("make", [shared_reshape, shared_slope, nested_operations])
def test_what_is_also_called_on_an_input_keeps_its_size(make):
    x, one, other = make()
    model = keras.Model(x, L.Dense(2)(L.Dense(6, name="free")(L.Concatenate()([L.Flatten()(one), L.Flatten()(other)]))))
    plan = plan_filters(model, ratio=0.5)
    assert [group.name for group in plan.groups] == ["free"] and "is called in different ways" in plan.frozen["made"]
    assert prune_filters(model, plan).get_layer("free").units == 3


def float_tokens():
    x = keras.Input((6,))
    return x, L.GlobalAveragePooling1D()(L.Embedding(9, 8)(x))


def logarithm():
    x = keras.Input((6,))
    return x, ops.log(x)


def text():
    x = keras.Input((1,), dtype="string")
    return x, L.StringLookup(vocabulary=["0", "b"], output_mode="one_hot")(x)


@pytest.mark.parametrize("make", [float_tokens, logarithm, text])
def test_the_check_asks_a_model_of_what_it_can_take(make):
    x, y = make()
    y = L.Dense(8, name="wide")(L.Dense(8, name="square")(L.Dense(8)(y)))
    model = keras.Model(x, L.Dense(2)(y))
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer("wide").units == 4
    assert "square" not in [layer.name for layer in remove_layers(model, layers="square").layers]


def test_a_model_that_answers_no_numbers_is_said_to_be_the_one_that_cannot_be_compared():
    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(2)(ops.log(L.Dense(8, name="a", kernel_initializer="zeros")(x) - 1.0)))
    plan = plan_filters(model, ratio=0.5)
    with pytest.raises(SurgeryError, match=r"itself answers with values that are not finite.*check=False"):
        prune_filters(model, plan)
    assert prune_filters(model, plan, check=False).get_layer("a").units == 4


def test_no_sample_of_the_check_is_all_padding():
    x = keras.Input((2,), dtype="int32")
    y = L.GlobalAveragePooling1D()(L.Embedding(9, 8, mask_zero=True, name="a")(x))  # divides by the number of steps
    model = keras.Model(x, L.Dense(2)(y))
    assert prune_filters(model, plan_filters(model, ratio=0.5)).get_layer("a").output_dim == 4
    assert all((inputs[:, 0] >= 1).all() for seed in range(9) for inputs in random_inputs(model, seed))


def stateful():
    x = keras.Input(batch_shape=(4, 5, 3))
    y = L.LSTM(6, stateful=True, return_sequences=True, name="a")(x)
    y = L.Add(name="sum")([y, L.GRU(6, stateful=True, return_sequences=True, name="b")(y)])
    model = keras.Model(x, L.Dense(2)(L.Bidirectional(L.LSTM(4, stateful=True, name="c"), name="both")(y)))
    model.compile("sgd", "mse")
    return model


@pytest.mark.slow
def test_stateful_layers_are_compared_from_rest_whatever_state_they_are_in():
    model, data = stateful(), (np.ones((8, 5, 3)), np.ones((8, 2)))
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0))
    model.fit(*data, batch_size=4, verbose=0, callbacks=[prune])
    before = np.asarray(model.get_layer("a").states[0])
    assert np.abs(before).max() > 0
    assert prune.shrink().get_layer("b").units == 3
    assert "b" not in [layer.name for layer in remove_layers(model, layers="sum").layers]
    few = [rows[:4] for rows in data]
    assert len(sensitivity(model, tuple(few), ratios=(0.5,), metric="loss").groups) == 2
    assert np.array_equal(model.get_layer("a").states[0], before)


def test_layers_and_groups_of_a_model_that_takes_text_are_judged():
    x, y = text()
    model = keras.Model(x, L.Dense(2)(L.Dense(8, name="square")(L.Dense(8)(y))))
    data = np.asarray([["0"], ["b"], ["c"]], dtype=object), np.ones((3, 2))
    assert "square" not in [layer.name for layer in remove_layers(model, count=1, data=data[0]).layers]
    assert len(sensitivity(model, data, ratios=(0.5,), metric="loss", loss="mse").groups) == 2


def test_a_scan_says_when_the_model_answers_no_numbers():
    x = keras.Input((2,))
    model = keras.Model(x, L.Dense(1)(L.Dense(3)(ops.log(x))))
    data = -np.ones((4, 2)), np.ones((4, 1))
    with pytest.raises(SurgeryError, match="itself answers with values that are not finite"):
        sensitivity(model, data, ratios=(0.5,), metric="loss", loss="mse")
