"""A copy in float32 of a model of half precision: the same weights bit for bit, and nothing of it in halves."""

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.copies import float32_policy, half_policies, in_float32
from kpipe.copies.precision import HALF_POLICIES, _retype
from kpipe.errors import KpipeError

HALVES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


@pytest.fixture
def policy():
    """Set a policy for the test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


class Inner(L.Layer):
    """A layer that makes another in its `__init__`, and tells it no type."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.dropout = L.Dense(units), L.Dropout(0.5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dropout(self.dense(x)) * keras.ops.cast(2, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "units": self.dense.units}


def layered():
    return keras.Sequential([keras.Input((8,)), L.Dense(6), L.BatchNormalization(), Inner(4), L.Dense(3)])


def graph():
    """Casts, constants and models of half precision in a graph, one of them named like a policy."""
    x = keras.Input((8,))
    y = keras.ops.cast(L.Dense(4)(x), "float16") + np.ones(4, "float16")
    y = keras.Sequential([keras.Input((4,)), L.Dense(3, "relu")])(y)
    inside = keras.Input((3,))
    y = keras.Model(inside, L.Dense(3)(inside), name="mixed_float16")(y)
    return keras.Model(x, L.Dense(2, dtype="float32")(y))


def wrapped():
    layers = [L.TimeDistributed(L.Dense(4)), L.Bidirectional(L.LSTM(3, recurrent_initializer="glorot_uniform"))]
    return keras.Sequential([keras.Input((4, 2)), *layers, L.Lambda(lambda x: x * 2), L.Dense(2)])


def mapped():
    """Each layer has the policy that a map of paths gives it."""
    each = keras.dtype_policies.DTypePolicyMap(
        "mixed_float16",
        {".*b": keras.DTypePolicy("mixed_bfloat16"), ".*c": keras.DTypePolicy("float32")},
    )
    return keras.Sequential([keras.Input((8,)), *(L.Dense(5, dtype=each, name=name) for name in "abc")])


def plain(variable):
    return np.asarray(variable).astype("float32")


@pytest.mark.sweep(6)
@pytest.mark.parametrize("make", [layered, graph, wrapped, mapped])
@pytest.mark.parametrize("name", HALVES)
def test_a_copy_has_the_same_weights_and_nearly_the_same_answers(name, make, policy):
    policy(name)
    model = make()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(np.abs(rng.normal(0.1, 0.3, variable.shape)))
    full = kpipe.to_float32(model)
    assert half_policies(model) and not half_policies(full)
    assert {layer.compute_dtype for layer in full._flatten_layers() if layer.weights} == {"float32"}
    assert {variable.dtype for variable in full.weights} == {"float32"}
    for new, old in zip(full.weights, model.weights, strict=True):
        np.testing.assert_array_equal(plain(new), plain(old))
    x = rng.normal(size=(32, *model.input_shape[1:])).astype("float32")
    exact, rough = plain(full(x)), plain(model(x))
    assert full(x).dtype == "float32"
    assert 0 < np.abs(exact - rough).max() <= 1e-2 * np.abs(exact).max() * (4 if "bfloat16" in name else 1)
    assert keras.config.dtype_policy().name == name, "the policy that was set is set again"


def test_plain_copies_stay_in_halves(policy):
    """Negative control: what the function is for is not done by other copies."""
    policy("mixed_float16")
    model = layered()
    assert half_policies(keras.models.clone_model(model)) == half_policies(kpipe.copies.copy_model(model))
    assert half_policies(model) == ("mixed_float16",)


def test_a_model_that_is_cut_in_mixed_precision_has_no_code_and_yet_a_copy(policy):
    policy("mixed_float16")
    model = keras.Sequential([keras.Input((8,)), L.Dense(6), L.BatchNormalization(), L.Dense(3)])
    small = kpipe.prune_filters(model, kpipe.plan_filters(model, 0.5))
    policy("float32")
    full = kpipe.to_float32(small)
    assert full.layers[0].units == small.layers[0].units == 3 and not half_policies(full)


def test_a_float32_model_is_taken_as_it_is_whatever_policy_is_set(policy, recwarn):
    model = keras.Sequential([keras.Input((8,)), L.Dense(2)])
    policy("mixed_float16")
    graph_of_it = keras.Model(model.inputs, model.outputs)  # a graph made under the policy computes by its layers'
    assert in_float32(model, "The file") is model and in_float32(graph_of_it, "The file") is graph_of_it
    assert kpipe.to_float32(model) is not model
    assert not recwarn.list


def test_other_types_and_names_stay():
    config = {
        "name": "mixed_float16",
        "dtype": "int32",
        "accumulate_dtype": "float16",
        "rate": 0.5,
        "words": ("float16",),
    }
    assert _retype(config, "float32", HALF_POLICIES) == {**config, "accumulate_dtype": "float32"}


class Stubborn(L.Layer):
    """A layer whose inner one takes half precision whatever it is told."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(2, dtype="mixed_float16", name="always")

    def call(self, x):
        return self.dense(x)


class Cast(L.Layer):
    """A layer that gives half precision by itself."""

    def call(self, x):
        return keras.ops.cast(x, "float16")


class Own(keras.Model):
    """A model without a config."""

    def __init__(self, units):
        super().__init__(name="own")
        self.dense = L.Dense(units, dtype="mixed_float16")

    def call(self, x):
        return self.dense(x)


def test_what_cannot_be_copied_is_named():
    own = Own(2)
    own(np.ones((1, 3)))
    with pytest.raises(KpipeError, match=r"'own'.*cannot be copied.*get_config"):
        kpipe.to_float32(own)
    with pytest.raises(KpipeError, match=r"'own' computes in mixed_float16, and the file in float32\. .*get_config"):
        in_float32(own, "The file")
    with pytest.raises(KpipeError, match=r"'always' \(Dense\).*mixed_float16 whatever its configuration says"):
        kpipe.to_float32(keras.Sequential([keras.Input((3,)), Stubborn()]))
    with pytest.raises(KpipeError, match=r"output .* cannot be made float32: a layer or function casts it to float16"):
        kpipe.to_float32(keras.Sequential([keras.Input((3,)), Cast()]))


def test_the_policy_is_set_again_after_an_error(policy):
    policy("mixed_bfloat16")
    with pytest.raises(RuntimeError), float32_policy():
        raise RuntimeError
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
