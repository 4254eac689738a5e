"""Reading a graph and replaying it."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph import replay, sites, trace
from tests.models import ZOO, build, samples


def as_is(site, *args, **kwargs):
    return site.operation(*args, **kwargs)


def copies():
    """Call a copy of each layer, named by its path: layers of nested models may share a name."""
    made = {}

    def call(site, *args, **kwargs):
        layer = site.operation
        if id(layer) not in made:
            made[id(layer)] = type(layer).from_config({**layer.get_config(), "name": site.path.replace("/", "_")})
        out = made[id(layer)](*args, **kwargs)
        made[id(layer)].set_weights(layer.get_weights())
        return out

    return call


@pytest.mark.parametrize("name", ZOO)
def test_replay_computes_the_same(name):
    model = build(name)
    again = replay(model, copies())
    x = samples(model)
    fed = x if len(x) > 1 else x[0]
    for a, b in zip(keras.tree.flatten(model(fed)), keras.tree.flatten(again(fed)), strict=True):
        assert np.array_equal(a, b)
    assert [t.name for t in again.inputs] == [t.name for t in model.inputs]
    assert not any(isinstance(layer, keras.Model) for layer in again.layers)


def test_replay_may_change_every_call_and_input():
    model = build("residual")
    doubled = replay(model, lambda site, *a, **k: as_is(site, *a, **k) * (2.0 if site.path == "logits" else 1.0))
    shifted = replay(model, as_is, on_input=lambda site, x: x + 1.0)
    x = samples(model)[0]
    assert np.allclose(doubled(x), 2 * np.asarray(model(x)), atol=1e-5)
    assert np.allclose(shifted(x), model(x + 1.0), atol=1e-5)


def test_dict_models_keep_their_structure():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, {"sum": L.Add()([a, b]), "left": L.Dense(2)(a)})
    again = replay(model, as_is)
    out = again({"a": np.ones((1, 3)), "b": np.ones((1, 3))})
    assert sorted(out) == ["left", "sum"] and np.array_equal(out["sum"], [[2.0, 2.0, 2.0]])


def test_sites_of_a_shared_tower_come_once_a_call():
    flow = sites(build("siamese"))
    calls = [(site.path, site.call) for site in flow.sites if site.path in ("tower/conv", "shared")]
    assert sorted(calls) == [("shared", 0), ("shared", 1), ("tower/conv", 0), ("tower/conv", 1)]
    assert len(flow.inputs) == 2 and len(flow.outputs) == 2
    shared = next(site for site in flow.sites if site.path == "shared")
    assert sorted(site.path for site in flow.consumers(shared)) == ["average", "cat"]


def test_one_layer_in_two_models_is_refused():
    conv = L.Conv2D(4, 3, padding="same", name="conv")
    inner_in = keras.Input((8, 8, 4))
    inner = keras.Model(inner_in, conv(inner_in), name="inner")
    x = keras.Input((8, 8, 4))
    with pytest.raises(SurgeryError, match="several models"):
        trace(keras.Model(x, inner(conv(x))))
