"""Cuts in rounds: what is gone after each is what the formula says of all the channels that there were."""

import math

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.structured import FilterPlan, GroupPlan, plan_filters, prune_filters
from kpipe.structured.composition import compose
from kpipe.structured.heads import plan_heads


def dense(*widths: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [L.Dense(width, name=f"d{n}") for n, width in enumerate(widths)]
    return keras.Sequential([keras.Input((4,)), *layers, L.Dense(2, name="out")])


def part_gone(ratio: float, number: int, rounds: int) -> float:
    return ratio if number == rounds else 1 - (1 - ratio) ** (number / rounds)


def cut(model: keras.Model, ratio: float, rounds: int, plan_of=plan_filters, **how) -> list[FilterPlan]:
    """Cut a model round by round; give the plan of all rounds so far after each."""
    plans, done = [], None
    for number in range(1, rounds + 1):
        plan = plan_of(model, ratio=part_gone(ratio, number, rounds), after=done, **how)
        model = prune_filters(model, plan, check=False)
        done = plan if done is None else compose(done, plan)
        plans.append(done)
    return plans


def widths(plan: FilterPlan) -> list[int]:
    return [group.kept for group in plan.groups]


pytestmark = pytest.mark.filterwarnings("ignore::kpipe.errors.NoEffectWarning")  # of rounds that take nothing


@pytest.mark.parametrize(("width", "ratio", "rounds"), [(4, 0.5, 10), (6, 0.25, 4), (16, 0.5, 10), (100, 0.9, 7)])
def test_every_round_leaves_what_the_formula_says(width, ratio, rounds):
    left = [widths(plan) for plan in cut(dense(width), ratio, rounds)]
    gone = [math.floor(width * part_gone(ratio, number, rounds) + 0.5) for number in range(1, rounds + 1)]
    assert left == [[width - one] for one in gone]
    assert left[-1] == widths(plan_filters(dense(width), ratio=ratio))


def test_rounding_to_multiples_reaches_the_ratio():
    assert [widths(plan) for plan in cut(dense(32), 0.5, 4, round_to=8)] == [[24], [24], [16], [16]]


def test_a_ratio_for_each_layer_and_limits_hold_over_all_rounds():
    plans = cut(dense(20, 20, 20), {"d0": 0.5, "d1": 0.9}, 1)
    assert widths(plans[-1]) == [10, 2, 20]
    half = {"d0": part_gone(0.5, 1, 2), "d1": part_gone(0.9, 1, 2)}
    first = plan_filters(dense(20, 20, 20), ratio=half)
    small = prune_filters(dense(20, 20, 20), first)
    second = plan_filters(small, ratio={"d0": 0.5, "d1": 0.9}, after=first)
    assert widths(compose(first, second)) == [10, 2, 20]
    assert widths(cut(dense(20), 0.9, 3, max_ratio=0.5)[-1]) == [10]
    assert widths(cut(dense(20), 0.9, 3, min_channels=7)[-1]) == [7]
    note = cut(dense(20), 0.9, 3, max_ratio=0.5)[-1].groups[0].note
    assert note == "max_ratio=0.5 keeps the rest"


@pytest.mark.parametrize("scope", ["global", "isomorphic", {"all": "d"}], ids=str)
def test_channels_that_are_ranked_together_come_to_the_ratio_together(scope):
    model = dense(12, 12, 12)
    model.layers[0].kernel.assign(0.01 * model.layers[0].kernel)  # so that one layer loses more than the others
    plans = cut(model, 0.5, 3, scope=scope)
    gone = [sum(len(group.removed) for group in plan.groups) for plan in plans]
    assert gone == [math.floor(36 * part_gone(0.5, number, 3) + 0.5) for number in (1, 2, 3)]
    assert len(set(widths(plans[0]))) > 1  # groups that differ in width by then are one structure all the same


def test_heads_go_by_the_formula_too():
    x = keras.Input((5, 8))
    model = keras.Model(x, L.MultiHeadAttention(8, 2, name="attend")(x, x))
    assert [widths(plan) for plan in cut(model, 0.5, 5, plan_heads)] == [[7], [6], [5], [5], [4]]
    control = model
    for _ in range(5):  # each round by itself rounds anew
        control = prune_filters(control, plan_heads(control, ratio=1 - 0.5 ** (1 / 5)))
    assert control.get_layer("attend").num_heads == 3  # more than was asked


def test_the_plan_of_another_cut_is_refused():
    wrong = FilterPlan((GroupPlan("d0", ("d0",), 8, (0, 1)),))
    with pytest.raises(KpipeError, match=r"has 8 channels of 'd0', and the plan given as after= leaves 6 of them"):
        plan_filters(dense(8), ratio=0.5, after=wrong)


def test_without_the_plan_before_a_ratio_is_of_what_is_left():
    """The control: it is the argument that makes rounds come to the ratio."""
    model = dense(32)
    for _ in range(4):
        model = prune_filters(model, plan_filters(model, ratio=1 - 0.5 ** (1 / 4), round_to=8))
    assert model.layers[0].units == 24
    assert np.isclose(1 - (1 - part_gone(0.5, 1, 4)) ** 4, 0.5)
