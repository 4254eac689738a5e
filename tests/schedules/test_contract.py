"""What holds for every registered schedule."""

import json
from dataclasses import FrozenInstanceError, fields

import keras
import pytest

from kpipe.errors import KpipeError
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
    SteppedSparsity,
    schedule,
)

MADE = {
    "constant": ConstantSparsity(0.5, 3, 30, 7),
    "polynomial_decay": PolynomialDecay(0.1, 0.8, 2, 50, 2.0, 9),
    "linear": LinearSparsity(0.1, 0.8, 2, 50, 9),
    "cosine": CosineSparsity(0.1, 0.8, 2, 50, 9),
    "one_cycle": OneCycleSparsity(0.1, 0.8, 2, 50, 10.0, 4.0, 9),
    "stepped": SteppedSparsity((0.4, 0.8), (3, 50)),
    "iterative": IterativeSparsity(0.1, 0.8, 2, 50, 3),
    "join": Join((PolynomialDecay(0.1, 0.4, 2, 20), Join((LinearSparsity(0.4, 0.8, 30, 50, 9),)))),
}
IN_EPOCHS = {
    "constant": ConstantSparsity.over_epochs(target_sparsity=0.5, begin=1, end=2.5, frequency=7),
    "polynomial_decay": PolynomialDecay.over_epochs(final_sparsity=0.8, end=4, power=2.0, updates_per_epoch=5),
    "linear": LinearSparsity.over_epochs(final_sparsity=0.8, begin=0.5, end=4),
    "cosine": CosineSparsity.over_epochs(final_sparsity=0.8, begin=0.5, end=4),
    "one_cycle": OneCycleSparsity.over_epochs(initial_sparsity=0.1, final_sparsity=0.8, end=4, alpha=10.0, beta=4.0),
    "stepped": SteppedSparsity.over_epochs(sparsities=[0.4, 0.8], epochs=[0.5, 2]),
    "iterative": IterativeSparsity.over_epochs(final_sparsity=0.8, end=3, stages=3),
    "join": Join.over_epochs(
        schedules=[LinearSparsity.over_epochs(final_sparsity=0.8, end=2), ConstantSparsity(0.8, 999_999_999)]
    ),
}


def uncovered(names):
    return sorted(set(SCHEDULES) ^ set(names))


def test_every_schedule_has_a_case():
    assert uncovered(MADE) == uncovered(IN_EPOCHS) == []
    assert uncovered(set(MADE) - {"join"}) == ["join"]


@pytest.mark.parametrize("made", [*MADE.values(), *IN_EPOCHS.values()], ids=[*MADE, *(f"{n}, epochs" for n in MADE)])
def test_serialization_keeps_all_arguments(made):
    stored = json.dumps(keras.saving.serialize_keras_object(made))
    back = keras.saving.deserialize_keras_object(json.loads(stored))
    assert type(back) is type(made) and back == made and repr(back) == repr(made) and back is not made


@pytest.mark.parametrize("name", MADE)
def test_the_configuration_holds_every_argument(name):
    made = MADE[name]
    config = made.get_config()
    assert type(made) is SCHEDULES[name] and list(config) == [field.name for field in fields(made)]
    for field in fields(made):
        if isinstance(getattr(made, field.name), int | float):
            changed = getattr(made, field.name) + (0.01 if "sparsity" in field.name else 1)
            other = type(made).from_config({**config, field.name: changed})
            assert other != made and getattr(other, field.name) == changed


@pytest.mark.parametrize("name", MADE)
def test_a_schedule_cannot_be_changed_and_says_how_it_was_made(name):
    made = MADE[name]
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(made)[0].name, 0.2)
    assert hash(made) == hash(type(made).from_config(made.get_config()))
    assert eval(repr(made)) == made
    assert eval(repr(IN_EPOCHS[name])) == IN_EPOCHS[name]


@pytest.mark.parametrize("name", MADE)
def test_sparsities_are_fractions_and_updates_stand_between_begin_and_end(name):
    made = MADE[name]
    asked = [made(step) for step in range(80)]
    due = [step for step, (now, _) in enumerate(asked) if now]
    assert due[0] == made.begin_step and due[-1] == made.end_step
    assert all(0 <= sparsity < 1 for _, sparsity in asked) and all(type(now) is bool for now, _ in asked)


@pytest.mark.parametrize("name", MADE)
def test_a_mapping_of_its_name_to_its_configuration_makes_it(name):
    made = MADE[name]
    given = made.get_config() if name != "join" else {"schedules": made.schedules}
    assert schedule({name: given}) == made


@pytest.mark.parametrize("name", IN_EPOCHS)
def test_each_can_be_said_in_epochs(name):
    made = IN_EPOCHS[name]
    assert isinstance(made, EpochSchedule) and made.kind is SCHEDULES[name]
    steps = made.in_steps(100)
    assert type(steps) is SCHEDULES[name] and steps != made.in_steps(200)
    assert hash(made) == hash(EpochSchedule.from_config(made.get_config()))


def test_a_class_that_is_not_registered_cannot_be_loaded():
    config = {"kind": "another>Schedule", "arguments": {}}
    with pytest.raises(KpipeError, match=r"'another>Schedule' is not registered. Import the module"):
        EpochSchedule.from_config(config)
