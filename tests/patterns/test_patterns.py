from dataclasses import dataclass

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.layers import weights
from kpipe.patterns import PATTERNS, Block, NofM, Unstructured, keep_masks, pattern_of, scope_of
from tests.patterns import naive

RNG = np.random.default_rng(0)


def dropped_before(scores, share):
    """Set some scores to -inf."""
    return np.where(RNG.random(scores.shape) < share, -np.inf, scores)


SCORES = {
    "dense": RNG.random((16, 6)),
    "dense, ragged": RNG.random((14, 7)),
    "dense, few inputs": RNG.random((3, 5)),
    "one output": RNG.random((9, 1)),
    "convolution": RNG.random((3, 3, 8, 6)),
    "convolution, ragged": RNG.random((2, 3, 5, 7)),
    "convolution in time": RNG.random((3, 11, 4)),
    "float32": RNG.random((12, 8)).astype("float32"),
    "ties": RNG.integers(0, 3, (2, 12, 5)).astype("float64"),
    "all equal": np.ones((11, 6)),
    "all zero": np.zeros((8, 8)),
    "some dropped before": dropped_before(RNG.random((13, 6)), 0.3),
    "most dropped before": dropped_before(RNG.random((2, 12, 4)), 0.8),
    "negative": RNG.normal(size=(10, 6)),
}
CASES = {
    "unstructured": ["unstructured"],
    "n:m": ["2:4", "1:4", "4:8", "2:3"],
    "block:RxC": ["block:4x1", "block:4x1:max", "block:2x2", "block:1x3:max", "block:20x20"],
}
"""Family -> patterns that are held to loops over single entries."""
EVERY = [pattern for patterns in CASES.values() for pattern in patterns]


def test_every_family_has_cases():
    assert set(CASES) == set(PATTERNS)
    assert set(EVERY) == set(naive.UNITS)
    for name, patterns in CASES.items():
        assert PATTERNS.facts(name)["example"] in patterns
        assert all(isinstance(pattern_of(pattern), PATTERNS[name]) for pattern in patterns)


@pytest.mark.parametrize("scores", SCORES.values(), ids=list(SCORES))
@pytest.mark.parametrize("text", EVERY)
def test_a_pattern_is_what_loops_over_entries_say(text, scores):
    pattern = pattern_of(text)
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        sparsity = min(share * pattern.limit, 0.999)
        keep = pattern(scores, sparsity)
        assert keep.dtype == bool
        np.testing.assert_array_equal(keep, naive.keep_layer(scores, sparsity, text), err_msg=f"sparsity {sparsity}")


def test_the_loops_can_tell_patterns_apart():
    scores = RNG.random((40, 40))
    kept = {text: naive.keep_layer(scores, 0.3, text).tobytes() for text in EVERY}
    assert len(set(kept.values())) == len(EVERY)


@dataclass(frozen=True)
class Shifted(NofM):
    """Groups that begin at the second input."""

    def pool(self, scores, rescale=None):
        return np.roll(super().pool(np.roll(scores, -1, axis=-2)), 1, axis=-2)


def test_the_loops_find_a_pattern_that_is_off_by_one():
    scores = SCORES["dense"]
    assert not np.array_equal(Shifted(2, 4)(scores, 0.5), naive.keep_layer(scores, 0.5, "2:4"))


@pytest.mark.parametrize("name", ["dense", "convolution", "ties", "all zero"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_at_the_limit_each_group_along_the_inputs_keeps_exactly_n(name, n, m):
    scores = SCORES[name]
    keep = NofM(n, m)(scores, 1 - n / m)
    groups = np.moveaxis(keep, -2, -1).reshape(-1, m)  # (positions and outputs and groups, m)
    assert (groups.sum(axis=1) == n).all()
    across = keep.reshape(-1, m) if keep.shape[-1] % m == 0 else None
    assert across is None or (across.sum(axis=1) != n).any(), "groups lie along the inputs, not the outputs"


@pytest.mark.parametrize("sparsity", [0.05, 0.1, 0.25, 0.4])
def test_on_a_schedule_the_count_is_exact_and_no_group_loses_more_than_it_may(sparsity):
    scores = SCORES["convolution"]
    keep = NofM(2, 4)(scores, sparsity)
    assert int((~keep).sum()) == round(sparsity * scores.size)
    assert (np.moveaxis(keep, -2, -1).reshape(-1, 4).sum(axis=1) >= 2).all()
    assert scores[~keep].max() < np.median(scores), "the lowest of all the groups go first"


@pytest.mark.parametrize("text", EVERY)
def test_what_was_dropped_before_goes_first_and_masks_only_shrink(text):
    pattern, keep = pattern_of(text), np.ones((12, 6), bool)
    for share in (0.2, 0.4, 0.7, 1.0):
        sparsity = min(share * pattern.limit, 0.99)
        scores = np.where(keep, RNG.random(keep.shape), -np.inf)
        new = pattern(scores, sparsity)
        assert not (new & ~keep).any()
        keep = new
    anew = pattern(RNG.random(keep.shape), min(0.5, pattern.limit) / 2)
    assert (anew & ~keep).any(), "a ranking that knows nothing of what was dropped brings entries back"


def test_at_the_limit_no_group_keeps_more_than_n_whatever_was_dropped_before():
    scores = np.array([[-np.inf], [-np.inf], [-np.inf], [1.0], [4.0], [3.0], [2.0], [1.0]])
    assert NofM(2, 4)(scores, 0.5)[:, 0].tolist() == [False, False, False, True, True, True, False, False]
    assert NofM(2, 4)(scores, 0.375)[:, 0].tolist() == [False, False, False, True, True, True, True, True]
    weights = {"a": scores, "b": scores[::-1]}
    for scope in ("layer", "erk", "global", "global:mean:0.9"):
        for keep in keep_masks(weights, 0.5, scope, "2:4").values():
            assert (keep.reshape(2, 4).sum(axis=1) <= 2).all()


def test_a_block_pools_what_is_left_of_it():
    scores = np.array([[4.0, 1.0], [-np.inf, 1.0], [-np.inf, 0.0]])
    assert Block(2, 1).pool(scores).tolist() == [[2.0, 1.0], [-np.inf, 0.0]]
    assert Block(2, 1, "max").pool(scores).tolist() == [[4.0, 1.0], [-np.inf, 0.0]]
    assert Block(2, 2).sizes((3, 3)).tolist() == [[4, 2], [2, 1]]
    assert Block(2, 2).sizes((5, 3, 3)).shape == (5, 2, 2)


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("shape", [(16, 6), (14, 7), (3, 3, 5, 4)])
def test_units_cover_every_entry_once(text, shape):
    pattern, scores = pattern_of(text), RNG.random(shape)
    units = pattern.pool(scores)
    covered = np.zeros(shape, int)
    sizes = pattern.sizes(shape)
    for number in range(units.size):
        alone = np.zeros(units.size, bool)
        alone[number] = True
        entries = pattern.spread(alone.reshape(units.shape), shape)
        assert entries.shape == shape
        assert int(entries.sum()) == (1 if sizes is None else sizes.reshape(-1)[number])
        covered += entries
    assert (covered == 1).all()


@pytest.mark.parametrize("text", EVERY)
def test_a_pattern_is_written_as_it_is_read(text):
    pattern = pattern_of(text)
    assert str(pattern) == text and pattern_of(str(pattern)) == pattern
    assert pattern != pattern_of("3:7") and hash(pattern) == hash(pattern_of(text))
    assert pattern_of(pattern) is pattern


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("unstructured", (5,), None),
        ("2:4", (8, 3), None),
        ("2:4", (3, 3), None),
        ("2:4", (3, 3, 1, 8), "keeps 2 of each group, and it sums over 1"),
        ("2:4", (1000, 1, 64), "it sums over 1 input: prune it by another pattern"),
        ("block:2x4", (1000, 1, 64), "it sums over 1 input: prune it by another pattern"),
        ("block:1x4", (1000, 1, 64), None),
        ("2:4", (2, 3), "sums over 2"),
        ("2:4", (8,), "1 axis"),
        ("block:4x1", (3, 3, 1, 8), "takes 4 inputs together, and it sums over 1"),
        ("block:4x1", (8,), "1 axis"),
        ("block:1x4", (1, 8), None),
        ("block:4x4", (3, 1), None),
    ],
)
def test_what_cannot_have_a_pattern_is_told(text, shape, reason):
    found = pattern_of(text).refuses(shape)
    assert found is None if reason is None else reason in found


def test_an_embedding_has_no_inputs_that_could_be_grouped():
    table, dense = keras.layers.Embedding(8, 8), keras.layers.Dense(8)
    table.build()
    dense.build((None, 8))
    shapes = [one.layout.turned_shape(one.variable.shape) for layer in (table, dense) for one in weights(layer)[:1]]
    refused = {text: [pattern_of(text).refuses(shape) is not None for shape in shapes] for text in EVERY}
    assert {text for text, (embedding, _) in refused.items() if embedding} == {
        *CASES["n:m"], "block:4x1", "block:4x1:max", "block:2x2", "block:20x20"
    }  # fmt: skip
    assert not any(kernel for _, kernel in refused.values())


def columns(scores, sparsity):
    """Drop whole columns."""
    return np.broadcast_to(Unstructured()(scores.sum(axis=0), sparsity), scores.shape)


def test_a_function_is_a_pattern_for_each_weight_by_itself(monkeypatch):
    pattern = pattern_of(columns)
    assert pattern(np.array([[1.0, 5.0], [1.0, 5.0]]), 0.5).tolist() == [[False, True], [False, True]]
    assert str(pattern) == "columns" and pattern == pattern_of(columns) and pattern.limit == 1
    scope_of("erk").check(pattern)
    with pytest.raises(KpipeError, match="'columns' is a function and has no global ranking"):
        scope_of("global").check(pattern)
    monkeypatch.setitem(PATTERNS._objects, "by_column", columns)
    assert pattern_of("by_column") == pattern and str(pattern) == "by_column"


def above_the_quantile(scores, sparsity):
    """Keep the columns above a quantile of their sums: interpolation makes NaN of -inf."""
    sums = scores.sum(axis=0)
    return np.broadcast_to(sums > np.quantile(sums, sparsity), scores.shape)


def by_norm(scores, sparsity):
    """Keep the columns of the highest norms."""
    norms = np.sqrt((scores**2).sum(axis=0))
    return np.broadcast_to(Unstructured()(norms, sparsity), scores.shape)


@pytest.mark.parametrize("function", [columns, above_the_quantile, by_norm])
def test_a_function_leads_along_a_schedule_where_it_leads_at_once(function):
    scores, keep, counts = RNG.random((16, 64)), np.ones((16, 64), bool), []
    for sparsity in np.linspace(0, 0.8, 61)[1:]:
        keep = pattern_of(function)(np.where(keep, scores, -np.inf), sparsity)
        counts.append(int(keep[0].sum()))
        assert (keep == keep[0]).all() and abs(counts[-1] - (1 - sparsity) * 64) <= 1
    np.testing.assert_array_equal(keep, function(scores, 0.8))
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 40
    with np.errstate(invalid="ignore"):
        raw = above_the_quantile(np.where(keep, scores, -np.inf), 0.5)
    assert not raw.any(), "the contract is needed: this function drops everything when it is given -inf"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lowest", [3.0, 0.0, -2.0, -1e-40, -3e38])
def test_a_function_is_given_finite_scores_with_what_is_gone_below_all_others(lowest, dtype):
    given, scores = [], np.array([[lowest, -np.inf], [lowest + 1, -np.inf], [-np.inf, 5.0]], dtype)
    pattern_of(lambda scores, sparsity: given.append(scores) or np.ones(scores.shape, bool))(scores, 0.4)
    (seen,), gone = given, scores == -np.inf
    assert seen.dtype == dtype and np.isfinite(seen).all() and len(set(seen[gone])) == 1
    assert (seen[~gone] == scores[~gone]).all() and seen[gone].max() < seen[~gone].min()
    assert (seen[gone] == 0).all() == (lowest > 0)


def test_what_was_dropped_before_stays_dropped_whatever_a_function_says():
    scores = np.array([[-np.inf, 1.0], [2.0, -np.inf]])
    assert pattern_of(lambda scores, sparsity: scores < 9)(scores, 0.5).tolist() == [[False, True], [True, False]]
    whole = pattern_of(lambda scores, sparsity: 1 / 0)(np.full((2, 2), -np.inf), 0.5)
    assert not whole.any(), "nothing is left to choose from"


def test_a_function_that_keeps_nothing_is_refused_by_the_name_of_the_weight():
    with pytest.raises(KpipeError, match=r"Weight 'w': The pattern above_the_quantile keeps nothing of 6 entries.*0.5"):
        keep_masks({"w": np.ones((2, 3))}, 0.5, pattern=above_the_quantile)
    gone_only = pattern_of(lambda scores, sparsity: scores == 0)
    with pytest.raises(KpipeError, match="keeps nothing"):
        gone_only(np.array([-np.inf, 1.0, 2.0, 3.0]), 0.5)
    one = pattern_of(lambda scores, sparsity: np.zeros(scores.shape, bool))
    assert one(np.ones((1, 1)), 0.8).tolist() == [[False]], "round(0.8) of one entry go"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pattern_of("unstructurd"), "Did you mean 'unstructured'"),
        (lambda: pattern_of(3), "pattern is 3; expected one of block:RxC, n:m, unstructured.*YAML.*'2:4'"),
        (lambda: pattern_of(Unstructured), "expected one of"),
        (lambda: pattern_of("4:2"), "'4:2'; expected whole numbers n:m, 1 <= n < m"),
        (lambda: pattern_of("0:4"), "1 <= n < m"),
        (lambda: NofM(1.0, 4), "whole numbers"),
        (lambda: pattern_of("block:4"), "such as 'block:4x1' or 'block:4x1:max'"),
        (lambda: pattern_of("block:0x4"), "whole numbers of inputs and outputs from 1"),
        (lambda: pattern_of("block:2x2:median"), "pooling is 'median'; expected 'avg' or 'max'"),
        (lambda: NofM(2, 4)(np.ones((4, 4)), 0.6), "sparsity is 0.6; the pattern '2:4' reaches 0.5 at most"),
        (lambda: NofM(2, 4)(np.full((4, 4), np.nan), 0.5), "NaN"),
        (lambda: Block(2, 2)(np.array([[1.0, np.nan]]), 0.5), "NaN"),
        (lambda: Block(2, 2)(np.ones((4, 4)), 1.0), "sparsity is 1.0"),
        (lambda: pattern_of(columns)(np.array([[1.0, np.nan]]), 0.5), "1 of 2 scores are NaN"),
        (lambda: pattern_of(lambda scores, sparsity: scores[0] > 0)(np.ones((2, 3)), 0.5), r"shape \(3,\); expected"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


def test_a_limit_that_is_no_round_number_is_reached():
    assert NofM(2, 3)(np.arange(9.0).reshape(9, 1), 1 / 3).sum() == 6
    assert NofM(2, 3)(np.arange(9.0).reshape(9, 1), 1 - 2 / 3).sum() == 6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("text", EVERY)
def test_scores_of_any_precision_are_ranked(text, dtype):
    scores = RNG.permutation(96).reshape(16, 6)
    pattern = pattern_of(text)
    np.testing.assert_array_equal(
        pattern(scores.astype(dtype), pattern.limit / 2), pattern(scores.astype("float64"), pattern.limit / 2)
    )
