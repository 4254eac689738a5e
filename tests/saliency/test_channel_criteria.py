"""Criteria of whole channels against their formulas, and activations against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.saliency import (
    CHANNEL_CRITERIA,
    CRITERIA,
    Evidence,
    channel_criteria,
    channel_criterion_of,
    criterion_of,
    gather,
    generator,
    score_rows,
)
from kpipe.saliency.outputs import active_outputs, mean_outputs
from tests.models import build, samples


def fpgm_by_loops(e):
    return np.array([sum(np.sqrt(((a - b) ** 2).sum()) for b in e.weight) for a in e.weight])


def lamp_by_loops(e):
    norms = [(row**2).sum() for row in e.weight]
    return np.array([own / sum(other for other in norms if other >= own) for own in norms])


FORMULAS = {
    "random": None,
    "fpgm": fpgm_by_loops,
    "lamp": lamp_by_loops,
    "apoz": lambda e: e.active[:, 0],
    "mean_activation": lambda e: e.outputs[:, 0],
}


def rows(role="kernel", seed=0):
    rng = np.random.default_rng(seed)
    weight, flat = rng.normal(size=(6, 5)), np.ones((1, 5))
    outputs, active = rng.random((6, 1)) * flat, rng.random((6, 1)) * flat
    return Evidence(role, weight, None, None, generator(seed, "p"), outputs=outputs, active=active)


def test_every_criterion_of_channels_has_a_formula():
    assert set(FORMULAS) == set(CHANNEL_CRITERIA)
    assert list(channel_criteria()) == [*CRITERIA, "fpgm", "lamp", "apoz", "mean_activation"]


@pytest.mark.parametrize("name", CHANNEL_CRITERIA)
def test_scores_follow_the_formula(name):
    judge = channel_criterion_of(name)
    assert judge.whole
    scores = score_rows(judge, rows(), "path")
    assert scores.shape == (6,)
    if FORMULAS[name] is not None:
        np.testing.assert_allclose(scores, FORMULAS[name](rows()), rtol=1e-12)
        assert not np.allclose(scores, FORMULAS[name](rows(seed=1)))
    if not judge.needs:
        assert judge.function(rows("gamma")) is None and judge.function(rows("statistic")) is None
    else:
        assert judge.function(Evidence("kernel", rows().weight, None, None, generator(0, "p"))) is None


def test_the_filter_at_the_geometric_median_goes_first():
    filters = np.array([[0.0, 5.0], [5.0, 0.0], [0.0, -5.0], [-5.0, 0.0], [0.1, 0.1]])
    scores = CHANNEL_CRITERIA["fpgm"](Evidence("kernel", filters, None, None, generator(0, "p")))
    assert scores.argmin() == 4  # of small norm here, but
    assert CHANNEL_CRITERIA["fpgm"](Evidence("kernel", filters + 100.0, None, None, generator(0, "p"))).argmin() == 4
    assert np.linalg.norm(filters + 100.0, axis=1).argmin() != 4  # not where norms do not lie about zero


def test_a_criterion_of_channels_is_not_for_weights():
    with pytest.raises(KpipeError, match="judges whole channels"):
        criterion_of("fpgm")
    with pytest.raises(KpipeError, match="Did you mean 'fpgm'"):
        channel_criterion_of("fpgn")
    with pytest.raises(KpipeError, match="Did you mean 'taylor'"):
        channel_criterion_of("tailor")
    assert not channel_criterion_of("taylor").whole and criterion_of("random")[1]["comparable"]


def test_a_function_says_by_its_attributes_that_it_judges_channels_whole():
    def narrow(evidence):
        return np.ptp(evidence.weight, axis=1) if evidence.role == "kernel" else None

    narrow.whole, narrow.needs = True, ()
    judge = channel_criterion_of(narrow)
    assert (judge.name, judge.whole, judge.comparable, judge.reduction) == ("narrow", True, False, "sum")
    with pytest.raises(KpipeError, match=r"shape \(5,\) for the channels of 'path'"):
        score_rows(_judge(lambda e: np.zeros(5)), rows(), "path")
    with pytest.raises(KpipeError, match="all finite: False"):
        score_rows(_judge(lambda e: np.full(6, np.nan)), rows(), "path")


def _judge(function):
    function.whole = True
    return channel_criterion_of(function)


def relu(x):
    return np.maximum(x, 0)


def both(model, path, data):
    (kernel,) = [v for v in model.get_layer(path).weights if v.name == "kernel"]
    return [prepare(model, [kernel])(data)[0] for prepare in (mean_outputs, active_outputs)]


def test_activations_of_dense_layers_against_numpy():
    model = build("dense")
    x = samples(model, 40)[0]  # two batches, of 32 and of 8
    (w1, b1), (w2, b2) = (model.get_layer(name).get_weights() for name in ("hidden1", "hidden2"))
    one = relu(x @ w1 + b1)
    two = one @ w2 + b2
    two = np.where(two > 0, two, 0.1 * two)  # behind the LeakyReLU that stands on its own
    for name, values in (("hidden1", one), ("hidden2", two)):
        mean, active = both(model, name, x)
        assert mean.shape == active.shape == (1, values.shape[1])
        np.testing.assert_allclose(mean[0], np.abs(values).mean(0), rtol=1e-5)
        np.testing.assert_allclose(active[0], (values != 0).mean(0), rtol=1e-6)
    assert 0 < both(model, "hidden1", x)[1].min() < 0.5 < both(model, "hidden1", x)[1].max() < 1


def test_activations_are_read_behind_batch_norm_and_addition():
    model = build("residual")
    x = samples(model, 8)[0]
    inside = keras.Model(model.input, [model.get_layer(name).output for name in ("a_relu", "stem_relu", "join_relu")])
    a, stem, join = (np.asarray(y) for y in inside(x))
    (mean_a, active_a), (mean_b, active_b) = both(model, "a", x), both(model, "b", x)
    np.testing.assert_allclose(active_a.reshape(-1), (a != 0).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(mean_a.reshape(-1), np.abs(a).mean((0, 1, 2)), rtol=1e-5)
    both_relus = ((stem != 0).mean((0, 1, 2)) + (join != 0).mean((0, 1, 2))) / 2  # b is tied to the stem
    np.testing.assert_allclose(active_b.reshape(-1), both_relus, rtol=1e-5)
    assert mean_a.shape == (1, 1, 1, 10) and mean_b.shape == (1, 1, 1, 8)
    assert not np.allclose(active_b.reshape(-1), (stem != 0).mean((0, 1, 2)))


def test_activations_of_several_kinds_of_graph():
    x = keras.Input((4,), name="x")
    shared, same = L.ReLU(name="shared"), L.Dense(3, name="linear")
    one, two = shared(L.Dense(5, name="one")(x)), shared(L.Dense(5, name="two")(x))
    y = L.Concatenate(name="cat")([one, two, keras.ops.relu(L.Dense(2, name="three")(x))])
    model = keras.Model(x, L.Dense(2, name="out")(same(y)))
    data = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")

    def made(name):
        kernel, bias = model.get_layer(name).get_weights()
        return data @ kernel + bias

    for name in ("one", "two", "three"):
        np.testing.assert_allclose(both(model, name, data)[0][0], relu(made(name)).mean(0), rtol=1e-5)
    hidden = np.concatenate([relu(made(name)) for name in ("one", "two", "three")], axis=1)
    kernel, bias = same.get_weights()
    np.testing.assert_allclose(both(model, "linear", data)[0][0], np.abs(hidden @ kernel + bias).mean(0), rtol=1e-5)


def test_activations_of_a_flattened_map_and_of_nested_models():
    model = build("reshaped")  # a dense layer makes a map: 16 places for each of 6 channels
    x = samples(model, 8)[0]
    kernel, bias = model.get_layer("expand").get_weights()
    values = relu(x @ kernel + bias).reshape(-1, 16, 6)
    mean, active = both(model, "expand", x)
    np.testing.assert_allclose(mean[0], np.tile(values.mean((0, 1)), 16), rtol=1e-5)
    np.testing.assert_allclose(active[0], np.tile((values != 0).mean((0, 1)), 16), rtol=1e-5)

    model = build("siamese")
    left, right = samples(model, 8)
    conv = model.get_layer("tower").get_layer("conv")
    kernel = conv.kernel
    found = mean_outputs(model, [kernel])([left, right])[0].reshape(-1)
    values = [np.asarray(conv(side)).mean((0, 1, 2)) for side in (left, right)]
    np.testing.assert_allclose(found, (values[0] + values[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "vary",
    [L.RandomBrightness(0.9, value_range=(0, 1)), L.RandomTranslation(0.9, 0.9, fill_mode="constant")],
    ids=["brightness", "translation"],
)
def test_activations_are_those_of_images_that_are_not_varied(vary):
    model = keras.Sequential([keras.Input((4, 4, 1)), vary, L.Conv2D(2, 1, activation="relu", name="c"), L.Flatten()])
    model.get_layer("c").set_weights([np.array([[[[1.0, 3.0]]]]), np.zeros(2)])
    x = np.full((8, 4, 4, 1), 0.5, "float32")
    mean, active = both(model, "c", x)
    assert mean.reshape(-1).tolist() == [0.5, 1.5] and active.reshape(-1).tolist() == [1.0, 1.0]
    assert not np.allclose(np.asarray(vary(x, training=True)), x)


def test_activations_leave_the_model_alone_and_need_data():
    model = build("conv_bn")
    before = [np.asarray(v).copy() for v in model.variables]
    kernel, gamma = model.get_layer("conv1").kernel, model.get_layer("bn1").gamma
    found = gather(model, [("k", "kernel", kernel), ("g", "gamma", gamma)], "active", samples(model)[0])
    assert found["k"].active.shape == (1, 1, 1, 8) and found["g"].active is None and found["k"].outputs is None
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, model.variables, strict=True))
    with pytest.raises(KpipeError, match="needs data"):
        gather(model, [("k", "kernel", kernel)], "active")
