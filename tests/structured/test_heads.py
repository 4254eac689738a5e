"""Heads and their sizes cut from attention, compared with weights zeroed by hand or with the formula in NumPy."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES
from kpipe.structured import FilterPlan, plan_filters, prune_filters
from kpipe.structured.channels import check_removal, remove_channels
from kpipe.structured.heads import plan_heads, prune_heads
from kpipe.structured.ranking import step_of
from tests.models import samples
from tests.structured.test_sequences import cut, keeping, seeded, zeroed

STEPS = 5


def answers(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x if len(x) > 1 else x[0]))]


def difference(model, small, x):
    return max(np.abs(a - b).max() for a, b in zip(answers(model, x), answers(small, x), strict=True))


def attended(layer, **call):
    """Dense layers for a query and for a sequence of other length and width, attention, dense."""
    keras.utils.set_random_seed(0)
    one, two = keras.Input((STEPS, 3), name="one"), keras.Input((STEPS + 2, 4), name="two")
    query, value = L.Dense(6, name="query")(one), L.Dense(6, name="value")(two)
    made = layer(query, value, key=L.Dense(7, name="key")(two), **call)
    return seeded(keras.Model([one, two], L.Dense(2, name="after")(made)))


def weights_of(layer, name):
    dense = getattr(layer, f"_{name}_dense")
    return np.asarray(dense.kernel), np.asarray(dense.bias)


def parts_of(model, x, repeats=1):
    """Project query, key and value by the layer's own weights, (batch, steps, heads, size) each, in NumPy."""
    (one, two), layer = x, model.get_layer("layer")
    dense = {name: model.get_layer(name).weights for name in ("query", "key", "value")}
    inputs = {name: (one if name == "query" else two) @ np.asarray(w) + np.asarray(b) for name, (w, b) in dense.items()}
    made = []
    for name, given in inputs.items():
        kernel, bias = weights_of(layer, name)
        part = np.einsum("btd,dhk->bthk", given, kernel) + bias
        made.append(part if name == "query" else np.repeat(part, repeats, axis=2))
    return made


def finished(model, q, k, v, scale):
    """Attend by the formula, with the layer's own output projection."""
    scores = np.exp(np.einsum("bthk,bshk->bhts", q, k) * scale)
    scores /= scores.sum(-1, keepdims=True)
    kernel, bias = weights_of(model.get_layer("layer"), "output")
    y = np.einsum("bhts,bshv,hvo->bto", scores, v, kernel) + bias
    after, b = model.get_layer("after").weights
    return y @ np.asarray(after) + np.asarray(b)


MULTI_HEAD = {
    "plain": {},
    "other value_dim": {"value_dim": 5},
    "gate": {"use_gate": True, "value_dim": 5},
    "no bias": {"use_bias": False},
    "output_shape": {"output_shape": 9},
    "dropout": {"dropout": 0.2},
    "window": {"sliding_window": 2},
}


@pytest.mark.parametrize("settings", MULTI_HEAD.values(), ids=MULTI_HEAD)
def test_heads_against_slices_of_the_output_zeroed_by_hand(settings):
    model = attended(L.MultiHeadAttention(4, 3, name="layer", **settings))
    small, x = cut(model, **{"layer:heads": [0, 2]}), samples(model, 3)
    assert small.get_layer("layer").num_heads == 2 and difference(model, small, x) > 1e-4
    zeroed(model.get_layer("layer").output_dense.kernel, [0, 2])
    assert difference(model, small, x) < 1e-6


def test_values_and_outputs_against_slices_zeroed_by_hand():
    model = attended(L.MultiHeadAttention(4, 3, value_dim=5, use_gate=True, name="layer"))
    small, x = cut(model, **{"layer:value_dim": [1, 4], "layer": [0, 5], "value": [2]}), samples(model, 3)
    layer = small.get_layer("layer")
    assert layer.value_dim == 3 and layer.output_dense.kernel.shape == (4, 3, 4) and difference(model, small, x) > 1e-4
    zeroed(model.get_layer("layer").output_dense.kernel, slice(None), [1, 4])
    zeroed(model.get_layer("layer").value_dense.kernel, [2])
    zeroed(model.get_layer("after").kernel, [0, 5])
    assert difference(model, small, x) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["one operation", "written out"])
def test_key_dim_against_numpy_at_the_old_scale(dropout):
    model = attended(L.MultiHeadAttention(4, 5, value_dim=3, dropout=dropout, name="layer"))
    small, x = cut(model, **{"layer:key_dim": [0, 3]}), samples(model, 3)
    q, k, v = parts_of(model, x)
    assert np.abs(finished(model, q, k, v, 5**-0.5) - answers(model, x)[0]).max() < 1e-5  # the formula is Keras's
    q[..., [0, 3]] = 0
    assert small.get_layer("layer").key_dim == 3 and difference(model, small, x) > 1e-4
    assert np.abs(finished(model, q, k, v, 5**-0.5) - answers(small, x)[0]).max() < 1e-6
    assert np.abs(finished(model, q, k, v, 3**-0.5) - answers(small, x)[0]).max() > 1e-4  # the new scale would not do


@pytest.mark.parametrize("missing", ["_query_dense.kernel", "_query_dense.bias"])
def test_a_forgotten_scale_is_caught(monkeypatch, missing):
    facts = RULES[L.MultiHeadAttention]

    def forgetful(layer, ids, *inputs):
        found = facts.channels(layer, ids, *inputs)
        return replace(found, rescale={name: value for name, value in found.rescale.items() if name != missing})

    monkeypatch.setitem(RULES, L.MultiHeadAttention, replace(facts, channels=forgetful))
    model = attended(L.MultiHeadAttention(4, 5, name="layer"))
    traced, keep = keeping(model, **{"layer:key_dim": [0, 3]})
    with pytest.raises(SurgeryError, match="differs by"):
        check_removal(model, remove_channels(model, traced, keep), traced, keep)


@pytest.mark.parametrize("gate", [False, True])
def test_heads_of_groups_go_with_their_queries(gate):
    model = attended(L.GroupQueryAttention(3, 6, 3, use_gate=gate, name="layer"))
    small, x = cut(model, **{"layer:heads": [1]}), samples(model, 3)
    layer = small.get_layer("layer")
    assert (layer.num_query_heads, layer.num_key_value_heads) == (4, 2) and difference(model, small, x) > 1e-4
    zeroed(model.get_layer("layer")._output_dense.kernel, [2, 3])  # queries 2 and 3 share key and value 1
    assert difference(model, small, x) < 1e-6


def test_head_dim_of_groups_against_numpy_at_the_old_scale():
    model = attended(L.GroupQueryAttention(5, 6, 3, name="layer"))
    small, x = cut(model, **{"layer:head_dim": [0, 3]}), samples(model, 3)
    q, k, v = parts_of(model, x, repeats=2)
    assert np.abs(finished(model, q, k, v, 5**-0.5) - answers(model, x)[0]).max() < 1e-5
    q[..., [0, 3]] = 0
    v[..., [0, 3]] = 0
    assert small.get_layer("layer").head_dim == 3 and difference(model, small, x) > 1e-4
    assert np.abs(finished(model, q, k, v, 5**-0.5) - answers(small, x)[0]).max() < 1e-6


def test_outputs_of_groups_follow_the_query():
    model = attended(L.GroupQueryAttention(5, 6, 3, name="layer"))
    group = next(group for group in trace(model).groups if "query" in group.layers)
    assert set(group.layers) == {"query", "value"}  # Keras wants as many channels of the value
    small, x = cut(model, **{group.name: [4]}), samples(model, 3)
    layer = model.get_layer("layer")
    for dense in (layer._query_dense, layer._value_dense):
        zeroed(dense.kernel, [4])
    zeroed(model.get_layer("after").kernel, [4])
    assert small.get_layer("layer")._output_dense.kernel.shape == (6, 5, 5) and difference(model, small, x) < 1e-6


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_without_projections_against_numpy(additive, scaled):
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    q, k, v = (L.Dense(6, name=name, activation="tanh")(given) for name in "qkv")
    layer = (L.AdditiveAttention if additive else L.Attention)(use_scale=scaled, name="layer")
    model = seeded(keras.Model(given, L.Dense(2, name="after")(layer([q, v, k]))))
    if scaled:
        layer.scale.assign(np.random.default_rng(1).normal(size=layer.scale.shape))
    assert {group.name: set(group.layers) for group in trace(model).groups}["v"] == {"v"}
    tied = next(group.name for group in trace(model).groups if set(group.layers) == {"q", "k"})
    traced, keep = keeping(model, **{tied: [1, 2], "v": [0]})
    small, (x,) = remove_channels(model, traced, keep), samples(model, 3)
    q, k, v = (np.tanh(x @ np.asarray(model.get_layer(n).kernel) + np.asarray(model.get_layer(n).bias)) for n in "qkv")
    scale = np.asarray(layer.scale) if scaled else 1.0
    if additive:
        scores = (scale * np.tanh(q[:, :, None] + k[:, None]) * np.isin(range(6), [0, 3, 4, 5])).sum(-1)
    else:
        scores = np.delete(q, [1, 2], -1) @ np.delete(k, [1, 2], -1).swapaxes(1, 2) * scale
    scores = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    v[..., 0] = 0
    y = scores @ v @ np.asarray(model.get_layer("after").kernel) + np.asarray(model.get_layer("after").bias)
    assert np.abs(y - small(x)).max() < 1e-6 < 1e-4 < np.abs(np.asarray(model(x)) - small(x)).max()
    assert check_removal(model, small, traced, keep) < 1e-6


def test_each_call_of_a_shared_attention_has_channels_of_its_own():
    keras.utils.set_random_seed(0)
    given, layer = keras.Input((STEPS, 3), name="given"), L.Attention(name="layer")
    ends = [layer([L.Dense(n, name=f"query{n}")(given), L.Dense(n, name=f"value{n}")(given)]) for n in (6, 8)]
    model = seeded(keras.Model(given, L.Dense(2)(L.Concatenate()(ends))))
    plan = plan_filters(model, ratio=0.5)
    assert {frozenset(group.layers): group.kept for group in plan.groups} == {
        frozenset({"query6", "value6"}): 3,
        frozenset({"query8", "value8"}): 4,
    }
    prune_filters(model, plan)


def masked_tokens(attention):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = L.Embedding(5, 6, mask_zero=True, name="embedding")(tokens)
    return seeded(keras.Model(tokens, L.GRU(2, name="after")(attention(x))))


MASKED = {
    "multi-head": lambda x: L.MultiHeadAttention(2, 4)(x, x),
    "causal": lambda x: L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
    "groups": lambda x: L.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True),
    "dot": lambda x: L.Attention()([x, x]),
    "additive": lambda x: L.AdditiveAttention()([x, x], use_causal_mask=True),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Keras says that the projections of groups lose the mask
@pytest.mark.parametrize("attention", MASKED.values(), ids=MASKED)
def test_masks_go_through_attention(attention):
    model = masked_tokens(attention)
    plan = plan_filters(model, ratio=0.5, parts=None)
    small = prune_filters(model, plan, check=False)
    for tokens in (np.array([[1, 2, 0, 0, 0], [3, 4, 0, 1, 2]]), np.ones((2, STEPS), int)):
        assert np.isfinite(np.asarray(small(tokens))).all()
    traced = trace(model, unknown="freeze")
    keep = np.ones(traced.class_count, bool)
    for group, found in zip(plan.groups, traced.groups, strict=True):
        keep[found.classes[list(group.removed)]] = False
    assert check_removal(model, small, traced, keep) < 1e-6


def test_a_mask_of_each_head_ties_the_heads_to_it():
    given, mask = keras.Input((STEPS, 6), name="given"), keras.Input((4, STEPS, STEPS), dtype="bool", name="mask")
    made = L.MultiHeadAttention(4, 3, name="layer")(given, given, attention_mask=mask)
    model = keras.Model([given, mask], L.Dense(2)(made))
    assert "layer:heads" not in {group.name for group in trace(model).groups}
    shared = keras.Input((STEPS, STEPS), dtype="bool", name="mask")
    made = L.MultiHeadAttention(4, 3, name="layer")(given, given, attention_mask=shared)
    model = seeded(keras.Model([given, shared], L.Dense(2)(made)))
    assert "layer:heads" in {group.name for group in trace(model).groups}
    prune_filters(model, plan_filters(model, ratio=0.5))


@pytest.mark.parametrize("make", [lambda: L.MultiHeadAttention(4, 3), lambda: L.GroupQueryAttention(3, 4, 2)])
def test_scores_that_are_an_output_keep_their_heads(make):
    keras.utils.set_random_seed(0)
    layer = make()
    given = keras.Input((STEPS, 6), name="given")
    made, scores = layer(given, given, return_attention_scores=True)
    looked_at = seeded(keras.Model(given, [L.Dense(2)(made), scores]))
    assert not any(group.part == "heads" for group in trace(looked_at).groups)
    unused = keras.Model(given, looked_at.outputs[0])
    assert any(group.part == "heads" for group in trace(unused).groups)
    for model in (looked_at, unused):
        prune_filters(model, plan_filters(model, ratio=0.5, parts=None))


def test_attention_over_chosen_axes():
    keras.utils.set_random_seed(0)
    given = keras.Input((3, STEPS, 4), name="given")
    x = L.Dense(6, name="before")(given)
    made = L.MultiHeadAttention(2, 4, attention_axes=2, output_shape=(2, 5), name="layer")(x, x)
    model = seeded(keras.Model(given, L.Dense(2, name="after")(made)))
    positions, head = 3 * STEPS, 2 * 4
    scores = 3 * STEPS * STEPS * head
    inside = positions * (3 * 6 * head + head * 2 * 5) + 2 * scores
    assert trace(model).macs() == positions * 4 * 6 + inside + positions * 2 * 5 * 2
    gone = {"layer:heads": [0], "layer:key_dim": [1, 3], "layer:value_dim": [0, 2], "layer": [1, 4]}
    traced, keep = keeping(model, **gone)
    small = remove_channels(model, traced, keep)
    assert small.get_layer("layer").output_dense.kernel.shape == (1, 2, 2, 3)
    assert check_removal(model, small, traced, keep) < 1e-6


@pytest.mark.parametrize("kind", ["multi-head", "groups"])
def test_multiplications_against_the_formula(kind):
    one, two = keras.Input((5, 8), name="one"), keras.Input((7, 8), name="two")
    if kind == "multi-head":
        layer, inside = L.MultiHeadAttention(4, 3, value_dim=6, name="layer"), 8 * 4 * (5 * (3 + 6) + 7 * (3 + 6))
        scores = 5 * 7 * 4 * (3 + 6)
    else:
        layer, inside = L.GroupQueryAttention(3, 4, 2, name="layer"), 8 * 3 * (5 * (4 + 4) + 7 * (2 + 2))
        scores = 5 * 7 * 4 * (3 + 3)
    model = keras.Model([one, two], layer(one, two))
    assert trace(model).macs() == inside + scores
    traced, keep = keeping(model, **{"layer:heads": [0]})
    left = 3 / 4 if kind == "multi-head" else 1 / 2
    assert traced.macs(keep) == left * (inside + scores)
    opened = keras.Input((None, 8), name="one")
    assert trace(keras.Model(opened, type(layer).from_config(layer.get_config())(opened, opened))).macs() is None


def test_rounding_is_of_the_width_of_the_projections():
    model = attended(L.MultiHeadAttention(8, 6, value_dim=12, name="layer"))
    groups = {group.name: group for group in trace(model).groups}
    assert groups["layer:heads"].width == (6,) and groups["layer:key_dim"].width == (1,)
    steps = {name: step_of(groups[f"layer:{name}"], 4) for name in ("heads", "key_dim", "value_dim")}
    assert steps == {"heads": 2, "key_dim": 4, "value_dim": 4}  # 2 heads of 6; and 4 of each head's entries


def encoder(norm=True):
    """A small transformer encoder before its logits: embeddings of tokens and places, attention, feed-forward."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    places = keras.Input((STEPS,), dtype="int32", name="places")
    x = L.Add(name="embedded")([L.Embedding(20, 8, name="token")(tokens), L.Embedding(STEPS, 8, name="place")(places)])
    y = L.LayerNormalization(name="norm1")(x) if norm else x
    x = L.Add(name="attended")([x, L.MultiHeadAttention(4, 4, name="attention")(y, y)])
    y = L.LayerNormalization(name="norm2")(x) if norm else x
    y = L.Dense(8, name="narrow")(L.Dense(16, activation="gelu", name="wide")(y))
    x = L.GlobalAveragePooling1D(name="pool")(L.Add(name="fed")([x, y]))
    return seeded(keras.Model([tokens, places], L.Dense(3, name="logits")(x)))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("norm", [False, True])
def test_a_transformer_encoder_at_half_its_width(norm):
    model = encoder(norm)
    sizes = {group.name: len(group) for group in trace(model).groups}
    (stream,) = {"token", "place", "attention", "narrow"} & set(sizes)  # one group: the residual stream
    parts = {"attention:heads": 4, "attention:key_dim": 4, "attention:value_dim": 4, "wide": 16}
    assert sizes == {stream: 8, **parts}
    traced, keep = keeping(model, **{name: list(range(size // 2)) for name, size in sizes.items()})
    small = remove_channels(model, traced, keep)
    assert check_removal(model, small, traced, keep) < 1e-6
    d, inner, hidden = 4, 2 * 2, 8
    expected = STEPS * (4 * d * inner + 2 * d * hidden) + 2 * STEPS * STEPS * inner + d * 3
    assert trace(small).macs() == traced.macs(keep) == expected
    layer = small.get_layer("attention")
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == (2, 2, 2)
    small.compile("adam", "mse")
    assert np.isfinite(small.fit(samples(small, 8), np.zeros((8, 3)), verbose=0).history["loss"][0])


def two_layers():
    """Two attention layers of 4 and 3 heads, of which the second's are much larger in their weights."""
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 6), name="given")
    x = L.Add()([given, L.MultiHeadAttention(4, 3, name="first")(given, given)])
    y = L.GroupQueryAttention(3, 6, 3, name="second")(x, x)
    model = seeded(keras.Model(given, L.Dense(2, name="after")(y)))
    kernel = model.get_layer("second")._output_dense.kernel
    kernel.assign(kernel * 10.0)
    return model


def heads_of(model):
    return model.get_layer("first").num_heads, model.get_layer("second").num_key_value_heads


def test_prune_heads_cuts_the_weakest_heads_and_nothing_else():
    model = two_layers()
    first = model.get_layer("first")
    for head, factor in enumerate([1.0, 0.01, 2.0, 0.02]):
        for dense in (first.query_dense, first.key_dense, first.value_dense):
            dense.kernel.assign(np.asarray(dense.kernel) * np.where(np.arange(4) == head, factor, 1.0)[:, None])
            dense.bias.assign(np.asarray(dense.bias) * np.where(np.arange(4) == head, factor, 1.0)[:, None])
        value = np.asarray(first.output_dense.kernel).copy()
        value[head] *= factor
        first.output_dense.kernel.assign(value)
    small, x = prune_heads(model, ratio=0.5, ignore="second"), samples(model, 3)
    assert heads_of(small) == (2, 3) and (small.get_layer("first").key_dim, small.get_layer("after").units) == (3, 2)
    zeroed(first.output_dense.kernel, [1, 3])
    assert difference(model, small, x) < 1e-6 * np.abs(answers(model, x)[0]).max()  # which is 63


def test_count_is_exact_in_both_scopes():
    model = two_layers()
    assert heads_of(prune_heads(model, count=2)) == (2, 1)
    assert heads_of(prune_heads(model, count=5, scope="global")) == (1, 1)  # one of each stays
    plan = plan_heads(model, count=2, scope="global", criterion=lambda evidence: np.abs(evidence.weight))
    assert sum(len(group.removed) for group in plan.groups) == 2 and plan.request["count"] == 2
    assert heads_of(prune_heads(model, ratio=0.3, criterion="random", seed=1)) == (3, 2)


def judged_by_labels(model):
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, STEPS, 6)).astype("float32"), rng.normal(size=(16, STEPS, 2)).astype("float32")


def test_heads_judged_by_gradients():
    model = two_layers()
    small = prune_heads(model, ratio=0.5, criterion="taylor", data=judged_by_labels(model), scope="global")
    assert sum(heads_of(small)) == 3 or sum(heads_of(small)) == 4


@pytest.mark.parametrize(
    "request_, message",
    [
        ({}, "either ratio or count"),
        ({"ratio": 0.5, "count": 1}, "either ratio or count"),
        ({"ratio": 1.0}, r"in \[0, 1\)"),
        ({"count": -1}, "at least 0"),
        ({"count": 1.0}, "at least 0"),
        ({"count": 3}, r"at most 2 can.*'second:heads': 3"),
        ({"count": 6, "scope": "global"}, "at most 5 can"),
        ({"count": 1, "scope": "layers"}, "Did you mean 'layer'"),
        ({"count": 1, "scope": "isomorphic"}, r"Expected scope as one of \('layer', 'global'\).*parts=\('heads',\)"),
        ({"count": 1, "scope": {"both": "."}}, "Expected scope as one of"),
        ({"ratio": 0.5, "scope": {"both": "."}}, "Expected scope as one of"),
        ({"ratio": {"first": 0.5}}, r"Expected ratio, the fraction of heads.*Received: {'first': 0.5}"),
        ({"count": 1, "ignore": "first|second"}, "'first:heads': 'it is ignored'"),
    ],
)
def test_bad_requests_for_heads_are_refused(request_, message):
    with pytest.raises(KpipeError, match=message):
        prune_heads(two_layers(), **request_)


def test_numbers_of_numpy_are_numbers_and_the_plan_is_saved(tmp_path):
    for request_ in ({"count": np.int64(1)}, {"ratio": np.float32(0.5)}):
        plan = plan_heads(two_layers(), **request_)
        plan.save(tmp_path / "plan.json")
        assert FilterPlan.load(tmp_path / "plan.json") == plan


def test_heads_that_the_criterion_does_not_judge_stay():
    def of_four(evidence):
        return np.abs(evidence.weight) if 4 in evidence.weight.shape else None

    plan = plan_heads(two_layers(), ratio=0.5, criterion=of_four)
    assert [(group.name, group.kept) for group in plan.groups] == [("first:heads", 2)]
    assert plan.frozen["second:heads"] == "the criterion 'of_four' judges none of its weights"


def test_a_model_without_attention_is_refused_with_what_was_looked_for():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(L.Dense(3)(x)), name="plain")
    with pytest.raises(KpipeError, match=r"'plain' has no heads.*MultiHeadAttention and GroupQueryAttention"):
        prune_heads(model, ratio=0.5)
    given = keras.Input((STEPS, 6), name="given")
    single = keras.Model(given, L.MultiHeadAttention(1, 3, name="layer")(given, given))
    with pytest.warns(NoEffectWarning, match=r"removes no head.*'layer:heads': 1"):
        plan_heads(single, ratio=0.5)
