"""Filter pruning in fit where a layer computes something over channels: they stay, or are held exactly."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.schedules import PolynomialDecay
from kpipe.structured import FilterPruning, callback
from kpipe.structured.held import over_channels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6, 8)).astype("float32")
Y = RNG.normal(size=(32, 3)).astype("float32")
SCHEDULE = PolynomialDecay(0.0, 0.5, 0, 8, frequency=2)


def normed(norm):
    """A residual stream that a norm reads, with a wide layer beside it, which no norm reads."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 8))
    stream = L.Dense(12, name="stream")(x)
    wide = L.Dense(20, activation="gelu", name="wide")(norm(stream))
    stream = L.Add(name="add")([stream, L.Dense(12, name="back")(wide)])
    return keras.Model(x, L.Dense(3, name="out")(L.GlobalAveragePooling1D()(stream)))


def attending():
    """Attention with its four sizes, and two products of sequences: in one zeros count, in the other they do not."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 8))
    attended = L.MultiHeadAttention(4, 6, value_dim=5, name="mha")(x, x)
    products = []
    for name, activation in (("plain", None), ("squashed", "sigmoid")):
        q, k = (L.Dense(8, activation, name=f"{name}_{side}")(x) for side in "qk")
        products.append(L.Flatten()(keras.ops.matmul(q, keras.ops.transpose(k, (0, 2, 1)))))
    return keras.Model(x, L.Dense(3, name="out")(L.Concatenate()([L.Flatten()(attended), *products])))


def fit(model, prune, **options):
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    model.fit(X, Y, epochs=2, batch_size=8, verbose=0, callbacks=[prune])
    return prune


def difference(a, b):
    return float(np.abs(np.asarray(a(X)) - np.asarray(b(X))).max())


NORMS = {
    "layer": lambda: L.LayerNormalization(name="norm"),
    "rms": lambda: L.RMSNormalization(name="norm"),
    "group": lambda: L.GroupNormalization(3, name="norm"),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("norm", NORMS)
def test_channels_of_a_norm_stay_with_a_reason_and_the_others_go(norm):
    model = normed(NORMS[norm]())
    with pytest.warns(UserWarning, match="leaves the channels of 'stream' alone: 'norm' computes something over them"):
        prune = fit(model, FilterPruning(SCHEDULE))
    assert [(g.name, g.kept) for g in prune.plan.groups] == [("wide", 10)]
    assert "'norm' computes something" in prune.plan.frozen["stream"]
    assert difference(prune.shrink(), model) < 1e-5


@pytest.mark.sweep(1)
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_that_is_named_in_ignore_needs_no_warning(norm):
    model = normed(NORMS[norm]())
    assert fit(model, FilterPruning(SCHEDULE, ignore="stream")).plan.groups[0].name == "wide"


@pytest.mark.sweep(1)
@pytest.mark.parametrize("norm", [L.GroupNormalization(12), L.UnitNormalization()], ids=lambda norm: norm.name)
def test_channels_go_where_zeros_do_not_count(norm):
    """With as many groups as channels nothing is computed over them, and a length with zeros is one without."""
    model = normed(norm)
    prune = fit(model, FilterPruning(SCHEDULE))
    assert [g.kept for g in prune.plan.groups] == [6, 10] and difference(prune.shrink(), model) < 1e-5


@pytest.mark.sweep(1)
@pytest.mark.parametrize("norm", NORMS)
def test_a_model_that_differs_from_the_trained_one_is_not_returned(norm, monkeypatch):
    """The control: were such channels taken, zeros would count in the trained model and not in the smaller one."""
    monkeypatch.setattr(callback, "over_channels", lambda model, traced: {})
    model = normed(NORMS[norm]())
    prune = fit(model, FilterPruning(SCHEDULE))
    assert prune.plan.groups[0].name == "stream"
    with pytest.raises(SurgeryError, match=r"the smaller model differs by .* from the original"):
        prune.shrink()


@pytest.mark.sweep(1)
@pytest.mark.parametrize("fit_options", [{}, {"jit_compile": True}], ids=str)
def test_heads_and_their_sizes_go_exactly(fit_options):
    model = attending()
    with pytest.warns(UserWarning, match="leaves the channels of 'squashed_k' alone: 'matmul"):
        prune = fit(model, FilterPruning(SCHEDULE, parts=None), **fit_options)
    found = {g.name: g.kept for g in prune.plan.groups}
    assert found == {"mha:heads": 2, "mha:key_dim": 3, "mha:value_dim": 2, "mha": 4, "plain_k": 4}
    small = prune.shrink()
    attention = small.get_layer("mha")
    assert (attention.num_heads, attention.key_dim, attention.value_dim) == (2, 3, 2)
    assert difference(small, model) < 1e-5


def test_the_scale_of_attention_is_folded():
    """The control: with the query as it was, fewer key channels give other scores."""
    model = attending()
    with pytest.warns(UserWarning, match="squashed"):
        prune = fit(model, FilterPruning(SCHEDULE, parts=None))
    small = prune.shrink()
    query = small.get_layer("mha")._query_dense.kernel
    query.assign(query.numpy() * (6 / 3) ** 0.5)
    assert difference(small, model) > 1e-4


def test_a_small_gate_does_not_hide_what_a_norm_computes():
    x = keras.Input((6, 8))
    inner = L.LayerNormalization(name="norm")(L.Dense(12, name="inner")(x))
    gate = L.Dense(8, name="gate", kernel_initializer="zeros")(inner)  # nothing of it shows in the output yet
    model = keras.Model(x, L.Dense(3, name="out")(L.Flatten()(L.Add()([x, gate]))))
    assert list(over_channels(model, trace(model))) == ["inner"]
