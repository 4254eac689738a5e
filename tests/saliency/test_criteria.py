"""Criteria against their formulas, gradients against finite differences."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.saliency import CRITERIA, Evidence, criterion_of, gather, generator, score
from kpipe.structured import plan_filters
from tests.models import build, samples

FIELDS = ("grad", "grad_sq", "curvature", "inputs", "movement")
FORMULAS = {
    "magnitude": lambda e: np.abs(e.weight),
    "l1": lambda e: np.abs(e.weight),
    "l2": lambda e: e.weight**2,
    "random": None,
    "taylor": lambda e: np.abs(e.weight * e.grad),
    "snip": lambda e: np.abs(e.weight * e.grad),
    "fisher": lambda e: e.weight**2 * e.grad_sq / 2,
    "obd": lambda e: e.weight**2 * e.curvature / 2,
    "movement": lambda e: e.movement,
    "wanda": lambda e: np.abs(e.weight) * e.inputs,
    "bn_scale": lambda e: np.abs(e.weight),
}
ROLES = {"bn_scale": "gamma"}


def evidence(role="kernel", seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    w, g, moved = (rng.normal(size=(4, 3)).astype(dtype) for _ in range(3))
    squares, h, norms = (rng.random(shape).astype(dtype) for shape in ((4, 3), (4, 3), (4, 1)))
    return Evidence(role, w, g, squares, generator(seed, "path"), curvature=h, inputs=norms, movement=moved)


def test_every_criterion_has_a_formula():
    assert set(FORMULAS) == set(CRITERIA)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_follow_the_formula(name):
    role = ROLES.get(name, "kernel")
    given = evidence(role)
    before = replace(given, **{field: np.copy(getattr(given, field)) for field in ("weight", *FIELDS)})
    scores = score(CRITERIA[name], given, "path")
    assert scores.shape == given.weight.shape and scores.dtype == np.float64
    if FORMULAS[name] is not None:
        np.testing.assert_allclose(scores, FORMULAS[name](given), rtol=1e-15)
        other = evidence(role, seed=1)
        assert not np.allclose(scores, FORMULAS[name](other))
    assert all(np.array_equal(getattr(given, field), getattr(before, field)) for field in ("weight", *FIELDS))
    assert score(CRITERIA[name], evidence(role, dtype="float32"), "path").dtype == np.float32
    assert CRITERIA[name](evidence("statistic")) is None


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_says_what_it_needs(name):
    """Only the fields that it asks for are there when it is used; without any of these it does not judge."""
    function, facts = criterion_of(name)
    given = evidence(ROLES.get(name, "kernel"))
    absent = {field: None for field in FIELDS}
    alone = replace(given, **absent | {field: getattr(given, field) for field in facts["needs"]})
    assert function(alone) is not None
    assert not facts["needs"] or function(replace(given, **absent)) is None


def test_random_is_seeded_by_seed_and_path():
    draws = [CRITERIA["random"](Evidence("kernel", np.zeros(4), None, None, generator(s, p))) for s, p in
             ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]  # fmt: skip
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0], draws[3])


def test_gradients_are_those_of_finite_differences():
    model = build("dense")
    x, y = samples(model, 24)[0], np.arange(24) % 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kernel = model.get_layer("hidden2").kernel
    found = gather(model, [("k", "kernel", kernel)], "grad", (x, y), loss)["k"]
    start = np.asarray(kernel).copy()
    for place in [(0, 0), (7, 3), (15, 9)]:
        ends = []
        for step in (1e-2, -1e-2):
            moved = start.copy()
            moved[place] += step
            kernel.assign(moved)
            ends.append(float(loss(y, model(x))))
        assert found.grad[place] == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=2e-4)
    kernel.assign(start)


def test_gradients_are_means_over_batches_and_leave_the_model_alone():
    model = build("dense")
    x, y = samples(model, 64)[0], np.arange(64) % 4  # two batches of 32
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [np.asarray(v).copy() for v in model.variables]
    kernel = model.get_layer("logits").kernel
    both = gather(model, [("k", "kernel", kernel)], "grad", (x, y))["k"]
    halves = [gather(model, [("k", "kernel", kernel)], "grad", (x[i : i + 32], y[i : i + 32]))["k"] for i in (0, 32)]
    assert np.allclose(both.grad, (halves[0].grad + halves[1].grad) / 2, atol=1e-7)
    assert not np.allclose(both.grad, halves[0].grad, atol=1e-7)
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, model.variables, strict=True))


def test_bad_scores_and_names_are_refused():
    with pytest.raises(KpipeError, match="Did you mean 'taylor'"):
        criterion_of("tailor")
    with pytest.raises(KpipeError, match="Expected a criterion"):
        criterion_of(3)
    with pytest.raises(KpipeError, match="shape"):
        score(lambda e: np.zeros(2), evidence(), "path")
    with pytest.raises(KpipeError, match="finite"):
        score(lambda e: e.weight * np.nan, evidence(), "path")
    model = build("dense")
    kernel = model.get_layer("logits").kernel
    with pytest.raises(KpipeError, match="labels"):
        gather(model, [("k", "kernel", kernel)], "grad", samples(model)[0], "mse")


def test_a_criterion_may_leave_its_facts_unsaid():
    CRITERIA("cubic")(lambda e: np.abs(e.weight) ** 3 if e.role == "kernel" else None)
    try:
        assert criterion_of("cubic")[1] == {"needs": (), "comparable": False}
        model = build("dense")
        plan = plan_filters(model, ratio=0.5, criterion="cubic")
        w1, w2 = (np.abs(np.asarray(model.get_layer(n).kernel)) ** 3 for n in ("hidden1", "hidden2"))
        assert list(plan.groups[0].removed) == sorted(np.argsort(w1.sum(0) + w2.sum(1))[:8].tolist())
    finally:
        del CRITERIA._objects["cubic"], CRITERIA._facts["cubic"]
