"""Rankings, limits and scopes by hand, scores of groups against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.graph import trace
from kpipe.saliency import CHANNEL_CRITERIA, gather
from kpipe.structured import plan_filters, prune_filters
from kpipe.structured.ranking import choose, least_of, rank, step_of
from kpipe.structured.scopes import partition, structures
from kpipe.structured.scores import NORMALISATIONS, REDUCTIONS, judge_channels, judge_groups
from tests.models import build, samples


def places(removed):
    return [one.tolist() for one in removed]


# ---------------------------------------------------------------------------------------------- the order of blocks


def test_blocks_leave_multiples_and_go_by_their_mean():
    scores = [np.array([5.0, 1.0, 2.0, 3.0, 4.0]), np.array([2.6, 9.0, 2.5, 9.5])]
    ranking = rank(scores, [(0, 1)], [2, 2])
    # five channels: a block of one (1.0), then a pair (2.0, 3.0), and a pair stays; four: (2.5, 2.6), and a pair stays
    (pool,) = ranking.pools
    assert pool.owners.tolist() == [0, 0, 1] and pool.sizes.tolist() == [1, 2, 2]
    np.testing.assert_allclose(pool.worth, [1.0, 2.5, 2.55])
    assert pool.channels == 9
    assert [places(ranking.removed([n])) for n in range(4)] == [
        [[], []],
        [[1], []],
        [[1, 2, 3], []],
        [[1, 2, 3], [0, 2]],
    ]
    assert [pool.nearest(r) for r in (0.0, 0.05, 0.06, 0.2, 0.24, 0.44, 0.45, 1.0)] == [0, 0, 1, 1, 1, 2, 2, 3]


def test_equal_scores_go_by_place_and_many_equal_means_keep_their_order():
    scores = [np.full(12, 0.1), np.full(7, 0.1)]
    ranking = rank(scores, [(0, 1)], [5, 3])
    gone = [[len(one) for one in ranking.removed([n])] for n in range(len(ranking.pools[0].sizes) + 1)]
    assert gone == [[0, 0], [2, 0], [7, 0], [7, 1], [7, 4]]
    assert places(choose(scores, 0.5, "layer", [1, 1])) == [list(range(6)), list(range(4))]


def test_what_goes_scores_no_higher_than_what_stays():
    rng = np.random.default_rng(0)
    for step in (1, 1, 1, 4):
        scores = [rng.random(n) * rng.random() for n in (16, 24, 8, 20)]
        ranking = rank(scores, [(0, 2), (1, 3)], [step] * 4)
        for count in range(1, len(ranking.pools[0].sizes)):
            worth = ranking.pools[0].worth
            assert worth[:count].max() <= worth[count:].min()
            if step == 1:
                gone = ranking.removed([count, 0])
                out = np.concatenate([scores[n][gone[n]] for n in (0, 2)])
                stay = np.concatenate([np.delete(scores[n], gone[n]) for n in (0, 2)])
                free = np.concatenate([np.sort(np.delete(scores[n], gone[n]))[:-1] for n in (0, 2)])
                assert not len(free) or out.max() <= free.min()
                assert len(out) == count and len(stay) == 24 - count
    with pytest.raises(KpipeError, match="Expected 'layer', 'global'"):
        choose(scores, 0.5, "isomorphic", [1] * 4)


def test_channels_that_have_gone_are_the_first():
    scores = [np.array([3.0, -np.inf, 2.0, -np.inf]), np.array([1.0, 5.0])]
    assert places(choose(scores, 2 / 6, "global", [1, 1])) == [[1, 3], []]
    assert places(choose(scores, 3 / 6, "global", [1, 1])) == [[1, 3], [0]]
    assert places(choose(scores, 0.5, "global", [2, 1])) == [[1, 3], [0]]


def test_limits():
    assert [least_of(10, 1, r) for r in (None, 1.0, 0.3, 0.35, 0.05)] == [1, 1, 7, 7, 10]
    assert [least_of(10, 4, r, n) for r, n in ((None, 1), (0.3, 1), (None, 5), (0.5, 9))] == [4, 8, 8, 10]
    assert least_of(3, 8) == 3 and least_of(3, 1, None, 99) == 3
    scores = [np.arange(10.0), np.arange(10.0) + 100]
    kept = [10 - len(one) for one in choose(scores, 0.5, "global", [1, 1], [4, 1])]
    assert kept == [4, 6]  # the others make up for what a limit keeps
    assert [10 - len(one) for one in choose(scores, 0.5, "global", [1, 1])] == [1, 9]


# ---------------------------------------------------------------------------------------------------------- scopes


def twins():
    """Two blocks of one structure, one of the same size behind another layer, and a stem of another size."""
    x = keras.Input((8, 8, 3), name="x")
    y = L.Conv2D(6, 3, name="stem", activation="relu")(x)
    for name in ("one", "two"):
        y = L.Conv2D(4, 3, padding="same", name=f"{name}_conv")(y)
        y = L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(y))
        y = L.Conv2D(6, 1, name=f"{name}_out")(y)
    y = L.Conv2D(4, 3, name="plain", activation="relu")(y)
    return keras.Model(x, L.Dense(2, name="logits")(L.GlobalAveragePooling2D(name="gap")(y)))


def by_name(model, scope):
    traced = trace(model)
    return [[traced.groups[n].name for n in pool] for pool in partition(traced, scope)]


def test_groups_of_one_structure_and_size_are_ranked_together():
    model = twins()
    found = by_name(model, "isomorphic")
    assert ["one_conv", "two_conv"] in found and ["plain"] in found
    assert ["stem", "one_out", "two_out"] in found  # a convolution makes them, a convolution takes them
    assert by_name(model, "layer") == [[g.name] for g in trace(model).groups]
    assert by_name(model, "global") == [[g.name for g in trace(model).groups]]
    signatures = structures(trace(model))
    assert len({s[1] for s in signatures}) == 2 and len(set(signatures)) == 3

    names = {g.name: n for n, g in enumerate(trace(model).groups)}
    rng = np.random.default_rng(0)
    for name in ("one_conv", "two_conv"):
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.uniform(0.5, 1.0, kernel.shape) * (10 if name == "two_conv" else 1))
    plan = plan_filters(model, ratio=0.25, scope="isomorphic", normalise="none")
    gone = {g.name: len(g.removed) for g in plan.groups}
    assert gone["one_conv"] == 2 and gone["two_conv"] == 0 and gone["plain"] == 1
    assert sum(gone[name] for name in ("stem", "one_out", "two_out")) == 5  # round(0.25 * 18), half up
    assert names.keys() == gone.keys()
    assert {g.name: len(g.removed) for g in plan_filters(model, ratio=0.25).groups}["two_conv"] == 1


def test_scopes_of_ones_own():
    model = twins()
    assert by_name(model, {"convs": "_conv$", "ends": ["^stem$", "plain"]}) == [
        ["stem", "plain"], ["one_conv", "two_conv"], ["one_out"], ["two_out"],
    ]  # fmt: skip
    assert by_name(model, {"first": "^one", "rest": "."})[0] == ["stem", "two_conv", "two_out", "plain"]
    for scope, message in [
        ({}, "Expected scope as names"),
        ({"all": "nosuch"}, r"scope\['all'\] = 'nosuch' finds no group"),
        ({"all": ".", "late": "stem"}, "only groups that an earlier one finds too"),
        ({"bad": "("}, "no regular expression"),
        ("isomorfic", "Did you mean 'isomorphic'"),
    ]:
        with pytest.raises(KpipeError, match=message):
            plan_filters(model, ratio=0.5, scope=scope)


def kept(plan):
    return {g.name: g.kept for g in plan.groups}


def test_ratios_of_each_layer():
    model = build("residual")  # stem (with b) 8, a 10, c (with shortcut) 12
    plan = plan_filters(model, ratio={"^b$": 0.25, "^a$": 0.5})
    assert kept(plan) == {"stem": 6, "a": 5, "c": 12}
    assert [g.note for g in plan.groups] == ["", "", "its ratio is 0 or not given"]
    assert kept(plan_filters(model, ratio={"^a$": 0.5, ".": 0.75})) == {"stem": 2, "a": 5, "c": 3}
    both = plan_filters(model, ratio={"stem|^c$": 0.5, "a": 0.2}, scope="global")
    assert sum(kept(both)[name] for name in ("stem", "c")) == 10 and kept(both)["a"] == 8
    assert prune_filters(model, plan).get_layer("shortcut").filters == 12
    for ratio, message in [
        ({}, "empty mapping"),
        ({"nosuch": 0.5}, "finds no group"),
        ({"a": 1.0}, r"in \[0, 1\).*Received: 1.0 of 'a'"),
        ({"(": 0.5}, "no regular expression"),
        ({".": 0.5, "^a$": 0.2}, "an earlier one finds too"),
    ]:
        with pytest.raises(KpipeError, match=message):
            plan_filters(model, ratio=ratio)


def test_limits_of_a_plan_and_its_notes():
    model = build("residual")
    plan = plan_filters(model, ratio=0.75, max_ratio=0.5)
    assert kept(plan) == {"stem": 4, "a": 5, "c": 6}
    assert all(g.note == "max_ratio=0.5 keeps the rest" for g in plan.groups)
    plan = plan_filters(model, ratio=0.75, min_channels=3)
    assert kept(plan) == {"stem": 3, "a": 3, "c": 3} and "min_channels=3 keeps the rest" in str(plan)
    assert kept(plan_filters(model, ratio=0.75, min_channels=3, round_to=4)) == {"stem": 4, "a": 4, "c": 4}
    plan = plan_filters(model, ratio=0.5, scope="global", max_ratio=0.6, normalise="none", criterion="l2")
    assert sum(kept(plan).values()) == 15 and all(len(g.removed) <= 0.6 * g.channels for g in plan.groups)
    with pytest.warns(NoEffectWarning):
        assert kept(plan_filters(model, ratio=0.5, min_channels=99)) == {"stem": 8, "a": 10, "c": 12}
    for request in ({"max_ratio": 0.0}, {"max_ratio": 1.5}, {"min_channels": 0}, {"min_channels": 2.5}, {"parts": ()}):
        with pytest.raises(KpipeError, match=next(iter(request))):
            plan_filters(model, ratio=0.5, **request)


def test_parts():
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 8), name="x")
    y = L.MultiHeadAttention(4, 6, name="attention")(x, x)
    model = keras.Model(x, L.Dense(2, name="out")(L.Dense(10, name="wide")(y)))
    plan = plan_filters(model, ratio=0.5)
    assert {"attention:heads", "wide"} <= set(kept(plan)) and "attention:key_dim" in plan.frozen
    assert "leaves 'key_dim' out" in plan.frozen["attention:key_dim"]
    assert set(kept(plan_filters(model, ratio=0.5, parts=("key_dim",)))) == {"attention:key_dim"}
    assert {"attention:key_dim", "attention:value_dim", "wide"} <= set(kept(plan_filters(model, ratio=0.5, parts=None)))
    assert plan_filters(model, ratio=0.5, parts=None).request["parts"] == "all"
    with pytest.raises(KpipeError, match=r"holds 'haeds'. Parts that may go here: .*heads"):
        plan_filters(model, ratio=0.5, parts=("haeds",))


# ----------------------------------------------------------------------------------------------- scores of channels


def kernels(model, *names):
    return [np.asarray(model.get_layer(name).kernel, "float64") for name in names]


def scored(model, criterion, **how):
    traced = trace(model)
    return dict(zip((g.name for g in traced.groups), judge_channels(model, traced, criterion, **how), strict=True))


def by_channel(kernel, axis):
    """(channels, all the rest)."""
    moved = np.moveaxis(kernel, axis, 0)
    return moved.reshape(len(moved), -1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_over_all_that_holds_a_channel(reduction):
    model = build("residual")
    stem, a, b, c, shortcut = kernels(model, "stem", "a", "b", "c", "shortcut")
    members = [np.abs(by_channel(k, axis)).sum(1) for k, axis in ((stem, 3), (a, 2), (b, 3), (c, 2), (shortcut, 2))]
    expected = {"sum": sum(members), "mean": sum(members) / 5, "max": np.max(members, axis=0), "first": members[0]}
    found = scored(model, "l1", reduction=reduction, normalise="none")["stem"]
    np.testing.assert_allclose(found, expected[reduction], rtol=1e-6)
    others = [name for name in REDUCTIONS if name != reduction]
    assert not any(np.allclose(found, expected[name]) for name in others)
    if reduction == "sum":
        np.testing.assert_allclose(scored(model, "l1", normalise="none")["stem"], found)  # when not said


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_normalisations_between_groups(normalise):
    model = build("dense")
    w1, w2, w3 = kernels(model, "hidden1", "hidden2", "logits")
    plain = {"hidden1": np.abs(w1).sum(0) + np.abs(w2).sum(1), "hidden2": np.abs(w2).sum(0) + np.abs(w3).sum(1)}
    formula = {
        "none": lambda s: s,
        "mean": lambda s: s / s.mean(),
        "max": lambda s: s / s.max(),
        "standardise": lambda s: (s - s.mean()) / s.std(),
    }[normalise]
    found = scored(model, "l1", normalise=normalise)
    for name, scores in plain.items():
        np.testing.assert_allclose(found[name], formula(scores), rtol=1e-5, atol=1e-6)
    if normalise == "mean":
        np.testing.assert_allclose(scored(model, "l1")["hidden1"], found["hidden1"])  # l1 does not compare as it is
    for name in ("mean", "max", "standardise"):
        assert np.isfinite(NORMALISATIONS[name](np.zeros(3))).all()


def test_reductions_and_normalisations_that_are_not_known():
    for request in ({"reduction": "summ"}, {"normalise": "standardize"}):
        with pytest.raises(KpipeError, match="Did you mean"):
            plan_filters(build("dense"), ratio=0.5, **request)


ENTRIES = {
    "l2": lambda e: e.weight**2,
    "taylor": lambda e: np.abs(e.weight * e.grad),
    "fisher": lambda e: e.weight**2 * e.grad_sq / 2,
    "obd": lambda e: e.weight**2 * e.curvature / 2,
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_summed_over_all_that_a_channel_has(name):
    model = build("residual")
    data = (samples(model, 12)[0], np.arange(12) % 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    traced = trace(model)
    needs = ("grad", "grad_sq", "curvature")
    known = gather(model, [w for w in traced.weights if w.axes], needs, data, loss)
    judged = {path: np.asarray(ENTRIES[name](e), "float64") for path, e in known.items() if e.role != "statistic"}
    if name == "l2":
        judged = {path: scores for path, scores in judged.items() if known[path].role == "kernel"}
    held = {"a/kernel": 3, "a/bias": 0, "a_bn/gamma": 0, "a_bn/beta": 0, "b/kernel": 2}  # all that has channels of a
    expected = sum(by_channel(judged[path], axis).sum(1) for path, axis in held.items() if path in judged)
    found = scored(model, name, data=data, loss=loss, normalise="none")["a"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not np.allclose(found, by_channel(judged["a/kernel"], 3).sum(1), rtol=1e-4)


def fpgm(rows):
    return np.array([np.linalg.norm(rows - row, axis=1).sum() for row in rows])


def lamp(rows):
    norms = (rows**2).sum(1)
    return np.array([norm / norms[norms >= norm].sum() for norm in norms])


@pytest.mark.parametrize(("name", "formula"), [("fpgm", fpgm), ("lamp", lamp)])
def test_whole_filters_of_all_the_layers_that_produce_a_channel(name, formula):
    model = build("residual")
    stem, a, b, c, shortcut = kernels(model, "stem", "a", "b", "c", "shortcut")
    found = scored(model, name, normalise="none")
    np.testing.assert_allclose(found["a"], formula(by_channel(a, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["stem"], formula(by_channel(stem, 3)) + formula(by_channel(b, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["c"], formula(by_channel(c, 3)) + formula(by_channel(shortcut, 3)), rtol=1e-5)
    most = scored(model, name, normalise="none", reduction="max")["stem"]
    np.testing.assert_allclose(most, np.maximum(formula(by_channel(stem, 3)), formula(by_channel(b, 3))), rtol=1e-5)


def test_whole_filters_of_maps_gates_and_depthwise_layers():
    model = build("reshaped")  # 16 units of the dense layer make one channel of the map
    (expand,) = kernels(model, "expand")
    rows = expand.reshape(6, 16, 6).transpose(2, 1, 0).reshape(6, -1)  # (in, places, channels) -> (channels, all)
    np.testing.assert_allclose(scored(model, "fpgm", normalise="none")["expand"], fpgm(rows), rtol=1e-5)

    x = keras.Input((7, 3), name="x")
    model = keras.Model(x, L.Dense(2, name="out")(L.LSTM(5, name="lstm")(x)))
    kernel, recurrent = (w.astype("float64") for w in model.get_layer("lstm").get_weights()[:2])
    gates = [k.reshape(-1, 4, 5).transpose(2, 1, 0).reshape(5, -1) for k in (kernel, recurrent)]
    np.testing.assert_allclose(scored(model, "fpgm", normalise="none")["lstm"], sum(map(fpgm, gates)), rtol=1e-5)

    model = build("depthwise")
    stem, dw = kernels(model, "stem", "dw")
    both = fpgm(by_channel(stem, 3)) + fpgm(by_channel(dw, 2))
    np.testing.assert_allclose(scored(model, "fpgm", normalise="none")["stem"], both, rtol=1e-5)


@pytest.mark.slow
def test_a_channel_is_drawn_once_whatever_holds_it():
    model = build("residual")
    found = scored(model, "random")
    for scores in found.values():
        assert scores.min() >= 0 and scores.max() < 1  # five weights hold the stem's channels; their sum would be above
    again, other = scored(model, "random"), scored(model, "random", seed=1)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert not any(np.array_equal(found[name], other[name]) for name in found)
    total = [scored(build("dense"), "random", seed=seed)["hidden1"].mean() for seed in range(40)]
    assert abs(np.mean(total) - 0.5) < 0.05


def test_bn_scale_is_the_size_of_gamma_and_leaves_channels_without_a_norm_alone():
    model = build("conv_bn")
    gamma = np.abs(np.asarray(model.get_layer("bn1").gamma))
    plan = plan_filters(model, ratio=0.5, criterion="bn_scale")
    assert [g.name for g in plan.groups] == ["conv1"]
    assert list(plan.groups[0].removed) == sorted(np.argsort(gamma)[:4].tolist())
    assert plan.frozen["conv2"] == "the criterion 'bn_scale' judges none of its weights"
    with pytest.raises(KpipeError, match="judges no weight of any group"):
        plan_filters(build("dense"), ratio=0.5, criterion="bn_scale")
    traced = trace(model)
    assert [found is None for found in judge_channels(model, traced, "bn_scale")] == [False, True, True]
    left, scores = judge_groups(model, traced, "bn_scale")
    assert [group.name for group in left.groups] == ["conv1"] and scores[0].tolist() == gamma.tolist()


def test_channels_that_are_silent_on_the_data_go_first():
    model = build("conv_bn")
    beta = np.asarray(model.get_layer("bn1").beta).copy()
    beta[[2, 5]] = -50.0  # what the ReLU behind it turns into zeros
    model.get_layer("bn1").beta.assign(beta)
    data = samples(model, 16)
    for criterion in ("apoz", "mean_activation"):
        plan = plan_filters(model, ratio={"conv1": 0.25}, criterion=criterion, data=data[0])
        assert plan.groups[0].removed == (2, 5)
        small = prune_filters(model, plan)
        np.testing.assert_allclose(small(data[0]), model(data[0]), atol=1e-4)  # nothing was lost
    assert plan_filters(model, ratio={"conv1": 0.25}).groups[0].removed != (2, 5)
    with pytest.raises(KpipeError, match="needs data"):
        plan_filters(model, ratio=0.5, criterion="apoz")


# ---------------------------------------------------------------------------------------- dead channels, permutations

JUDGES = ["l1", "l2", "fpgm", "lamp", "taylor", "fisher", "obd"]


def kill(model, dead):
    """Zero all that the dense layers hold of some units of the first hidden layer."""
    first, second = model.get_layer("hidden1"), model.get_layer("hidden2")
    for variable, axis in ((first.kernel, 1), (first.bias, 0), (second.kernel, 0)):
        value = np.moveaxis(np.asarray(variable).copy(), axis, 0)
        value[dead] = 0
        variable.assign(np.moveaxis(value, 0, axis))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("criterion", JUDGES)
def test_dead_channels_are_chosen_and_nothing_changes(criterion):
    model, dead = build("dense"), [1, 4, 9, 15]
    kill(model, dead)
    x, y = samples(model, 32)[0], np.arange(32) % 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if criterion == "fpgm":  # dead filters are alike, and so near the median only when the others lie around it
        kernel = np.asarray(model.get_layer("hidden1").kernel)
        model.get_layer("hidden1").kernel.assign(
            kernel - np.where(np.isin(np.arange(16), dead), 0, kernel.mean(1)[:, None])
        )
    plan = plan_filters(model, ratio={"hidden1": 0.25}, criterion=criterion, data=(x, y), loss=loss)
    assert plan.groups[0].removed == tuple(dead)
    np.testing.assert_allclose(prune_filters(model, plan)(x), model(x), atol=1e-6)
    alive = plan_filters(build("dense"), ratio={"hidden1": 0.25}, criterion=criterion, data=(x, y), loss=loss)
    assert alive.groups[0].removed != tuple(dead)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("criterion", ["l1", "fpgm", "lamp", "taylor"])
@pytest.mark.parametrize("scope", ["layer", "global", "isomorphic"])
def test_an_order_of_channels_does_not_matter(criterion, scope):
    model = build("dense")
    x, y = samples(model, 32)[0], np.arange(32) % 4
    order = np.random.default_rng(3).permutation(16)
    turned = build("dense")
    first, second = turned.get_layer("hidden1"), turned.get_layer("hidden2")
    kernel, bias = first.get_weights()
    first.set_weights([kernel[:, order], bias[order]])
    after, rest = second.get_weights()
    second.set_weights([after[order], rest])
    how = {"criterion": criterion, "scope": scope, "data": (x, y)}
    how["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one, two = (plan_filters(net, ratio=0.4, **how) for net in (model, turned))
    assert set(one.groups[0].removed) == {int(order[place]) for place in two.groups[0].removed}
    assert one.groups[1].removed == two.groups[1].removed
    np.testing.assert_allclose(prune_filters(model, one)(x), prune_filters(turned, two)(x), atol=1e-5)
    assert plan_filters(model, ratio=0.4, **how) == one  # the same again


def test_every_criterion_of_channels_plans_and_cuts():
    model = build("se_block")
    data = samples(model, 8)[0]
    for criterion in CHANNEL_CRITERIA:
        for scope in ("layer", "global", "isomorphic"):
            plan = plan_filters(model, ratio=0.4, criterion=criterion, scope=scope, data=data)
            assert prune_filters(model, plan).count_params() == plan.after["params"] < plan.before["params"]
            assert plan.request["criterion"] == criterion


def test_steps_of_groups_follow_their_widths():
    traced = trace(build("reshaped"))
    assert {g.name: step_of(g, 4) for g in traced.groups} == {"expand": 1, "conv": 4, "per_step": 4}
