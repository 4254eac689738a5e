import math

import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.patterns import (
    SCOPES,
    ErdosRenyiKernel,
    Global,
    Layer,
    Unstructured,
    check_scope,
    keep_masks,
    pattern_of,
    scope_of,
)
from kpipe.patterns.by_shape import densities, round_together
from kpipe.patterns.rescale import RESCALES, lamp, mean
from tests.patterns import naive

RNG = np.random.default_rng(0)
CASES = {
    "layer": ["layer"],
    "global": ["global", "global:mean", "global:lamp", "global:none:0.75", "global:lamp:0.6", "global:mean:0.57"],
    "erk": ["erk"],
}
"""Scope -> forms that are held to loops over single entries."""
EVERY = [text for texts in CASES.values() for text in texts]
PATTERNS = ["unstructured", "2:4", "block:4x1", "block:2x2"]
NAIVE_RESCALES = {"none": lambda values: values, "mean": naive.mean, "lamp": naive.lamp}


def weights(kind):
    """Draw scores of several weights: a small one, a large one, a convolution, of different distributions."""
    rng = np.random.default_rng(KINDS.index(kind))  # the same whatever ran before
    shapes = {"small": (8, 4), "large": (24, 16), "convolution": (3, 3, 4, 6)}
    if kind == "ragged":
        shapes = {"small": (7, 5), "large": (23, 15), "convolution": (3, 2, 5, 7)}
    scores = {
        path: rng.random(shape) ** (1 + number) * (1 + 2 * number)
        for number, (path, shape) in enumerate(shapes.items())
    }
    if kind == "ties":
        scores = {path: np.floor(values * 3) for path, values in scores.items()}
    if kind == "all equal":
        scores = {path: np.ones(shape) for path, shape in shapes.items()}
    if kind == "all zero":
        scores = {path: np.zeros(shape) for path, shape in shapes.items()}
    if kind == "dropped before":
        scores = {path: np.where(rng.random(v.shape) < 0.2, -np.inf, v) for path, v in scores.items()}
    return scores


KINDS = ["even", "ragged", "ties", "all equal", "all zero", "dropped before"]


def total(scores):
    return sum(values.size for values in scores.values())


def dropped(keeps):
    return sum(int((~keep).sum()) for keep in keeps.values())


def naively(scores, sparsity, text, pattern):
    """Do by loops what a scope does."""
    name, *rest = text.split(":")
    if name == "layer":
        return {path: naive.keep_layer(values, sparsity, pattern) for path, values in scores.items()}
    normalise, ceiling = [*rest, *["none", "1"][len(rest) :]]
    return naive.keep_global(scores, sparsity, pattern, float(ceiling), NAIVE_RESCALES[normalise])


def test_every_scope_has_cases():
    assert set(CASES) == set(SCOPES)
    assert all(isinstance(scope_of(text), SCOPES[name]) for name, texts in CASES.items() for text in texts)
    assert set(NAIVE_RESCALES) == set(RESCALES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("text", [text for text in EVERY if text != "erk"])
def test_a_scope_is_what_loops_over_units_say(text, pattern, kind):
    if kind == "ragged" and text.count(":") == 2 and pattern.startswith("block"):
        pattern = "unstructured"  # a ceiling stops before the first block that does not fit, the loops pass over it
    scores = weights(kind)
    for share in (0.0, 0.3, 0.55):
        sparsity = share * pattern_of(pattern).limit
        keeps = keep_masks(scores, sparsity, text, pattern)
        for path, expected in naively(scores, sparsity, text, pattern).items():
            np.testing.assert_array_equal(keeps[path], expected, err_msg=f"{path} at {sparsity}")


def test_the_loops_can_tell_scopes_apart():
    scores = weights("even")
    scores["small"] = scores["small"] ** 16  # few count: without a ceiling most go, also by LAMP
    found = {
        t: b"".join(k.tobytes() for k in naively(scores, 0.55, t, "unstructured").values()) for t in CASES["global"]
    }
    assert len(set(found.values())) == len(found)
    assert any((naively(scores, 0.55, "layer", "2:4")[path] != keep).any() for path, keep in scores.items())


@pytest.mark.parametrize("kind", ["even", "ragged", "ties"])
@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("sparsity", [0.01, 0.37, 0.5])
def test_the_count_over_all_is_exact(text, sparsity, kind):
    scores = weights(kind)
    keeps = keep_masks(scores, sparsity, text)
    slack = 0 if text != "layer" else len(scores) / 2  # each weight rounds by itself
    assert abs(dropped(keeps) - round(sparsity * total(scores))) <= slack


@pytest.mark.parametrize("text", [text for text in EVERY if text.startswith("global")])
def test_blocks_of_several_sizes_come_as_near_to_the_count_as_they_can(text):
    scores = weights("ragged")
    for sparsity in (0.2, 0.5):
        gone = dropped(keep_masks(scores, sparsity, text, "block:4x2"))
        assert abs(gone - round(sparsity * total(scores))) <= 4, "half a block of 4 by 2"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_ceiling_holds_in_every_weight_and_the_rest_goes_elsewhere(pattern):
    scores = weights("ragged")
    scores["small"] *= 1e-3  # would go whole
    sparsity = 0.7 * pattern_of(pattern).limit
    ceiling = 0.8 * pattern_of(pattern).limit
    free = keep_masks(scores, sparsity, "global", pattern)
    keeps = keep_masks(scores, sparsity, Global(ceiling=ceiling), pattern)
    shares = {path: 1 - keep.mean() for path, keep in keeps.items()}
    assert max(shares.values()) <= ceiling < max(1 - keep.mean() for keep in free.values())
    assert dropped(keeps) == pytest.approx(dropped(free), abs=4)


def test_a_sparsity_at_the_ceiling_comes_as_near_as_whole_numbers_allow():
    scores = {"a": np.array([[1.0, 2.0, 3.0]]), "b": np.array([[4.0, 5.0, 6.0]])}
    keeps = keep_masks(scores, 0.5, "global:none:0.5")
    assert {path: int((~keep).sum()) for path, keep in keeps.items()} == {"a": 1, "b": 1}
    assert dropped(keep_masks(scores, 0.5, "global")) == 3


def test_what_cannot_be_reached_is_told_before_there_are_weights():
    check_scope("global:none:0.5", "unstructured", 0.5)
    check_scope("global:none:0.5", "unstructured")
    check_scope("global", "2:4", 0.5)


def test_what_was_dropped_before_may_lie_above_the_ceiling():
    scores = {"a": np.array([[-np.inf, -np.inf, -np.inf, 1.0]]), "b": np.array([[1.0, 2.0, 3.0, 4.0]])}
    keeps = keep_masks(scores, 0.5, "global:none:0.5")
    assert {path: keep.tolist() for path, keep in keeps.items()} == {
        "a": [[False, False, False, True]],
        "b": [[False, True, True, True]],
    }


@pytest.mark.parametrize("normalise", RESCALES)
def test_masks_only_shrink_under_a_global_ranking_of_what_is_left(normalise):
    keeps = {path: np.ones(values.shape, bool) for path, values in weights("even").items()}
    for sparsity in (0.2, 0.5, 0.9):
        scores = {path: np.where(keep, RNG.random(keep.shape), -np.inf) for path, keep in keeps.items()}
        new = keep_masks(scores, sparsity, Global(normalise))
        assert not any((new[path] & ~keep).any() for path, keep in keeps.items())
        assert dropped(new) == round(sparsity * total(scores))
        keeps = new


@pytest.mark.parametrize("kind", ["normal", "ties", "dropped before", "all equal", "all zero", "tiny", "one"])
def test_lamp_is_the_formula_of_the_paper(kind):
    values = np.abs(RNG.normal(size=200))
    values = {
        "ties": np.round(values * 4),
        "dropped before": np.where(values < 0.5, -np.inf, values),
        "all equal": np.ones(50),
        "all zero": np.zeros(50),
        "tiny": values.astype("float32") * np.float32(1e-30),
        "one": values[:1],
    }.get(kind, values)
    found = lamp(values.reshape(-1, 1))
    np.testing.assert_allclose(found[:, 0], naive.lamp([float(value) for value in values]), rtol=1e-9)
    assert found.shape == (len(values), 1) and not (found > 1).any()
    in_order = found[np.argsort(values, kind="stable"), 0]
    assert (in_order[1:] >= in_order[:-1]).all()


def test_lamp_of_three_weights_by_hand():
    # 1/(1+4+9), 4/(4+9), 9/9
    np.testing.assert_allclose(lamp(np.array([2.0, 1.0, 3.0])), [4 / 13, 1 / 14, 1.0])
    assert not np.allclose(lamp(np.array([2.0, 1.0, 3.0])), mean(np.array([2.0, 1.0, 3.0])))


def test_normalised_scores_do_not_depend_on_the_scale_of_a_weight():
    scores = weights("even")
    scaled = {path: values * 100.0**number for number, (path, values) in enumerate(scores.items())}
    for normalise in RESCALES:
        one, other = (keep_masks(given, 0.5, Global(normalise)) for given in (scores, scaled))
        alike = all((one[path] == other[path]).all() for path in scores)
        assert alike == (normalise != "none")


# Erdős–Rényi-kernel

SHAPES = {
    "stem": (3, 3, 3, 16),
    "body": (3, 3, 16, 32),
    "deep": (3, 3, 64, 64),
    "dense": (256, 100),
    "head": (100, 10),
}


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95, 1.0])
def test_densities_are_those_that_rigl_solves_for(density):
    found, expected = densities(SHAPES, density), naive.rigl_densities(SHAPES, density)
    assert found == pytest.approx(expected, rel=1e-12)
    sizes = {path: math.prod(shape) for path, shape in SHAPES.items()}
    assert sum(found[path] * size for path, size in sizes.items()) == pytest.approx(density * sum(sizes.values()))
    uniform = dict.fromkeys(SHAPES, density)
    assert density == 1.0 or found != pytest.approx(uniform, rel=1e-2)


def test_densities_by_hand():
    # raw 20/100 and 110/1000; eps (20 + 110) = 0.1 * 1100
    eps = 110 / 130
    found = densities({"a": (10, 10), "b": (10, 100)}, 0.1)
    assert found == pytest.approx({"a": 0.2 * eps, "b": 0.11 * eps})


def resnet50():
    """List the kernels of ResNet-50 with the output places that each is used at."""
    found = [((7, 7, 3, 64), 112 * 112)]
    inputs = 64
    for width, count, size in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        for block in range(count):
            before = size * 2 if block == 0 and width > 64 else size  # the 3x3 convolution has the stride
            found += [((1, 1, inputs, width), before**2), ((3, 3, width, width), size**2)]
            found += [((1, 1, width, 4 * width), size**2)]
            if block == 0:
                found.append(((1, 1, inputs, 4 * width), size**2))
            inputs = 4 * width
    return [*found, ((2048, 1000), 1)]


@pytest.mark.parametrize(("sparsity", "published"), [(0.8, 0.42), (0.9, 0.24), (0.95, 0.12)])
def test_resnet50_costs_what_evci_et_al_publish(sparsity, published):
    kernels = {str(number): shape for number, (shape, _) in enumerate(resnet50())}
    uses = {str(number): use for number, (_, use) in enumerate(resnet50())}
    sizes = {path: math.prod(shape) for path, shape in kernels.items()}
    assert sum(sizes.values()) == 25_502_912  # 25,557,032 with biases and norms
    shares = ErdosRenyiKernel().sparsities(kernels, sparsity)
    dense = sum(size * uses[path] for path, size in sizes.items())
    sparse = sum(size * uses[path] * (1 - shares[path]) for path, size in sizes.items())
    assert sparse / dense == pytest.approx(published, abs=0.01)
    assert abs(sparse / dense - (1 - sparsity)) > 0.05, "a uniform sparsity costs less"


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "block:4x1", "block:4x4"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97, 1.0])
def test_erk_counts_are_exact_over_all_and_within_the_pattern(pattern, share):
    chosen, scores = pattern_of(pattern), {path: RNG.random(shape) for path, shape in SHAPES.items() if path != "stem"}
    sparsity = min(share * chosen.limit, 0.99)
    shares = ErdosRenyiKernel().sparsities({path: v.shape for path, v in scores.items()}, sparsity, chosen)
    keeps = keep_masks(scores, sparsity, "erk", pattern)
    sizes = {path: chosen.sizes(values.shape) for path, values in scores.items()}
    units = {path: values.size if sizes[path] is None else sizes[path].size for path, values in scores.items()}
    gone = {path: round(shares[path] * units[path]) for path in scores}
    assert sum(gone.values()) == round(sparsity * sum(units.values()))
    assert max(shares.values()) <= chosen.limit + 1e-12
    for path, keep in keeps.items():
        np.testing.assert_array_equal(keep, chosen(scores[path], gone[path] / units[path]))
        if sizes[path] is None and SHAPES[path][-2] % 4 == 0:
            assert int((~keep).sum()) == gone[path]


def test_rounding_together_stays_within_one_and_below_the_most():
    wanted = {str(number): float(value) for number, value in enumerate(RNG.random(50) * 7)}
    whole = round(sum(wanted.values()))
    found = round_together(wanted, whole, dict.fromkeys(wanted, 7))
    assert sum(found.values()) == whole and all(abs(found[path] - wanted[path]) < 1 for path in wanted)
    assert round_together({"a": 1.5, "b": 1.5}, 3, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert round_together({"a": 1.5, "b": 1.5}, 3, {"a": 1, "b": 1}) == {"a": 1, "b": 1}


# Forms and refusals


@pytest.mark.parametrize("text", EVERY)
def test_a_scope_is_written_as_it_is_read(text):
    scope = scope_of(text)
    assert str(scope) == text and scope_of(str(scope)) == scope and scope_of(scope) is scope
    assert scope != scope_of("global:mean:0.123")


def test_a_scope_is_a_mapping_too():
    assert scope_of({"global": {"normalise": "lamp", "ceiling": 0.95}}) == Global("lamp", 0.95)
    assert scope_of({"layer": {}}) == Layer() and scope_of({"erk": None}) == ErdosRenyiKernel()


@pytest.mark.parametrize("text", EVERY)
def test_what_a_scope_says_beforehand_is_what_it_does(text):
    scope, scores = scope_of(text), weights("even")
    shares = scope.sparsities({path: values.shape for path, values in scores.items()}, 0.5)
    keeps = scope.keep(scores, 0.5, Unstructured())
    if shares is not None:
        assert {p: int((~k).sum()) for p, k in keeps.items()} == {
            p: round(shares[p] * v.size) for p, v in scores.items()
        }
    some = {"small": scores["small"]}
    alike = (scope.keep(some, 0.5, Unstructured())["small"] == keeps["small"]).all()
    assert alike if scope.alone else not alike
    assert scope.keep({}, 0.5, Unstructured()) == {}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: scope_of("model"), "scope is 'model'; expected one of layer, global, erk"),
        (lambda: scope_of("globl"), "Did you mean 'global'"),
        (lambda: scope_of("global:median"), "normalise is 'median'; expected one of none, mean, lamp"),
        (lambda: scope_of("global:lamp:high"), "its ceiling 'high' is no number"),
        (lambda: scope_of("global:lamp:0.9:2"), "such as 'global:lamp:0.95'"),
        (lambda: scope_of("global:lamp:0"), r"ceiling is 0.0; expected the highest sparsity of a weight, in \(0, 1\]"),
        (lambda: Global(ceiling=True), "ceiling is True"),
        (lambda: scope_of(3), "scope is 3; expected one of layer, global, erk"),
        (lambda: scope_of({"global": {}, "erk": {}}), "or one with its arguments"),
        (lambda: scope_of({"globl": {}}), "Did you mean 'global'"),
        (lambda: scope_of({"global": {"normalize": "lamp"}}), "it takes normalise, ceiling"),
        (lambda: scope_of({"layer": {"x": 1}}), "it takes no arguments"),
        (lambda: scope_of({"global": 3}), "cannot be made from 3"),
        (lambda: keep_masks(weights("even"), 0.9, "global:none:0.8"), "sparsity is 0.9; with ceiling=0.8"),
        (lambda: check_scope("global:none:0.5", "unstructured", 0.9), "sparsity is 0.9; with ceiling=0.5 no weight"),
        (lambda: check_scope("layer", "2:4", 0.6), "'2:4' reaches 0.5 at most"),
        (lambda: check_scope("erk", "unstructured", 1.0), "sparsity is 1.0"),
        (lambda: keep_masks({"a/kernel": np.array([np.nan, 1.0])}, 0.5), "Weight 'a/kernel': 1 of 2 scores are NaN"),
        (lambda: keep_masks(weights("even"), 0.6, "global", "2:4"), "'2:4' reaches 0.5 at most"),
        (lambda: keep_masks(weights("even"), 0.6, "erk", "2:4"), "'2:4' reaches 0.5 at most"),
        (lambda: keep_masks(weights("even"), 1.0, "global"), "sparsity is 1.0"),
        (lambda: keep_masks(weights("even"), 1.0, "erk"), "sparsity is 1.0"),
        (lambda: keep_masks({"a": np.array([[-1.0, 2.0]])}, 0.5, "global:lamp"), "not negative. Received: -1 to 2"),
        (lambda: keep_masks({"a": np.array([[np.nan, 2.0]])}, 0.5, "global:lamp"), "LAMP needs scores"),
        (lambda: keep_masks({"a": np.array([[np.nan, 2.0]])}, 0.5, "global:mean"), "NaN"),
        (lambda: check_scope("global", lambda scores, sparsity: scores > 0), "no global ranking"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
