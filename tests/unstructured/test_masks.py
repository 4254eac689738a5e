import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.layers import Layout
from kpipe.patterns import Unstructured, keep_masks, pattern_of
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
    sizes = {"a": (10,), "b": (10,)}
    assert due(sizes, {"a": 5, "b": 4}, 0.5, "layer") == ["b"]
    assert due(sizes, {"a": 6, "b": 4}, 0.5, "global") == []
    assert due(sizes, {"a": 6, "b": 3}, 0.5, "global") == ["a", "b"]
    assert due(sizes, {"a": 6, "b": 3}, 0.5, "erk") == ["a", "b"]
    shapes = {"small": (10, 10), "large": (30, 30)}  # at 0.8: 50 of 100 and 750 of 900
    assert due(shapes, {"small": 50, "large": 750}, 0.8, "erk") == []
    assert due(shapes, {"small": 100, "large": 700}, 0.8, "erk") == ["small", "large"], "enough, but not of each"


def test_the_scores_tell_where_units_are_not_entries():
    ragged, gone = {"a": (5, 8)}, {"a": 32}  # 40 of 80 blocks of 4 by 1 may be anything from 8 to 32 entries
    assert due(ragged, gone, 0.6, "layer") == [] and due(ragged, gone, 0.6, "layer", "block:4x1") == ["a"]
    assert due(ragged, gone, 0.6, "global", "block:4x1") == due(ragged, gone, 0.6, "erk", "block:4x1") == ["a"]
    groups = {"a": (8, 1)}
    assert due(groups, {"a": 4}, 0.375, "layer", "2:4") == [] and due(groups, {"a": 4}, 0.5, "layer", "2:4") == ["a"]
    assert due(groups, {"a": 4}, 0.375, "global", "2:4") == [] and due(groups, {"a": 4}, 0.5, "global", "2:4") == ["a"]
    assert due(groups, {"a": 7}, 0.5, "layer", lambda scores, sparsity: scores > 0) == ["a"]


PATTERNS = ["unstructured", "2:4", "1:4", "block:4x1", "block:4x1:max", "block:3x2"]
SCOPES = ["layer", "erk", "global", "global:lamp", "global:none:0.9"]  # a mean changes with what is dropped


def followed(keeps, scores, sparsities, scope, pattern, told):
    """Prune to one sparsity after another; give the masks, and how many weights were ranked."""
    ranked = 0
    for sparsity in sparsities:
        dropped = {path: int((~keep).sum()) for path, keep in keeps.items()}
        shapes = {path: keep.shape for path, keep in keeps.items()}
        paths = due(shapes, dropped, sparsity, scope, told)
        some = [{path: values[path] for path in paths} for values in (keeps, scores)]
        keeps, ranked = keeps | (drop_more(*some, sparsity, scope, pattern) if paths else {}), ranked + len(paths)
    return keeps, ranked


@pytest.mark.parametrize("before", [0.0, 0.4])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_schedule_ends_where_one_shot_does(pattern, scope, before):
    rng = np.random.default_rng(1)
    shapes = {"even": (8, 12), "ragged": (5, 40), "convolution": (3, 2, 7, 5)}
    scores = {path: rng.random(shape) for path, shape in shapes.items()}
    scores["ragged"][:4] *= 0.2
    keeps = {path: rng.random(shape) >= before for path, shape in shapes.items()}
    limit = pattern_of(pattern).limit
    for last in (0.5 * limit, 0.53 * limit, 0.75 * limit, min(limit, 0.8)):
        sparsities = [0.2 * limit, 0.45 * limit, 0.5 * limit, last]
        found, _ = followed(keeps, scores, sparsities, scope, pattern, pattern)
        expected = drop_more(keeps, scores, last, scope, pattern)
        for path in shapes:
            np.testing.assert_array_equal(found[path], expected[path], err_msg=f"{path} at {last}")


def test_counting_entries_where_blocks_go_ends_elsewhere():
    scores = {"a": RNG.random((5, 40)) + 0.5}
    scores["a"][:4] *= 0.1
    keeps, sparsities = {"a": np.ones((5, 40), bool)}, (0.5, 0.6)
    right, ranked = followed(keeps, scores, sparsities, "layer", "block:4x1", "block:4x1")
    assert ranked == 2 and int((~right["a"]).sum()) == 40 * 4 + 8  # round(0.6 * 80) blocks, the ragged ones last
    wrong, ranked = followed(keeps, scores, sparsities, "layer", "block:4x1", "unstructured")
    assert ranked == 1 and int((~wrong["a"]).sum()) == 40 * 4


def test_nothing_is_ranked_where_counts_can_tell():
    scores, keeps = {"a": RNG.random((8, 8))}, {"a": np.ones((8, 8), bool)}
    assert followed(keeps, scores, (0.3, 0.3, 0.2), "layer", "unstructured", "unstructured")[1] == 1
    assert followed(keeps, scores, (0.3, 0.3, 0.2), "global", "2:4", "2:4")[1] == 1


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


@pytest.mark.parametrize("scope", ["layer", "erk", "global", "global:mean"])
def test_single_entries_that_are_equal_go_by_their_index_whatever_the_layout(scope):
    keep, scores = {"a": np.ones((2, 3, 4), bool)}, {"a": np.ones((2, 3, 4))}
    found = drop_more(keep, scores, 0.5, scope, layouts={"a": Layout(inputs=(-1,), outputs=(-2,))})["a"]
    assert found.ravel().tolist() == [False] * 12 + [True] * 12


def test_a_layout_shares_out_by_the_axes_that_it_names():
    layouts = {"a": Layout(inputs=(0, 1), outputs=(2,)), "b": Layout()}
    keeps = {"a": np.ones((10, 9, 10), bool), "b": np.ones((10, 10), bool)}
    found = drop_more(
        keeps, {path: RNG.random(keep.shape) for path, keep in keeps.items()}, 0.8, "erk", layouts=layouts
    )
    eps = 200 / (100 + 20)  # a is a matrix of 90 by 10
    assert {path: int(keep.sum()) for path, keep in found.items()} == {"a": round(100 * eps), "b": round(20 * eps)}


def test_a_pattern_of_another_shape_is_refused():
    with pytest.raises(KpipeError, match=r"Weight 'a': .*mask of shape \(2,\); expected \(3,\)"):
        drop_more({"a": np.ones(3, bool)}, {"a": np.ones(3)}, 0.5, "layer", lambda scores, sparsity: np.ones(2, bool))


def test_what_is_dropped_may_score_anything():
    keep, scores = np.array([True, False, False, True]), np.array([2.0, np.inf, np.nan, 1.0])
    assert drop_more({"a": keep}, {"a": scores}, 0.75)["a"].tolist() == [True, False, False, False]
    wrong = {"a": np.array([np.nan, 1.0, 1.0, 2.0]), "b": np.ones(4)}
    for scope in ("layer", "global", "global:mean", "erk"):
        with pytest.raises(KpipeError, match="1 of the scores of 'a' are NaN, 4 in all"):
            drop_more({"a": keep, "b": keep}, wrong, 0.75, scope)


@pytest.mark.parametrize("count", [1, 5000])
def test_nan_among_many_scores_is_refused_where_it_is_kept_alone(count):
    rng = np.random.default_rng(2)
    keep, scores = rng.random(40_000) < 0.6, rng.random(40_000)
    drop = int((~keep).sum()) + 50
    (expected,) = drop_lowest([keep], [scores], drop)
    scores[np.flatnonzero(~keep)[:count]] = np.nan
    np.testing.assert_array_equal(drop_lowest([keep], [scores], drop)[0], expected)
    scores[np.flatnonzero(keep)[-count:]] = np.nan
    with pytest.raises(KpipeError, match=f"{count} of .* scores are NaN"):
        drop_lowest([keep], [scores], drop)
