import pytest

from kpipe.errors import NoEffectWarning
from kpipe.schedules import ConstantSparsity, PolynomialDecay, SteppedSparsity, last_due, warn_of_shortfall


def test_a_due_update_between_two_questions_is_not_lost():
    made = PolynomialDecay(0.0, 0.8, 0, 10, frequency=4)
    assert last_due(made, 9, 11) == 0.8
    assert last_due(made, 5, 9) == pytest.approx(0.8 - 0.8 * 0.2**3)  # step 8
    assert last_due(made, 5, 7) is None
    assert last_due(SteppedSparsity((0.3, 0.6), (2, 7)), 1, 20) == 0.6


@pytest.mark.parametrize(
    ("ask", "begun", "ended", "changed", "kind", "match"),
    [
        (ConstantSparsity(0.5, 100), 0, 40, False, NoEffectWarning, "ended at step 40, before begin_step=100"),
        (ConstantSparsity(0.5, 0, 20), 30, 40, False, NoEffectWarning, "ended at step 20 and this training began at"),
        (PolynomialDecay(0, 0.5, 0, 900), 0, 40, False, NoEffectWarning, "long before end_step=900"),
        (ConstantSparsity(0.5, 0), 0, 40, False, NoEffectWarning, "asked for less than one entry"),
        (PolynomialDecay(0, 0.5, 0, 900), 0, 40, True, UserWarning, "before end_step=900 of its schedule"),
    ],
)
def test_a_training_that_was_too_short_is_told_with_the_numbers(ask, begun, ended, changed, kind, match):
    with pytest.warns(kind, match=match):
        warn_of_shortfall("WeightPruning", ask, begun, ended, changed)


def test_a_training_that_was_long_enough_is_not_warned_of(recwarn):
    warn_of_shortfall("WeightPruning", PolynomialDecay(0, 0.5, 0, 40), 0, 40, changed=True)
    warn_of_shortfall("WeightPruning", ConstantSparsity(0.5, 0), 0, 40, changed=True)
    assert not recwarn.list
