import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.layers import Layout
from kpipe.patterns import Unstructured, keep_masks
from kpipe.unstructured.masks import drop_lowest, drop_more, due

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
    keeps = {"a": Unstructured()(np.arange(10.0), 0.5)}
    scores = {"a": np.arange(10.0)[::-1]}
    assert (keep_masks(scores, 0.5)["a"] & ~keeps["a"]).any()
    assert not (drop_more(keeps, scores, 0.5)["a"] & ~keeps["a"]).any()


def test_nothing_is_due_where_the_count_is_reached():
    sizes = {"a": 10, "b": 10}
    assert due(sizes, {"a": 5, "b": 4}, 0.5, "layer") == ["b"]
    assert due(sizes, {"a": 6, "b": 4}, 0.5, "global") == []
    assert due(sizes, {"a": 6, "b": 3}, 0.5, "global") == ["a", "b"]
    assert due(sizes, {"a": 6, "b": 3}, 0.5, "erk") == ["a", "b"]


def lowest(keeps, scores, drop):
    """Sort everything that is kept, first weights and lowest indices first among equals."""
    kept = [(scores[n].flat[i], n, i) for n in range(len(keeps)) for i in np.flatnonzero(keeps[n])]
    more = drop - (sum(keep.size for keep in keeps) - len(kept))
    found = [keep.copy() for keep in keeps]
    for _, n, i in sorted(kept)[: max(0, more)]:
        found[n].flat[i] = False
    return found


@pytest.mark.parametrize("scores", ["spread", "ties", "constant", "infinite", "sorted"])
@pytest.mark.parametrize("more", [0, 1, 17, 900, 9000])
@pytest.mark.parametrize("gone", [0.0, 0.3, 0.7])
def test_the_lowest_of_what_is_kept_are_dropped(gone, more, scores):
    rng = np.random.default_rng(5)
    shapes = ((80, 90), (70, 101))  # more than the few that are ranked at once
    keeps = [rng.random(shape) >= gone for shape in shapes]
    made = {
        "spread": lambda shape: rng.random(shape, dtype="float32"),
        "ties": lambda shape: rng.integers(0, 30, shape).astype("float32"),
        "constant": np.ones,
        "infinite": lambda shape: np.where(rng.random(shape) < 0.1, -np.inf, rng.random(shape)),
        "sorted": lambda shape: np.arange(np.prod(shape), dtype="float64").reshape(shape),
    }[scores]
    values = [np.where(keep, made(keep.shape), rng.random(keep.shape) - 9) for keep in keeps]
    drop = min(sum(int((~keep).sum()) for keep in keeps) + more, 14000)
    found, expected = drop_lowest(keeps, values, drop), lowest(keeps, values, drop)
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))


def test_a_layout_is_turned_for_the_pattern_and_back():
    transposed = Layout(inputs=(-1,), outputs=(-2,))
    scores = RNG.random((3, 3, 5, 8))
    keep = {"a": np.ones(scores.shape, bool)}
    found = drop_more(keep, {"a": scores}, 0.5, pattern="2:4", layouts={"a": transposed})["a"]
    groups = np.sort(scores.reshape(3, 3, 5, 2, 4), axis=-1)
    np.testing.assert_array_equal(found.reshape(3, 3, 5, 2, 4), scores.reshape(3, 3, 5, 2, 4) >= groups[..., 2:3])
    other = drop_more(keep, {"a": scores}, 0.5, pattern="2:4")["a"]
    assert (found != other).any()


def test_a_pattern_of_another_shape_is_refused():
    with pytest.raises(KpipeError, match=r"mask of shape \(2,\)"):
        drop_more({"a": np.ones(3, bool)}, {"a": np.ones(3)}, 0.5, "layer", lambda scores, sparsity: np.ones(2, bool))


def test_what_is_dropped_may_score_anything():
    keep, scores = np.array([True, False, False, True]), np.array([2.0, np.inf, np.nan, 1.0])
    assert drop_more({"a": keep}, {"a": scores}, 0.75)["a"].tolist() == [True, False, False, False]
    with pytest.raises(KpipeError, match="NaN"):
        drop_more({"a": keep}, {"a": np.array([np.nan, 1.0, 1.0, 2.0])}, 0.75)
