import re

import pytest

from kpipe.schedules import ConstantSparsity, Join, PolynomialDecay, SteppedSparsity, Training, last_due, shortfall


def test_a_due_update_between_two_questions_is_not_lost():
    made = PolynomialDecay(0.0, 0.8, 0, 10, frequency=4)
    assert last_due(made, 9, 11) == 0.8
    assert last_due(made, 5, 9) == pytest.approx(0.8 - 0.8 * 0.2**3)  # step 8
    assert last_due(made, 5, 7) is None
    assert last_due(SteppedSparsity((0.3, 0.6), (2, 7)), 1, 20) == 0.6


JOINED = Join((PolynomialDecay(0.0, 0.5, 0, 900), ConstantSparsity(0.5, 900)))


@pytest.mark.parametrize(
    ("ask", "training", "nothing", "text"),
    [
        (ConstantSparsity(0.5, 100), (0, 40, 0, 0), True, "ended at step 40, before begin_step=100"),
        (ConstantSparsity(0.5, 0, 20), (30, 40, 0, 0), True, "ended at step 20 and this training began at step 30"),
        (ConstantSparsity(0.9, 1000), (0, 40, 7, 7), True, "ended at step 40, before begin_step=1000"),
        (PolynomialDecay(0, 0.5, 0, 900), (0, 40, 0, 0), True, "long before step 900"),
        (PolynomialDecay(0.5, 0.9, 0, 8), (8, 16, 5, 5), True, "long before|ended at step 8"),
        (PolynomialDecay(0, 0.5, 0, 900), (0, 0, 0, 0), True, "optimizer made no update"),
        (PolynomialDecay(0, 0.5, 0, 900), (0, 40, 0, 3), False, "before its schedule reaches 0.5 at step 900"),
        (JOINED, (0, 40, 0, 3), False, "reaches 0.5 at step 900"),
        (PolynomialDecay(0, 0.5, 0, 30), (0, 40, 0, 3), False, "ended at step 40 with fewer entries gone"),
    ],
)
def test_what_a_training_lacks_is_told_with_the_numbers(ask, training, nothing, text):
    found = shortfall(ask, Training(*training, lacks=True))
    assert found is not None and found.nothing is nothing
    assert re.search(text, found.text)


def test_nothing_is_lacking():
    assert shortfall(PolynomialDecay(0, 0.5, 0, 40), Training(0, 40, 0, 20, lacks=False)) is None
    assert shortfall(ConstantSparsity(0.5, 0), Training(40, 80, 20, 20, lacks=False)) is None
    assert shortfall(PolynomialDecay(0, 0.5, 0, 900), Training(0, 40, 20, 20, lacks=False)) is None
    found = shortfall(ConstantSparsity(0.1, 0), Training(0, 40, 0, 0, lacks=False))
    assert found is not None and found.nothing and "asked for less than one entry" in found.text
