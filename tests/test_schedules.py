import keras
import pytest

from kpipe.errors import KpipeError
from kpipe.schedules import SCHEDULES, ConstantSparsity, PolynomialDecay, last_due, schedule


def due_steps(made, steps=60):
    return [step for step in range(steps) if made(step)[0]]


def naive_polynomial(step, initial, final, begin, end, power):
    progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return final + (initial - final) * (1 - progress) ** power


@pytest.mark.parametrize("power", [1, 2.5, 3])
@pytest.mark.parametrize(("begin", "end"), [(0, 40), (7, 30)])
def test_polynomial_decay_follows_the_formula(begin, end, power):
    made = PolynomialDecay(0.1, 0.9, begin, end, power=power, frequency=1)
    for step in range(60):
        assert made(step)[1] == pytest.approx(naive_polynomial(step, 0.1, 0.9, begin, end, power), abs=1e-12)
    wrong = PolynomialDecay(0.1, 0.9, begin, end, power=power + 1, frequency=1)
    assert wrong((begin + end) // 2)[1] != pytest.approx(made((begin + end) // 2)[1], abs=1e-3)


@pytest.mark.filterwarnings("ignore")  # TFMOT and tf_keras warn on import
@pytest.mark.parametrize(
    "arguments",
    [
        dict(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=40, frequency=10),
        dict(initial_sparsity=0.2, final_sparsity=0.9, begin_step=3, end_step=30, power=2, frequency=7),
        dict(target_sparsity=0.5, begin_step=5, frequency=4),
        dict(target_sparsity=0.5, begin_step=0, end_step=21, frequency=4),
    ],
)
def test_agrees_with_tfmot_wherever_tfmot_updates(arguments):
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    name = "PolynomialDecay" if "final_sparsity" in arguments else "ConstantSparsity"
    ours, theirs = globals()[name](**arguments), getattr(tfmot.sparsity.keras, name)(**arguments)
    for step in range(60):
        due, sparsity = theirs(tf.constant(step))
        if step != arguments.get("end_step"):
            assert ours(step)[0] == bool(due)
        if due:
            assert ours(step)[1] == pytest.approx(float(sparsity), abs=1e-6)


@pytest.mark.parametrize("frequency", [1, 7, 30, 100])
def test_the_final_sparsity_is_applied_at_the_end_whatever_the_frequency(frequency):
    made = PolynomialDecay(0.0, 0.8, 2, 50, frequency=frequency)
    assert made(50) == (True, 0.8) and due_steps(made, 80)[-1] == 50
    assert due_steps(made) == sorted({*range(2, 51, frequency), 50})


def test_begin_equal_to_end_is_the_final_sparsity_at_once():
    made = PolynomialDecay(0.0, 0.8, 5, 5)
    assert due_steps(made) == [5] and made(5)[1] == 0.8 and made(6)[1] == 0.8


def test_constant_without_and_with_an_end():
    assert due_steps(ConstantSparsity(0.5, 3, frequency=20)) == [3, 23, 43]
    assert due_steps(ConstantSparsity(0.5, 3, 30, frequency=20)) == [3, 23, 30]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PolynomialDecay(0, 0.8, 10, 5), "end_step is 5 and begin_step 10"),
        (lambda: PolynomialDecay(0, 0.8, 0, -1), "end_step is -1"),
        (lambda: PolynomialDecay(0, 1.0, 0, 5), r"final_sparsity is 1.0; expected a fraction of zeros in \[0, 1\)"),
        (lambda: PolynomialDecay(float("nan"), 0.8, 0, 5), "initial_sparsity is nan"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, power=0), "power is 0"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5, frequency=0), "frequency is 0"),
        (lambda: PolynomialDecay(0, 0.8, 0, 5.5), "end_step is 5.5"),
        (lambda: ConstantSparsity(-0.1, 0), "target_sparsity is -0.1"),
        (lambda: ConstantSparsity("0.5", 0), "target_sparsity is '0.5'"),
        (lambda: ConstantSparsity(0.5, -1), "begin_step is -1"),
        (lambda: ConstantSparsity(0.5, 3, 2), "or -1 for no end"),
        (lambda: schedule("polynomial_decay"), "expected a Schedule"),
        (lambda: schedule({"polynomial": {}}), "Did you mean 'polynomial_decay'"),
        (lambda: schedule({"polynomial_decay": {"final_sparsty": 0.5}}), "Did you mean 'final_sparsity'"),
        (lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5}}), "cannot be made"),
        (lambda: schedule({"constant": 0.5}), "expected a mapping"),
        (
            lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5, "begin_step": "5"}}, steps=40),
            "begin_step is '5'; expected a whole number",
        ),
        (
            lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5, "end_step": None}}, steps=40),
            "end_step is None; expected a whole number",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


MADE = {
    "constant": ConstantSparsity(0.5, 3, 30, 7),
    "polynomial_decay": PolynomialDecay(0.1, 0.8, 2, 50, 2.0, 9),
}


def test_every_schedule_has_a_case():
    assert set(MADE) == set(SCHEDULES)


@pytest.mark.parametrize("name", MADE)
def test_serialization_keeps_all_arguments(name):
    made = MADE[name]
    assert type(made) is SCHEDULES[name]
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert back == made and repr(back) == repr(made) and back is not made
    assert back != type(made).from_config({**made.get_config(), "frequency": 8})


def test_a_mapping_becomes_a_schedule():
    made = PolynomialDecay(0.0, 0.8, 0, 10)
    assert schedule(made) is made
    assert schedule({"polynomial_decay": made.get_config()}) == made
    assert schedule({"polynomial_decay": {"final_sparsity": 0.6}}, steps=200) == PolynomialDecay(
        0.0, 0.6, 0, 150, frequency=3
    )
    assert schedule({"constant": {"target_sparsity": 0.6}}, steps=200) == ConstantSparsity(0.6, 0)
    given = {"final_sparsity": 0.6, "begin_step": 4, "end_step": 8, "frequency": 2}
    assert schedule({"polynomial_decay": given}, steps=3) == PolynomialDecay(0.0, 0.6, 4, 8, frequency=2)
    assert schedule({"polynomial_decay": {"final_sparsity": 0.6}}, steps=1).end_step == 0


def test_a_due_update_between_two_questions_is_not_lost():
    made = PolynomialDecay(0.0, 0.8, 0, 10, frequency=4)
    assert last_due(made, 9, 11) == 0.8
    assert last_due(made, 5, 9) == pytest.approx(naive_polynomial(8, 0.0, 0.8, 0, 10, 3))
    assert last_due(made, 5, 7) is None
