"""The highest sparsity and the step at which a schedule settles, against every single step."""

import math
from dataclasses import dataclass

import pytest

from kpipe.schedules import (
    SCHEDULES,
    ConstantSparsity,
    CosineSparsity,
    EpochSchedule,
    IterativeSparsity,
    Join,
    LinearSparsity,
    OneCycleSparsity,
    PolynomialDecay,
    Schedule,
    SteppedSparsity,
)

RAMPS = (PolynomialDecay, LinearSparsity, CosineSparsity, OneCycleSparsity)


@dataclass(frozen=True)
class Hump(Schedule):
    """Go up and half of the way down again."""

    begin_step: int = 3
    end_step: int = 43
    frequency: int = 7

    def sparsity(self, step):
        return 0.8 * math.sin(min(1.0, max(0.0, (step - self.begin_step) / 40)) * 2.6)


@dataclass(frozen=True)
class Rare(Hump):
    """Update at steps of its own."""

    def due(self, step):
        return step in (5, 20, 31)


@dataclass(frozen=True)
class Endless(Schedule):
    """Rise for as long as is said, without an end."""

    rises: int
    begin_step: int = 5
    end_step: int = -1
    frequency: int = 3

    def sparsity(self, step):
        return 0.9 * min(step, self.rises) / (self.rises + 1)


CASES = [
    ConstantSparsity(0.5, 3, 30, 7),
    ConstantSparsity(0.5, 3, -1, 7),
    ConstantSparsity(0.5, 3, 3),
    *(ramp(0.1, 0.8, 2, 50, frequency=9) for ramp in RAMPS),
    *(ramp(0.8, 0.1, 2, 50, frequency=9) for ramp in RAMPS),
    *(ramp(0.1, 0.8, 7, 7, frequency=9) for ramp in RAMPS),
    *(ramp(0.6, 0.6, 2, 50, frequency=9) for ramp in RAMPS),
    SteppedSparsity((0.4, 0.8), (3, 50)),
    SteppedSparsity((0.4, 0.8, 0.5, 0.5), (3, 20, 30, 50)),
    SteppedSparsity((0.4,), (3,)),
    IterativeSparsity(0.1, 0.8, 2, 50, 3),
    IterativeSparsity(0.8, 0.1, 2, 50, 3),
    IterativeSparsity(0.8, 0.8, 2, 50, 3),
    IterativeSparsity(0.1, 0.8, 2, 2, 3),
    Hump(),
    Rare(),
    Endless(20),
    Join((LinearSparsity(0.0, 0.9, 0, 20, 2), ConstantSparsity(0.9, 20))),
    Join((LinearSparsity(0.0, 0.9, 0, 20, 2), ConstantSparsity(0.9, 30, frequency=4))),
    Join((LinearSparsity(0.0, 0.9, 0, 20, 2), ConstantSparsity(0.5, 20))),  # 0.9 itself is never asked for
    Join((LinearSparsity(0.0, 0.9, 0, 20, 2), ConstantSparsity(0.5, 21))),
    Join((ConstantSparsity(0.5, 0, 0), PolynomialDecay(0.5, 0.8, 10, 50, frequency=9))),
    Join((ConstantSparsity(0.5, 0, 5), ConstantSparsity(0.5, 9, 12), ConstantSparsity(0.5, 20))),
    Join((ConstantSparsity(0.5, 0, 5), ConstantSparsity(0.6, 9, 12), ConstantSparsity(0.5, 20))),
    Join((Hump(), Join((ConstantSparsity(0.2, 50, 51), SteppedSparsity((0.3, 0.3), (60, 70)))))),
    Join((Rare(begin_step=3, end_step=20), ConstantSparsity(0.1, 20))),
]


def followed(schedule, steps=200):
    """Follow a schedule step by step."""
    return [(step, schedule(step)[1]) for step in range(steps) if schedule(step)[0]]


def settles(updates):
    last = updates[-1][1]
    changed = [place for place, (_, sparsity) in enumerate(updates) if sparsity != last]
    return updates[changed[-1] + 1 if changed else 0][0]


def test_every_schedule_has_a_case():
    assert set(SCHEDULES[name] for name in SCHEDULES) <= {type(case) for case in CASES}


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_the_facts_are_those_of_every_single_step(schedule):
    updates = followed(schedule)
    assert schedule.highest == max(sparsity for _, sparsity in updates)
    assert schedule.settled_step == settles(updates)
    given = list(schedule.updates())
    assert given == updates if schedule.end_step >= 0 else given[: len(updates)] == updates


def test_the_oracle_tells_schedules_apart():
    down = SteppedSparsity((0.8, 0.5), (3, 50))
    assert down.highest != down.sparsity(down.end_step)
    assert settles(followed(SteppedSparsity((0.5, 0.5), (3, 50)))) == 3 != down.settled_step


def test_an_endless_schedule_is_followed_for_ten_thousand_updates():
    last = 5 + 3 * 10_000
    assert [step for step, _ in Endless(10**9).updates()] == list(range(5, last + 1, 3))
    assert Endless(10**9).settled_step == last and Endless(10**9).highest == Endless(10**9).sparsity(last)
    assert Join((ConstantSparsity(0.0, 0, 2), Endless(10**9))).settled_step == last


def test_a_schedule_without_an_update_asks_for_nothing():
    never = Rare(begin_step=50, end_step=60)
    assert list(never.updates()) == [] and never.highest == 0 and never.settled_step == 50


@pytest.mark.parametrize(
    ("schedule", "highest"),
    [
        (OneCycleSparsity.over_epochs(initial_sparsity=0.9, final_sparsity=0.5, begin=1, end=2), None),
        (SteppedSparsity.over_epochs(sparsities=(0.8, 0.5), epochs=(1, 2)), 0.8),
        (ConstantSparsity.over_epochs(target_sparsity=0.7), 0.7),
        (EpochSchedule(Hump, {"begin": 0, "end": 0.004}), max(s for _, s in Hump(0, 40, 1).updates())),
    ],
    ids=str,
)
def test_epochs_know_the_highest_sparsity_before_their_steps(schedule, highest):
    made = schedule.in_steps(10_000)
    assert schedule.highest == max(sparsity for _, sparsity in made.updates())
    assert highest is None or schedule.highest == highest
