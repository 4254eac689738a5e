from dataclasses import dataclass

import pytest

from kpipe.errors import KpipeError
from kpipe.schedules import (
    ConstantSparsity,
    CosineSparsity,
    IterativeSparsity,
    Join,
    LinearSparsity,
    PolynomialDecay,
    Schedule,
    SteppedSparsity,
    resolve,
)


@pytest.mark.parametrize(
    ("made", "steps_per_epoch", "expected"),
    [
        (
            PolynomialDecay.over_epochs(final_sparsity=0.8, begin=0, end=4),
            100,
            PolynomialDecay(0.0, 0.8, 0, 400, 3, frequency=8),  # 400 / 50
        ),
        (
            PolynomialDecay.over_epochs(initial_sparsity=0.2, final_sparsity=0.8, begin=0.5, end=2.25, power=2),
            10,
            PolynomialDecay(0.2, 0.8, 5, 22, 2, frequency=1),  # 22 of 22.5 are done; 18 steps are fewer than 50 updates
        ),
        (
            LinearSparsity.over_epochs(final_sparsity=0.8, begin=1, end=3, updates_per_epoch=4),
            938,
            LinearSparsity(0.0, 0.8, 938, 2814, frequency=235),  # 234.5 rounds up
        ),
        (
            LinearSparsity.over_epochs(final_sparsity=0.8, begin=1, end=3, updates_per_epoch=0.5),
            100,
            LinearSparsity(0.0, 0.8, 100, 300, frequency=200),  # an update every other epoch
        ),
        (
            CosineSparsity.over_epochs(final_sparsity=0.8, end=3, frequency=13),
            100,
            CosineSparsity(0.0, 0.8, 0, 300, frequency=13),
        ),
        (
            LinearSparsity.over_epochs(final_sparsity=0.8, end=1, updates_per_epoch=1000),
            10,
            LinearSparsity(0.0, 0.8, 0, 10, frequency=1),
        ),
        (ConstantSparsity.over_epochs(target_sparsity=0.5), 100, ConstantSparsity(0.5, 0)),
        (
            ConstantSparsity.over_epochs(target_sparsity=0.5, begin=2, updates_per_epoch=10),
            100,
            ConstantSparsity(0.5, 200, -1, 10),
        ),
        (
            ConstantSparsity.over_epochs(target_sparsity=0.5, begin=2, end=4),
            100,
            ConstantSparsity(0.5, 200, 400, 4),
        ),
        (
            SteppedSparsity.over_epochs(sparsities=(0.5, 0.8), epochs=(1, 2.5)),
            7,
            SteppedSparsity((0.5, 0.8), (7, 17)),  # 17 of 17.5 are done by then
        ),
        (
            IterativeSparsity.over_epochs(final_sparsity=0.8, begin=1, end=4, stages=3),
            20,
            IterativeSparsity(0.0, 0.8, 20, 80, 3),
        ),
        (
            Join.over_epochs(
                schedules=(
                    LinearSparsity.over_epochs(final_sparsity=0.5, end=1),
                    ConstantSparsity.over_epochs(target_sparsity=0.5, begin=1.5),
                )
            ),
            100,
            Join((LinearSparsity(0.0, 0.5, 0, 100, 2), ConstantSparsity(0.5, 150))),
        ),
        (
            PolynomialDecay.over_epochs(final_sparsity=0.8, begin=0, end=3),
            3.5,  # seven batches, an update every second one: ten in three epochs
            PolynomialDecay(0.0, 0.8, 0, 10, 3, frequency=1),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, int | float) else None,
)
def test_epochs_become_steps(made, steps_per_epoch, expected):
    assert made.in_steps(steps_per_epoch) == resolve(made, steps_per_epoch) == expected
    assert resolve(expected, None) is expected


@dataclass(frozen=True)
class OwnSchedule(Schedule):
    level: float
    begin_step: int
    end_step: int
    frequency: int = 1

    def sparsity(self, step):
        return self.level


def test_a_schedule_of_ones_own_counts_epochs_too():
    made = OwnSchedule.over_epochs(level=0.4, begin=1, end=2)
    assert made.in_steps(100) == OwnSchedule(0.4, 100, 200, 2)
    assert made.in_steps(100)(200) == (True, 0.4)


STEP = PolynomialDecay.over_epochs(final_sparsity=0.8, end=4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8), "was given no 'end'. It takes initial_sparsity"),
        (lambda: PolynomialDecay.over_epochs(end=3), "was given no 'final_sparsity'"),
        (lambda: SteppedSparsity.over_epochs(sparsities=(0.5,)), "was given no 'epochs'"),
        (lambda: Join.over_epochs(), "was given no 'schedules'"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, end_step=4), "Did you mean 'end'?"),
        (lambda: SteppedSparsity.over_epochs(sparsities=(0.5,), epochs=(1,), frequency=2), "has no 'frequency'"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, begin=3, end=2), "begin=3 and end=2"),
        (
            lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, begin=-1, end=2),
            "begin of .* is -1; expected epochs",
        ),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, end="2"), "end of .* is '2'; expected epochs"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, end=float("nan")), "end of .* is nan"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, end=(1, 2)), r"end of .* is \(1, 2\)"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=0.8, end=()), r"end of .* is \(\)"),
        (lambda: SteppedSparsity.over_epochs(sparsities=(0.5,), epochs=1), "epochs of .* is 1; expected several"),
        (lambda: SteppedSparsity.over_epochs(sparsities=(0.5, 0.6), epochs=(2, 1)), "expected ever higher steps"),
        (lambda: PolynomialDecay.over_epochs(final_sparsity=1.8, end=2), "final_sparsity is 1.8"),
        (lambda: LinearSparsity.over_epochs(final_sparsity=0.8, end=2, updates_per_epoch=0), "updates_per_epoch of"),
        (
            lambda: LinearSparsity.over_epochs(final_sparsity=0.8, end=2, updates_per_epoch=3, frequency=9),
            "frequency and updates_per_epoch; expected one",
        ),
        (lambda: Join((STEP,)), r"call Join.over_epochs\(schedules="),
        (lambda: Join.over_epochs(schedules=(STEP, STEP)), "begins before that one's begin_step"),
        (lambda: STEP.in_steps(0), "steps_per_epoch is 0; expected a number above 0"),
        (lambda: resolve(STEP, None), "PolynomialDecay.over_epochs.* counts epochs, and the number of steps"),
        (lambda: resolve(0.5, 3), "The schedule is 0.5; expected a Schedule"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
