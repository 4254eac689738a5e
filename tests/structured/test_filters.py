"""Filter pruning on the zoo, against consumers zeroed by hand."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.layers import RULES, Rule
from kpipe.quantize import quantize
from kpipe.structured import FilterPlan, plan_filters, prune_filters
from kpipe.structured.request import PARTS
from tests.models import ZOO, build, samples


def same(c):
    return [c]


def after(offset):
    """The channel's place behind `offset` others in a concatenation."""
    return lambda c: [offset + c]


def flat(places, channels):
    """The channel's entries in a flattened channels-last map."""
    return lambda c: [place * channels + c for place in range(places)]


# Written by hand from the zoo's graphs: group -> (layer, weight, axis, channel -> entries) of what sums over it.
CONSUMERS = {
    "dense": {"hidden1": [("hidden2", "kernel", 0, same)], "hidden2": [("logits", "kernel", 0, same)]},
    "conv_bn": {
        "conv1": [("conv2", "kernel", 2, same)],
        "conv2": [("fc", "kernel", 0, flat(16, 12))],
        "fc": [("logits", "kernel", 0, same)],
    },
    "residual": {
        "stem": [("a", "kernel", 2, same), ("c", "kernel", 2, same), ("shortcut", "kernel", 2, same)],
        "a": [("b", "kernel", 2, same)],
        "c": [("logits", "kernel", 0, same)],
    },
    "concat": {
        "a": [("c", "kernel", 2, same), ("d", "kernel", 2, same), ("d", "kernel", 2, after(20))],
        "b": [("c", "kernel", 2, after(6)), ("d", "kernel", 2, after(6))],
        "c": [("d", "kernel", 2, after(14))],
        "d": [("logits", "kernel", 0, same)],
    },
    "depthwise": {
        "stem": [("pw", "kernel", 2, lambda c: [2 * c, 2 * c + 1])],
        "pw": [("sep", "pointwise_kernel", 2, same)],
        "sep": [("logits", "kernel", 0, same)],
    },
    "grouped": {
        "stem": [("grouped", "kernel", 2, same)],
        "grouped": [("mix", "kernel", 2, lambda c: [c, 6 + c, 12 + c])],
        "mix": [("logits", "kernel", 0, flat(64, 8))],
    },
    "se_block": {
        "conv": [("reduce", "kernel", 2, same), ("head", "kernel", 2, same)],
        "reduce": [("expand", "kernel", 2, same)],
        "head": [("logits", "kernel", 0, same)],
    },
    "reshaped": {
        "expand": [("conv", "kernel", 2, same)],
        "conv": [("per_step", "kernel", 0, same)],
        "per_step": [("logits", "kernel", 0, flat(64, 9))],
    },
    "nested": {
        "conv": [("block/conv", "kernel", 2, same)],
        "block/conv": [("inner/conv", "kernel", 2, same), ("logits", "kernel", 0, same)],
    },
    "siamese": {
        "tower/conv": [("tower/fc", "kernel", 0, same)],
        "tower/fc": [("shared", "kernel", 0, same)],
        "shared": [("first", "kernel", 0, same), ("second", "kernel", 0, same), ("second", "kernel", 0, after(7))],
    },
}


def layer_at(model, path):
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def zero_consumers(name, plan):
    """A fresh zoo model with the planned channels' consumers zeroed by the table above."""
    model = build(name)
    for group in plan.groups:
        for path, weight, axis, entries in CONSUMERS[name][group.name]:
            variable = getattr(layer_at(model, path), weight)
            value = np.moveaxis(np.asarray(variable).copy(), axis, 0)
            for channel in group.removed:
                value[entries(channel)] = 0
            variable.assign(np.moveaxis(value, 0, axis))
    return model


def answers(model, inputs):
    fed = inputs if len(inputs) > 1 else inputs[0]
    return [np.asarray(y) for y in keras.tree.flatten(model(fed, training=False))]


def difference(a, b, inputs):
    return max(float(np.abs(x - y).max()) for x, y in zip(answers(a, inputs), answers(b, inputs), strict=True))


REQUESTS = [{"ratio": 0.5}, {"ratio": 0.3, "round_to": 2, "scope": "global"}, {"ratio": 0.7, "criterion": "random"}]


@pytest.mark.sweep(5)
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_smaller_model_equals_consumers_zeroed_by_hand(name, request_):
    model = build(name)
    before = [np.asarray(v).copy() for v in model.variables]
    plan = plan_filters(model, **request_)
    assert {g.name for g in plan.groups} == set(CONSUMERS[name])
    small = prune_filters(model, plan)

    inputs = samples(model)
    assert difference(zero_consumers(name, plan), small, inputs) < 1e-5
    assert difference(model, small, inputs) > 1e-3  # the comparison can fail: the unmasked model differs
    assert all(np.array_equal(a, np.asarray(v).copy()) for a, v in zip(before, model.variables, strict=True))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", ZOO)
def test_names_files_and_training_survive(name, tmp_path):
    model = build(name)
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert [t.name for t in small.inputs] == [t.name for t in model.inputs]
    assert [t.shape for t in small.outputs] == [t.shape for t in model.outputs]

    small.save(tmp_path / "small.keras")
    inputs = samples(small)
    assert difference(small, keras.models.load_model(tmp_path / "small.keras"), inputs) == 0.0

    small.compile("sgd", "mse")
    y = [np.zeros((8, *t.shape[1:]), "float32") for t in small.outputs]
    loss = small.train_on_batch(inputs if len(inputs) > 1 else inputs[0], y if len(y) > 1 else y[0])
    assert np.isfinite(loss).all()


def test_a_broken_rule_is_caught_and_no_model_returned(monkeypatch):
    facts = RULES[L.Flatten]

    def channel_major(layer, ids, x):
        return Rule(np.moveaxis(ids.whole(x), -1, 0).reshape(-1))

    monkeypatch.setitem(RULES, L.Flatten, type(facts)(channel_major, facts.roles, facts.quantization))
    model = build("conv_bn")
    plan = plan_filters(model, ratio=0.5)
    with pytest.raises(SurgeryError, match=r"differs by .* first layer that differs is 'flatten': the rule of Flatten"):
        prune_filters(model, plan)
    wrong = prune_filters(model, plan, check=False)
    assert difference(zero_consumers("conv_bn", plan), wrong, samples(model)) > 0.1


def test_counts_follow_ratio_and_rounding():
    model = build("residual")  # groups of 8, 10 and 12 channels

    def kept(**request):
        return [g.kept for g in plan_filters(model, **request).groups]

    assert kept(ratio=0.0) == [8, 10, 12]
    assert kept(ratio=0.5) == [4, 5, 6]
    assert kept(ratio=0.25) == [6, 7, 9]  # 10 - floor(2.5 + 0.5)
    assert kept(ratio=0.5, round_to=4) == [4, 4, 8]  # 4, 5, 6 to the nearest multiple, ties up
    assert kept(ratio=0.9, round_to=8) == [8, 8, 8]  # never to zero


def test_a_ratio_that_would_empty_a_layer_keeps_one_and_says_so():
    plan = plan_filters(build("residual"), ratio=0.99)
    assert [g.kept for g in plan.groups] == [1, 1, 1]
    assert all("1 stays" in g.note for g in plan.groups)
    assert "the ratio asks for all 8; at least 1 stays" in str(plan)
    for request in ({"ratio": 0.95, "scope": "global"}, {"target": {"macs": 0.04}}):
        plan = plan_filters(build("residual"), **request)
        lone = [g for g in plan.groups if g.kept == 1]
        assert lone and all("one channel is always kept" in g.note for g in lone)


def test_a_layer_that_a_common_ranking_leaves_hardly_anything_of_is_named():
    x = keras.Input((8,))
    small, large = L.Dense(40, name="small"), L.Dense(40, name="large")
    model = keras.Model(x, L.Dense(2, name="logits")(large(small(x))))
    small.kernel.assign(1e-3 * small.kernel)
    large.kernel.assign(1e-3 * large.kernel)
    model.get_layer("logits").kernel.assign(100 * np.asarray(model.get_layer("logits").kernel))

    def notes(**request):
        return {group.name: group.note for group in plan_filters(model, ratio=0.45, scope="global", **request).groups}

    assert "next to nothing stays" in notes(normalise="none")["small"]
    assert notes(normalise="none", max_ratio=0.6)["small"] == "max_ratio=0.6 keeps the rest"
    assert not any(notes().values())  # each divided by its mean


@pytest.mark.sweep(5)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["residual", "se_block", "concat", "siamese"])
def test_target_is_reached_and_never_exceeded(name, kind, scope):
    model = build(name)
    plan = plan_filters(model, target={kind: 0.5}, scope=scope)
    small = prune_filters(model, plan)
    assert small.count_params() == plan.after["params"]
    assert plan.after[kind] <= 0.5 * plan.before[kind]
    assert plan.after[kind] >= 0.35 * plan.before[kind]  # these nets have about 10 channels a layer: coarse steps


def test_macs_are_those_of_the_formula():
    plan = plan_filters(build("conv_bn"), ratio=0.5)
    # conv1 10x10 places 3x3x3->8; conv2 3x3 places 3x3x8->12; fc 4*4*12->14; logits 14->5
    assert plan.before["macs"] == 100 * 27 * 8 + 9 * 72 * 12 + 192 * 14 + 14 * 5
    assert plan.after["macs"] == 100 * 27 * 4 + 9 * 36 * 6 + 96 * 7 + 7 * 5


def test_lowest_norms_go():
    model = build("dense")
    w1, w2, w3 = (np.asarray(model.get_layer(n).kernel) for n in ("hidden1", "hidden2", "logits"))
    plan = plan_filters(model, ratio=0.5, criterion="l1")
    expected1 = np.abs(w1).sum(0) + np.abs(w2).sum(1)
    expected2 = np.abs(w2).sum(0) + np.abs(w3).sum(1)
    assert list(plan.groups[0].removed) == sorted(np.argsort(expected1)[:8].tolist())
    assert list(plan.groups[1].removed) == sorted(np.argsort(expected2)[:5].tolist())


def test_taylor_needs_labels_and_follows_the_gradient():
    model = build("dense")
    x, y = samples(model, 32)[0], np.arange(32) % 4
    with pytest.raises(KpipeError, match="data"):
        plan_filters(model, ratio=0.5, criterion="taylor")
    with pytest.raises(KpipeError, match="not compiled"):
        plan_filters(model, ratio=0.5, criterion="taylor", data=(x, y))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plan = plan_filters(model, ratio=0.5, criterion="taylor", data=(x, y), loss=loss)

    # dL/dw by hand in NumPy for the last layer alone: p - onehot, back through leaky relu
    names = ("hidden1", "hidden2", "logits")
    (w1, b1), (w2, b2), (w3, b3) = (
        [np.asarray(v).astype("float64") for v in model.get_layer(n).weights] for n in names
    )
    z1 = x @ w1 + b1
    h1 = np.maximum(z1, 0)
    z2 = h1 @ w2 + b2
    h2 = np.where(z2 > 0, z2, 0.1 * z2)
    z3 = h2 @ w3 + b3
    p = np.exp(z3 - z3.max(1, keepdims=True))
    d3 = (p / p.sum(1, keepdims=True) - np.eye(4)[y]) / len(x)
    d2 = (d3 @ w3.T) * np.where(z2 > 0, 1, 0.1)
    d1 = (d2 @ w2.T) * (z1 > 0)
    score1 = np.abs(w1 * (x.T @ d1)).sum(0) + np.abs(b1 * d1.sum(0)) + np.abs(w2 * (h1.T @ d2)).sum(1)
    assert list(plan.groups[0].removed) == sorted(np.argsort(score1)[:8].tolist())


def test_plan_is_data(tmp_path):
    model = build("concat")
    plan = plan_filters(model, ratio=0.4)
    plan.save(tmp_path / "plan.json")
    again = FilterPlan.load(tmp_path / "plan.json")
    assert again == plan
    first, second = prune_filters(model, plan), prune_filters(build("concat"), again)
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))
    with pytest.raises(KpipeError, match="Cannot write the plan"):
        plan.save(tmp_path / "nosuch" / "plan.json")
    worded = json.dumps(plan.to_dict()).replace('"removed": [', '"removed": ["0", ')
    for text in ("{}", "[1]", "not json", worded):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(KpipeError):
            FilterPlan.load(tmp_path / "bad.json")
    damaged = json.loads((tmp_path / "plan.json").read_text())
    damaged["groups"][0]["channels"] = 99
    with pytest.raises(SurgeryError, match="99 channels"):
        prune_filters(model, FilterPlan.from_dict(damaged))


def test_ignored_layers_stay_whole():
    model = build("residual")
    small = prune_filters(model, plan_filters(model, ratio=0.5, ignore="^b$"))  # tied to the stem
    assert small.get_layer("stem").filters == 8 and small.get_layer("a").filters == 5
    plan = plan_filters(model, ratio=0.5, ignore=lambda layer: isinstance(layer, L.Conv2D) and layer.filters == 12)
    assert {g.name for g in plan.groups} == {"stem", "a"} and plan.frozen["c"] == "it is ignored"
    for ignore, message in [
        ("nosuch", "matches no layer"),
        (lambda layer: False, "matches no layer"),
        ("^a_relu$", r"only \['a_relu'\], which produce no channels"),
        ("(", "no regular expression"),
        (["a", 5], "holds 5, which is no regular expression"),
        (5, "ignore is 5; expected a regular expression"),
    ]:
        with pytest.raises(KpipeError, match=message):
            plan_filters(model, ratio=0.5, ignore=ignore)


def judges_nothing(evidence):
    return None


def misshapen(evidence):
    return np.zeros(3)


@pytest.mark.parametrize(
    "request_, message",
    [
        ({}, "either ratio or target"),
        ({"ratio": 0.5, "target": {"macs": 0.5}}, "either ratio or target"),
        ({"ratio": 1.0}, "at least one channel"),
        ({"ratio": -0.1}, "in \\[0, 1\\)"),
        ({"ratio": float("nan")}, "in \\[0, 1\\)"),
        ({"ratio": 0.5, "scope": "glob"}, "Did you mean 'global'"),
        ({"ratio": 0.5, "scope": {"all": 5}}, "scope\\['all'\\] is 5; expected a regular expression"),
        ({"ratio": 0.5, "parts": 3}, "parts as names"),
        ({"ratio": 0.5, "parts": ("heads",)}, "holds 'heads'. Parts that may go here: channels"),
        ({"ratio": 0.5, "criterion": "random", "seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"ratio": 0.5, "criterion": "movement"}, "for whole channels in kpipe.callbacks.FilterPruning"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"ratio": 0.5, "criterion": "tailor"}, "Did you mean 'taylor'"),
        ({"ratio": 0.5, "criterion": judges_nothing}, "judges no weight"),
        ({"ratio": 0.5, "criterion": misshapen}, "shape"),
        ({"target": {"latency": 0.5}}, "macs"),
        ({"target": {"macs": 1.5}}, "in \\(0, 1\\)"),
        ({"target": {"macs": 0.001}}, "cannot be reached"),
    ],
)
def test_bad_requests_are_refused(request_, message):
    with pytest.raises(KpipeError, match=message):
        plan_filters(build("residual"), **request_)


def test_the_order_of_parts_says_nothing():
    plans = [plan_filters(build("residual"), ratio=0.5, parts=parts) for parts in (("heads", "channels"), PARTS)]
    assert plans[0] == plans[1] and "parts" not in plans[0].request


class Halves(keras.Model):
    def __init__(self):
        super().__init__(name="halves")
        self.first, self.second = L.Dense(6), L.Dense(2)

    def call(self, x):
        return self.second(self.first(x))


def test_models_without_a_known_graph_are_refused_by_name():
    with pytest.raises(SurgeryError, match="Expected a Keras 3 model"):
        plan_filters("model", ratio=0.5)
    with pytest.raises(SurgeryError, match="'late' is not built"):
        plan_filters(keras.Sequential([L.Dense(3)], name="late"), ratio=0.5)
    model = Halves()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(SurgeryError, match=r"'halves'.*subclassed"):
        plan_filters(model, ratio=0.5)
    x = keras.Input((4,))
    plan = plan_filters(keras.Model(x, model.call(x)), ratio=0.5)  # the way that the error names
    assert plan.groups[0].kept == 3


class Mystery(L.Layer):
    """Mix the channels with the one before, in a way that no rule tells."""

    def call(self, x):
        return x + keras.ops.roll(x, 1, axis=-1)


def test_channels_around_an_unknown_layer_stay_and_the_plan_says_why():
    x = keras.Input((4,), name="x")
    y = L.Dense(6, name="mixed")(L.Dense(8, name="free")(x))
    model = keras.Model(x, L.Dense(2, name="logits")(Mystery(name="mystery")(y)))
    plan = plan_filters(model, ratio=0.5)
    assert [group.name for group in plan.groups] == ["free"]
    assert "'mystery'" in plan.frozen["mixed"] and "has no rule" in str(plan)
    small = prune_filters(model, plan)
    assert [small.get_layer(name).units for name in ("free", "mixed")] == [4, 6]


def test_nothing_to_remove_warns():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(3, name="only")(x))
    with pytest.warns(NoEffectWarning, match="removes no channel"):
        plan = plan_filters(model, ratio=0.5)
    with pytest.warns(NoEffectWarning, match="a copy"):
        copy = prune_filters(model, plan)
    assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), model.get_weights(), strict=True))


def test_a_variable_shared_by_two_layers_is_refused():
    x = keras.Input((4,))
    a, b = L.Dense(4, name="a"), L.Dense(4, name="b")
    y = b(a(x))
    b._tracker.unlock()
    b._kernel = a._kernel
    model = keras.Model(x, L.Dense(2)(y))
    with pytest.raises(SurgeryError, match="share the variable"):
        plan_filters(model, ratio=0.5)


def test_a_quantized_model_is_refused_with_the_right_order():
    model = build("residual")
    quantized = quantize(model, calibration=samples(model)[0])
    plan = plan_filters(model, ratio=0.5)
    with pytest.raises(SurgeryError, match="Cut its filters first, then quantize"):
        plan_filters(quantized, ratio=0.5)
    with pytest.raises(SurgeryError, match="Cut its filters first, then quantize"):
        prune_filters(quantized, plan)
