import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.patterns import keep_masks, ranking, smallest, unstructured


def naive_keep(scores, drop):
    """Sort (score, index) pairs: the first `drop` go."""
    order = np.argsort(scores.reshape(-1), kind="stable")
    keep = np.ones(scores.size, bool)
    keep[order[:drop]] = False
    return keep.reshape(scores.shape)


RNG = np.random.default_rng(0)
SCORES = {
    "normal": RNG.normal(size=(40, 30)).astype("float32"),
    "big": np.abs(RNG.normal(size=(300, 400))).astype("float32"),
    "big with many ties": RNG.integers(0, 5, 100_000).astype("float32"),
    "big, mostly dropped before": np.where(RNG.random(100_000) < 0.7, -np.inf, RNG.random(100_000)),
    "big, sorted": np.arange(70_000, dtype="float64"),
    "all equal": np.ones((7, 9)),
    "big, all equal": np.ones(90_000, "float32"),
    "infinite": np.array([np.inf, 1.0, -np.inf, np.inf]),
    "half": RNG.normal(size=(50, 50)).astype("float16"),
    "one": np.ones(1),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.31, 0.5, 0.7, 0.9, 0.999])
def test_unstructured_is_the_stable_sort(name, sparsity):
    scores = SCORES[name]
    keep = unstructured(scores, sparsity)
    drop = round(sparsity * scores.size)
    assert keep.dtype == bool and int((~keep).sum()) == drop
    np.testing.assert_array_equal(keep, naive_keep(scores, drop))


def test_the_check_by_sorting_can_fail():
    scores = SCORES["normal"]
    wrong = scores > np.quantile(scores, 0.4)
    assert not np.array_equal(wrong, naive_keep(scores, round(0.5 * scores.size)))


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.93])
@pytest.mark.parametrize("names", [("normal", "all equal", "one"), ("big", "big with many ties", "normal")])
def test_a_global_ranking_is_one_sort_over_all(names, sparsity):
    scores = {name: SCORES[name].astype("float64") for name in names}
    keep = keep_masks(scores, sparsity, "global")
    together = np.concatenate([values.reshape(-1) for values in scores.values()])
    expected = naive_keep(together, round(sparsity * together.size))
    np.testing.assert_array_equal(np.concatenate([keep[name].reshape(-1) for name in names]), expected)
    assert all(keep[name].shape == scores[name].shape for name in names)


def test_a_layer_ranking_treats_each_alone():
    scores = {name: SCORES[name] for name in ("normal", "big")}
    for name, keep in keep_masks(scores, 0.6, "layer").items():
        np.testing.assert_array_equal(keep, naive_keep(scores[name], round(0.6 * scores[name].size)))


def test_a_sample_that_misleads_costs_time_not_exactness(monkeypatch):
    monkeypatch.setattr(ranking, "_bracket", lambda arrays, size, k: (2.0, 3.0))
    values = RNG.random(50_000)
    assert smallest([values], 100) == np.sort(values)[99]


def test_custom_pattern_by_function():
    def columns(scores, sparsity):
        return np.broadcast_to(unstructured(scores.sum(axis=0), sparsity), scores.shape)

    keep = keep_masks({"w": np.array([[1.0, 5.0], [1.0, 5.0]])}, 0.5, "layer", columns)["w"]
    assert keep.tolist() == [[False, True], [False, True]]
    with pytest.raises(KpipeError, match="no global ranking"):
        keep_masks({"w": np.ones((2, 2))}, 0.5, "global", columns)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: unstructured(np.array([1.0, np.nan]), 0.5), "1 of 2 scores are NaN"),
        (lambda: unstructured(np.ones(3), 1.0), "sparsity is 1.0"),
        (lambda: unstructured(np.ones(3), float("nan")), "sparsity is nan"),
        (lambda: unstructured(np.ones(3), "0.5"), "sparsity is '0.5'; expected a fraction"),
        (lambda: unstructured(np.ones(3), None), "sparsity is None"),
        (lambda: unstructured(np.ones(3), np.array([0.1, 0.2])), "sparsity is array"),
        (lambda: keep_masks({}, 0.5, "model"), "scope is 'model'"),
        (lambda: keep_masks({}, 0.5, pattern="unstructurd"), "Did you mean 'unstructured'"),
        (lambda: keep_masks({}, 0.5, pattern=3), "pattern is 3"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


@pytest.mark.parametrize("sparsity", [np.float32(0.5), np.float64(0.5), 0])
def test_numpy_and_whole_numbers_are_sparsities(sparsity):
    assert int((~unstructured(np.ones(4), sparsity)).sum()) == round(4 * float(sparsity))
