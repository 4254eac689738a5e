import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.patterns import keep_masks, unstructured
from kpipe.unstructured.masks import drop_more, due

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_only_lose_entries_and_count_exactly(scope):
    keeps = {"a": np.ones((6, 5), bool), "b": np.ones(11, bool)}
    for sparsity in (0.2, 0.5, 0.4, 0.9):
        scores = {path: RNG.random(keep.shape) for path, keep in keeps.items()}
        new = drop_more(keeps, scores, sparsity, scope)
        assert all(not (new[path] & ~keeps[path]).any() for path in keeps)
        asked = {path: round(sparsity * keep.size) for path, keep in keeps.items()}
        before = {path: int((~keep).sum()) for path, keep in keeps.items()}
        if scope == "layer":
            assert {p: int((~keep).sum()) for p, keep in new.items()} == {p: max(asked[p], before[p]) for p in asked}
        else:
            total = sum(int((~keep).sum()) for keep in new.values())
            assert total == max(round(sparsity * 41), sum(before.values()))
        keeps = new


def test_ranking_anew_would_let_entries_grow_again():
    keeps = {"a": unstructured(np.arange(10.0), 0.5)}
    scores = {"a": np.arange(10.0)[::-1]}
    assert (keep_masks(scores, 0.5)["a"] & ~keeps["a"]).any()
    assert not (drop_more(keeps, scores, 0.5)["a"] & ~keeps["a"]).any()


def test_nothing_is_due_where_the_count_is_reached():
    keeps = {"a": np.ones(10, bool), "b": np.ones(10, bool)}
    assert due(keeps, {"a": 5, "b": 4}, 0.5, "layer") == ["b"]
    assert due(keeps, {"a": 6, "b": 4}, 0.5, "global") == []
    assert due(keeps, {"a": 6, "b": 3}, 0.5, "global") == ["a", "b"]


def test_a_pattern_of_another_shape_is_refused():
    with pytest.raises(KpipeError, match=r"mask of shape \(2,\)"):
        drop_more({"a": np.ones(3, bool)}, {"a": np.ones(3)}, 0.5, "layer", lambda scores, sparsity: np.ones(2, bool))


def test_what_is_dropped_may_score_anything():
    keep, scores = np.array([True, False, False, True]), np.array([2.0, np.inf, np.nan, 1.0])
    assert drop_more({"a": keep}, {"a": scores}, 0.75)["a"].tolist() == [True, False, False, False]
    with pytest.raises(KpipeError, match="NaN"):
        drop_more({"a": keep}, {"a": np.array([np.nan, 1.0, 1.0, 2.0])}, 0.75)
