import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.patterns import Unstructured, keep_masks, ranking, smallest
from kpipe.patterns.ranking import drop_count, keep_highest, keep_sized
from tests.patterns import naive

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
    keep = Unstructured()(scores, sparsity)
    drop = round(sparsity * scores.size)
    assert keep.dtype == bool and int((~keep).sum()) == drop
    np.testing.assert_array_equal(keep, naive.sort_keep(scores, drop))


def test_the_check_by_sorting_can_fail():
    scores = SCORES["normal"]
    wrong = scores > np.quantile(scores, 0.4)
    assert not np.array_equal(wrong, naive.sort_keep(scores, round(0.5 * scores.size)))


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.93])
@pytest.mark.parametrize("names", [("normal", "all equal", "one"), ("big", "big with many ties", "normal")])
def test_a_global_ranking_is_one_sort_over_all(names, sparsity):
    scores = {name: SCORES[name].astype("float64") for name in names}
    keep = keep_masks(scores, sparsity, "global")
    together = np.concatenate([values.reshape(-1) for values in scores.values()])
    expected = naive.sort_keep(together, round(sparsity * together.size))
    np.testing.assert_array_equal(np.concatenate([keep[name].reshape(-1) for name in names]), expected)
    assert all(keep[name].shape == scores[name].shape for name in names)


def test_a_layer_ranking_treats_each_alone():
    scores = {name: SCORES[name] for name in ("normal", "big")}
    for name, keep in keep_masks(scores, 0.6, "layer").items():
        np.testing.assert_array_equal(keep, naive.sort_keep(scores[name], round(0.6 * scores[name].size)))


def test_a_sample_that_misleads_costs_time_not_exactness(monkeypatch):
    monkeypatch.setattr(ranking, "_bracket", lambda arrays, size, k: (2.0, 3.0))
    values = RNG.random(50_000)
    assert smallest([values], 100) == np.sort(values)[99]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.0, 9.0), (-2.0, -1.0)])
def test_a_bracket_that_misses_among_equal_scores_is_found_out(monkeypatch, low, high):
    monkeypatch.setattr(ranking, "_bracket", lambda arrays, size, k: (low, high))
    values = RNG.permutation(np.repeat([0.0, 1.0, 2.0], [10_000, 500, 10_000]))
    for k in (1, 9_999, 10_000, 10_001, 10_500, 10_501, 11_000, 20_500):
        assert smallest([values[:7000], values[7000:]], k) == np.sort(values)[k - 1]


@pytest.mark.parametrize("sparsity", [0.0, 0.0001, 0.3, 0.5, 0.9999])
@pytest.mark.parametrize("count", [1, 100, 30_000])
@pytest.mark.parametrize("kind", ["spread", "ties"])
def test_nan_is_found_wherever_the_threshold_lies(kind, count, sparsity):
    rng = np.random.default_rng(count)
    values = rng.random(60_000) if kind == "spread" else rng.integers(0, 4, 60_000).astype(float)
    keep_highest([values], round(sparsity * 60_000))
    values[rng.choice(60_000, count, replace=False)] = np.nan
    with pytest.raises(KpipeError, match=f"{count} of 60000 scores are NaN"):
        keep_highest([values], round(sparsity * 60_000))


@pytest.mark.parametrize("sparsity", [0.1, 0.2499, 0.25, 0.2501, 0.5, 0.7499, 0.75, 0.7501, 0.9])
def test_a_threshold_near_the_edge_of_many_equal_scores_is_exact(sparsity):
    values = RNG.permutation(np.r_[RNG.random(20_000), np.ones(40_000), 1 + RNG.random(20_000)].astype("float32"))
    k = int(sparsity * values.size)
    assert smallest([values[:30_000], values[30_000:]], k) == np.sort(values)[k - 1]


def test_no_weight_of_the_given_ones_is_changed():
    given = [values.copy() for values in SCORES.values()]
    keep_highest(given, 1000)
    for values, before in zip(given, SCORES.values(), strict=True):
        np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("drop", [0, 1, 6, 7, 8, 9, 30, 10_000])
def test_units_of_several_sizes_go_by_score_until_the_count_is_near(drop, at_most):
    scores = [RNG.integers(0, 6, (5, 4)).astype(float), RNG.random(30)]
    sizes = [RNG.integers(1, 9, (5, 4)), RNG.integers(1, 5, 30)]
    keeps = keep_sized(scores, sizes, drop, at_most)
    flat, size = (np.concatenate([part.ravel() for part in parts]) for parts in (scores, sizes))
    order = np.argsort(flat, kind="stable")
    sums = [int(size[order[:count]].sum()) for count in range(len(flat) + 1)]
    reach = [total for total in sums if total <= drop] if at_most else sums
    best = min(reach, key=lambda total: (abs(total - drop), total))
    keep = np.ones(len(flat), bool)
    keep[order[: sums.index(best)]] = False
    np.testing.assert_array_equal(np.concatenate([part.ravel() for part in keeps]), keep)


def test_counts_are_rounded_once_in_double_precision():
    assert [drop_count(size, 0.5) for size in (3, 5, 7)] == [2, 2, 4]  # halves to even
    assert drop_count(1000, 0.1 + 0.2) == 300 and drop_count(10**9, 0.7) == 700_000_000


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Unstructured()(np.array([1.0, np.nan]), 0.5), "1 of 2 scores are NaN"),
        (lambda: Unstructured()(np.ones(3), 1.0), "sparsity is 1.0"),
        (lambda: Unstructured()(np.ones(3), float("nan")), "sparsity is nan"),
        (lambda: Unstructured()(np.ones(3), "0.5"), "sparsity is '0.5'; expected a fraction"),
        (lambda: Unstructured()(np.ones(3), None), "sparsity is None"),
        (lambda: Unstructured()(np.ones(3), np.array([0.1, 0.2])), "sparsity is array"),
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
    assert int((~Unstructured()(np.ones(4), sparsity)).sum()) == round(4 * float(sparsity))
