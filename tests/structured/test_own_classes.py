"""Models and layers of classes of one's own: what plans can be cut, whatever their configs tell."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph.remake import remake
from kpipe.schedules import ConstantSparsity
from kpipe.structured import FilterPruning, plan_filters, prune_filters, remove_layers


class Chain(keras.Model):
    """Build its graph in its own `__init__`: its config tells nothing of it."""

    def __init__(self, **kwargs):
        x = keras.Input((4,), name=f"{kwargs.get('name', 'chain')}_x")
        y = L.Dense(4, "relu", name="b")(L.Dense(4, "tanh", name="a")(x))
        super().__init__(x, L.Dense(2, name="out")(y), **kwargs)


class Sized(Chain):
    """Tell arguments of its own in its config, and take none of the graph's."""

    def __init__(self, units=4, name=None):
        super().__init__(name=name or "sized")
        self.units = units

    def get_config(self):
        return {"units": self.units, "name": self.name}


class Stack(keras.Sequential):
    """Add its layers in its own `__init__`."""

    def __init__(self):
        super().__init__([keras.Input((4,)), L.Dense(4, name="a"), L.Dense(4, name="b"), L.Dense(2, name="out")])


def inside(make) -> keras.Model:
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.Dense(3, name="after")(make()(L.Dense(4, name="before")(x))), name="outer")


MAKERS = {
    "functional": Chain,
    "with a config": Sized,
    "sequential": Stack,
    "functional inside": lambda: inside(Chain),
    "with a config inside": lambda: inside(Sized),
    "sequential inside": lambda: inside(Stack),
}


def answer(model: keras.Model) -> np.ndarray:
    return np.asarray(model(np.random.default_rng(0).normal(size=(7, 4)).astype("float32")))


def seeded(make) -> keras.Model:
    keras.utils.set_random_seed(0)
    return make()


def dense(model: keras.Model, name: str) -> L.Dense:
    return next(layer for layer in model._flatten_layers() if layer.name == name)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_channels_are_cut(make):
    model = seeded(make)
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert [dense(small, name).units for name in "ab"] == [2, 2]
    assert [dense(model, name).units for name in "ab"] == [4, 4] and "get_config" not in vars(model)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    columns = np.asarray(dense(model, "a").kernel).T
    assert all(
        any(np.isin(column, whole).all() for whole in columns) for column in np.asarray(dense(small, "a").kernel).T
    )
    again = keras.Model.from_config(small.get_config()) if not isinstance(small, keras.Sequential) else small
    assert again.count_params() == small.count_params()  # a plain model: it needs no class


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_layers_are_taken_out(make):
    model = seeded(make)
    small = remove_layers(model, layers="(^|/)b$")
    assert not any(layer.name == "b" for layer in small._flatten_layers())
    b = dense(model, "b")
    whole = answer(model)
    b.set_weights([np.eye(4), np.zeros(4)])
    b.activation = keras.activations.linear
    assert np.allclose(answer(model), answer(small), atol=1e-5)
    assert not np.allclose(whole, answer(small), atol=1e-3)


def test_what_was_trained_is_cut_at_the_end():
    model = seeded(Chain)
    model.compile("adam", "mse")
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0))
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[prune])
    small = prune.shrink()
    assert dense(small, "a").units == 2 and np.allclose(answer(model), answer(small), atol=1e-6)


class Nameless(L.Layer):
    """Take no name; two of them beside one another are told by their places alone."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def build(self, shape):
        self.shift = self.add_weight(shape=(1,), initializer="zeros", name="shift")

    def call(self, x):
        return self.factor * x + self.shift

    def get_config(self):
        return {"factor": self.factor}


def with_nameless(sequential: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    if sequential:
        layers = [L.Dense(4, name="a"), Nameless(2.0), Nameless(3.0), L.Dense(4, name="b"), L.Dense(2, name="out")]
        model = keras.Sequential([keras.Input((4,)), *layers])
    else:
        x = keras.Input((4,))
        y = L.Dense(4, name="a")(x)
        y = L.Concatenate()([Nameless(2.0)(y), Nameless(3.0)(y)])
        model = keras.Model(x, L.Dense(2, name="out")(L.Dense(4, name="b")(L.Dense(4, name="middle")(y))))
    for number, layer in enumerate(layer for layer in model.layers if isinstance(layer, Nameless)):
        layer.shift.assign([1.0 + number])
    return model


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_that_take_no_name_keep_it_and_their_weights(sequential):
    model = with_nameless(sequential)
    names = [layer.name for layer in model.layers]
    cut = prune_filters(model, plan_filters(model, ratio=0.5))
    short = remove_layers(model, layers="^b$")
    assert [layer.name for layer in cut.layers] == names
    assert [layer.name for layer in short.layers] == [name for name in names if name != "b"]
    for small in (cut, short):
        held = [(one.factor, float(one.shift[0])) for one in small.layers if isinstance(one, Nameless)]
        assert held == [(2.0, 1.0), (3.0, 2.0)]
    kernel, bias = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([np.eye(4), np.zeros(4)])
    assert np.allclose(answer(model), answer(short), atol=1e-5)
    model.get_layer("b").set_weights([kernel, bias])
    assert not np.allclose(answer(model), answer(short), atol=1e-3)


class Wordless(L.Layer):
    """Have an argument that its config does not tell."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_cannot_be_made_again_is_refused_by_a_named_error():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4, name="a"), Wordless(2.0), L.Dense(4, name="b"), L.Dense(2)])
    for cut in (
        lambda: prune_filters(model, plan_filters(model, ratio=0.5)),
        lambda: remove_layers(model, layers="b"),
        lambda: remake(model, lambda config: config.pop("layers")),
    ):
        with pytest.raises(SurgeryError, match=r"cannot be rebuilt from its config: .* needs a get_config that gives"):
            cut()


def test_single_frozen_weights_stay_frozen():
    model = seeded(Chain)
    model.get_layer("b").kernel.trainable = False
    model.get_layer("out").trainable = False
    for small in (prune_filters(model, plan_filters(model, ratio=0.5)), remove_layers(model, layers="a")):
        b, out = small.get_layer("b"), small.get_layer("out")
        assert [one.trainable for one in (b.kernel, b.bias)] == [False, True]
        assert b.trainable and not out.trainable and not out.trainable_variables
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert len(small.trainable_variables) == len(model.trainable_variables) == 3
