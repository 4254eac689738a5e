"""The curves that a stage leaves for the report: what was asked for, and what was there at each update."""

import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.pipeline import Context
from kpipe.schedules import ConstantSparsity, LinearSparsity, SteppedSparsity
from kpipe.stages.following import Following, curve


@pytest.fixture
def context(tmp_path):
    x, y = np.zeros((2, 1)), np.zeros(2)
    return Context("net", Dataset("none", (x, y), (x, y), (x, y), x, 1), 0, tmp_path, tmp_path)


def followed(context, steps, schedules, reached):
    noting = Following(context, steps, schedules, reached)
    noting.on_train_begin()
    for batch in range(steps):
        noting.on_train_batch_end(batch)
    noting.on_train_end()
    return context.record.details["schedules"]


def test_what_is_reached_is_noted_at_each_update_and_nowhere_else(context):
    asked = []

    def reached():
        asked.append(len(asked) / 10)
        return {None: asked[-1]}

    schedule = LinearSparsity(0.0, 0.5, 2, 10, frequency=3)
    (noted,) = followed(context, 14, {None: schedule}, reached)
    assert noted["reached"] == [[2, 0.0], [5, 0.1], [8, 0.2], [10, 0.3]]
    assert (noted["weights"], noted["schedule"], noted["updates"]) == ("all", str(schedule), 4)
    assert noted["asked"] == [[step, 0.5 * min(1, max(0, step - 2) / 8)] for step in range(15)]


def test_each_set_of_weights_has_its_curve(context):
    schedules = {"conv": SteppedSparsity((0.3, 0.6), (0, 4)), "": ConstantSparsity(0.5, 1, 1)}
    noted = followed(context, 6, schedules, lambda: {"conv": 0.25})
    assert [(one["weights"], one["reached"], one["updates"]) for one in noted] == [
        ("conv", [[0, 0.25], [4, 0.25]], 2),
        ("all others", [], 1),  # nothing of it is there
    ]


def test_of_very_many_updates_some_are_kept_the_last_among_them(context):
    steps = 5003
    (noted,) = followed(context, steps, {None: LinearSparsity(0.0, 0.5, 0, 5001, 1)}, lambda: {None: 0.1})
    assert noted["updates"] == 5002
    assert len(noted["asked"]) < 250 and len(noted["reached"]) < 250
    assert noted["reached"][0][0] == 0 and noted["reached"][-1][0] == 5001 and noted["asked"][-1][0] == steps


def test_a_jump_is_a_jump():
    points = dict(map(tuple, curve(SteppedSparsity((0.5,), (777,)), 10_000)))
    assert (points[776], points[777]) == (0.0, 0.5)
