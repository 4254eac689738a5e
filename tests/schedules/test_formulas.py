import math

import pytest

from kpipe.errors import KpipeError
from kpipe.schedules import (
    ConstantSparsity,
    CosineSparsity,
    IterativeSparsity,
    Join,
    LinearSparsity,
    OneCycleSparsity,
    PolynomialDecay,
    SteppedSparsity,
)

RAMPS = (PolynomialDecay, LinearSparsity, CosineSparsity, OneCycleSparsity, IterativeSparsity)


def due_steps(made, steps=60):
    return [step for step in range(steps) if made(step)[0]]


def way(step, begin, end):
    return min(1.0, max(0.0, (step - begin) / (end - begin)))


def naive_polynomial(step, initial, final, begin, end, power=3):
    return final + (initial - final) * (1 - way(step, begin, end)) ** power


def naive_linear(step, initial, final, begin, end):
    p = way(step, begin, end)
    return (1 - p) * initial + p * final


def naive_cosine(step, initial, final, begin, end):
    return initial + (final - initial) * math.sin(math.pi / 2 * way(step, begin, end)) ** 2


def naive_one_cycle(step, initial, final, begin, end, alpha=14, beta=5):
    if step < begin:
        return initial
    p = way(step, begin, end)
    return initial + (final - initial) * (1 + math.e ** (beta - alpha)) / (1 + math.e ** (beta - alpha * p))


def naive_iterative(step, initial, final, begin, end, stages=5):
    left, fraction = 1 - initial, ((1 - final) / (1 - initial)) ** (1 / stages)
    for stage in range(1, stages + 1):
        if step >= begin + (end - begin) * stage / stages:
            left *= fraction
    return 1 - left


CASES = {
    "polynomial 1": (PolynomialDecay, naive_polynomial, {"power": 1}),
    "polynomial 2.5": (PolynomialDecay, naive_polynomial, {"power": 2.5}),
    "polynomial 3": (PolynomialDecay, naive_polynomial, {"power": 3}),
    "linear": (LinearSparsity, naive_linear, {}),
    "cosine": (CosineSparsity, naive_cosine, {}),
    "one cycle": (OneCycleSparsity, naive_one_cycle, {}),
    "one cycle, slower": (OneCycleSparsity, naive_one_cycle, {"alpha": 9.0, "beta": 3.5}),
    "iterative 1": (IterativeSparsity, naive_iterative, {"stages": 1}),
    "iterative 4": (IterativeSparsity, naive_iterative, {"stages": 4}),
    "iterative 7": (IterativeSparsity, naive_iterative, {"stages": 7}),
}


@pytest.mark.parametrize(("begin", "end"), [(0, 40), (7, 30)])
@pytest.mark.parametrize("case", CASES)
def test_each_way_follows_its_formula_at_every_step(case, begin, end):
    kind, naive, extra = CASES[case]
    made = kind(0.1, 0.9, begin, end, **extra)
    for step in range(60):
        assert made.sparsity(step) == pytest.approx(naive(step, 0.1, 0.9, begin, end, **extra), abs=1e-12)
    assert made.sparsity(end) == made.sparsity(end + 9) == 0.9
    assert naive((begin + end) // 2, 0.1, 0.9, begin, end, **extra) != pytest.approx(0.9, abs=1e-3)


def test_no_two_ways_are_the_same():
    middle = {case: kind(0.1, 0.9, 0, 40, **extra).sparsity(17) for case, (kind, _, extra) in CASES.items()}
    middle.pop("polynomial 1")  # linear
    assert len({round(value, 6) for value in middle.values()}) == len(middle)


@pytest.mark.parametrize("kind", RAMPS)
def test_begin_equal_to_end_is_the_final_sparsity_at_once(kind):
    made = kind(0.1, 0.8, 5, 5)
    assert due_steps(made) == [5]
    assert [made.sparsity(step) for step in (4, 5, 6)] == [0.1, 0.8, 0.8]


@pytest.mark.parametrize("frequency", [1, 7, 30, 100])
@pytest.mark.parametrize("kind", [kind for kind in RAMPS if kind is not IterativeSparsity])
def test_the_final_sparsity_is_applied_at_the_end_whatever_the_frequency(kind, frequency):
    made = kind(0.0, 0.8, 2, 50, frequency=frequency)
    assert made(50) == (True, 0.8)
    assert due_steps(made, 80) == sorted({*range(2, 51, frequency), 50})


def test_a_way_down_ends_exactly_too():
    assert [kind(0.9, 0.2, 0, 7).sparsity(7) for kind in RAMPS] == [0.2] * len(RAMPS)


def test_one_cycle_has_the_papers_shape():
    made = OneCycleSparsity(0.0, 1 - 1e-9, 0, 1000)
    assert made.sparsity(0) == pytest.approx(0.0067, abs=1e-4)
    assert made.sparsity(357) == pytest.approx(0.5, abs=1e-3)  # beta / alpha of the way
    assert made.sparsity(700) > 0.99


def test_constant_without_and_with_an_end():
    assert due_steps(ConstantSparsity(0.5, 3, frequency=20)) == [3, 23, 43]
    assert due_steps(ConstantSparsity(0.5, 3, 30, frequency=20)) == [3, 23, 30]
    assert {ConstantSparsity(0.5, 3).sparsity(step) for step in range(60)} == {0.5}


def test_stepped_asks_for_what_was_given_where_it_was_given():
    made = SteppedSparsity([0.3, 0.6, 0.85], [4, 10, 31])
    assert due_steps(made) == [4, 10, 31]
    assert [made.sparsity(step) for step in range(60)] == [0.0] * 4 + [0.3] * 6 + [0.6] * 21 + [0.85] * 29
    assert (made.begin_step, made.end_step) == (4, 31)
    assert due_steps(SteppedSparsity((0.5,), (0,))) == [0]


def test_iterative_removes_the_same_share_of_what_remains_at_every_stage():
    made = IterativeSparsity(0.0, 1 - 0.8**7, 10, 80, stages=7)
    assert due_steps(made, 200) == list(range(10, 81, 10))
    remaining = [1 - made.sparsity(step) for step in due_steps(made, 200)]
    assert [100 * part for part in remaining] == pytest.approx([100, 80, 64, 51.2, 40.96, 32.768, 26.2144, 20.97152])


def test_iterative_with_more_stages_than_steps_passes_several_at_once():
    made = IterativeSparsity(0.0, 0.75, 0, 3, stages=6)
    assert due_steps(made) == [0, 1, 2, 3]
    assert [1 - made.sparsity(step) for step in range(4)] == pytest.approx([1, 0.25 ** (1 / 3), 0.25 ** (2 / 3), 0.25])


def test_joined_schedules_take_over_where_they_begin():
    first = PolynomialDecay(0.0, 0.5, 2, 20, frequency=7)
    second = ConstantSparsity(0.5, 20, 33, frequency=5)
    third = LinearSparsity(0.5, 0.9, 40, 50, frequency=5)
    made = Join([first, second, third])
    assert due_steps(made) == [2, 9, 16, 20, 25, 30, 33, 40, 45, 50]
    for step in range(60):
        part = first if step < 20 else second if step < 40 else third
        assert made.sparsity(step) == part.sparsity(step)
    assert (made.begin_step, made.end_step) == (2, 50)
    assert Join((first, ConstantSparsity(0.7, 30))).end_step == -1


def no_step_at_its_end(made):
    """Say what is wrong with the end of a schedule; nothing when it is right."""
    due, sparsity = made(made.end_step)
    return [fault for fault, found in (("not due", not due), ("not exact", sparsity != 0.8)) if found]


def test_a_schedule_that_forgets_its_end_is_found():
    class Forgetful(PolynomialDecay):
        def due(self, step):
            return (step - self.begin_step) % self.frequency == 0

    assert no_step_at_its_end(Forgetful(0.0, 0.8, 0, 50, frequency=7)) == ["not due"]
    assert no_step_at_its_end(LinearSparsity(0.0, 0.81, 0, 50, frequency=7)) == ["not exact"]
    assert no_step_at_its_end(PolynomialDecay(0.0, 0.8, 0, 50, frequency=7)) == []


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PolynomialDecay(0, 0.8, 10, 5), "end_step is 5 and begin_step 10"),
        (lambda: PolynomialDecay(0, 0.8, 0, -1), "end_step is -1"),
        (lambda: PolynomialDecay(0, 1.0, 0, 5), r"final_sparsity is 1.0; expected a fraction of zeros in \[0, 1\)"),
        (lambda: PolynomialDecay(float("nan"), 0.8, 0, 5), "initial_sparsity is nan"),
        (lambda: PolynomialDecay(0, True, 0, 5), "final_sparsity is True"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, power=0), "power is 0; expected a number above 0"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, power=math.inf), "power is inf"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, frequency=0), "frequency is 0"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, frequency=True), "frequency is True"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5.5), "end_step is 5.5"),
        (lambda: LinearSparsity(0, 0.8, -1, 5), "begin_step is -1"),
        (lambda: CosineSparsity(0, "0.8", 0, 5), "final_sparsity is '0.8'"),
        (lambda: OneCycleSparsity(0, 0.8, 0, 5, alpha=0), "alpha is 0"),
        (lambda: OneCycleSparsity(0, 0.8, 0, 5, beta="5"), "beta is '5'"),
        (lambda: IterativeSparsity(0, 0.8, 0, 5, stages=0), "stages is 0; expected 1 or more"),
        (lambda: IterativeSparsity(0, 0.8, 0, 5, stages=1.5), "stages is 1.5; expected a whole number of stages"),
        (lambda: IterativeSparsity(1.0, 0.8, 0, 5), "initial_sparsity is 1.0"),
        (lambda: ConstantSparsity(-0.1, 0), "target_sparsity is -0.1"),
        (lambda: ConstantSparsity("0.5", 0), "target_sparsity is '0.5'"),
        (lambda: ConstantSparsity(0.5, -1), "begin_step is -1"),
        (lambda: ConstantSparsity(0.5, 3, 2), "or -1 for no end"),
        (lambda: SteppedSparsity(0.5, (3,)), "sparsities is 0.5; expected several"),
        (lambda: SteppedSparsity((0.5,), ()), r"steps is \(\); expected several"),
        (lambda: SteppedSparsity((0.5, 0.6), (3,)), "received 2 sparsities and 1 steps"),
        (lambda: SteppedSparsity((0.5, 0.6), (3, 3)), r"steps is \[3, 3\]; expected ever higher steps"),
        (lambda: SteppedSparsity((0.5,), (-3,)), r"steps is \[-3\]"),
        (lambda: SteppedSparsity((0.5,), ("3",)), "steps is '3'; expected a whole number"),
        (lambda: SteppedSparsity((1.5,), (3,)), "sparsities is 1.5"),
        (lambda: Join(()), r"schedules is \(\); expected several"),
        (lambda: Join((0.5,)), "Join was given 0.5; expected schedules in steps"),
        (lambda: Join((ConstantSparsity(0.5, 0), ConstantSparsity(0.6, 9))), "end_step=-1.* is followed by"),
        (lambda: Join((ConstantSparsity(0.5, 0, 9), ConstantSparsity(0.6, 5))), "ends there at the latest"),
        (lambda: Join((ConstantSparsity(0.5, 5, 5), ConstantSparsity(0.6, 5))), "begins before that one's"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
