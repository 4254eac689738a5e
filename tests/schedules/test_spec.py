import pytest

from kpipe.errors import KpipeError
from kpipe.schedules import (
    ConstantSparsity,
    IterativeSparsity,
    Join,
    LinearSparsity,
    PolynomialDecay,
    SteppedSparsity,
    schedule,
    schedules_of,
)


def test_a_mapping_becomes_a_schedule():
    made = PolynomialDecay(0.0, 0.8, 0, 10)
    assert schedule(made) is made
    assert schedule({"polynomial_decay": made.get_config()}) == made
    given = {"final_sparsity": 0.6, "begin_step": 4, "end_step": 8, "frequency": 2}
    assert schedule({"polynomial_decay": given}, steps=3) == PolynomialDecay(0.0, 0.6, 4, 8, frequency=2)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"polynomial_decay": {"final_sparsity": 0.6}}, PolynomialDecay(0.0, 0.6, 0, 150, frequency=3)),
        ({"polynomial_decay": {"final_sparsity": 0.6, "begin_step": 40}}, PolynomialDecay(0.0, 0.6, 40, 160, 3, 2)),
        ({"linear": {"final_sparsity": 0.6, "end_step": 40}}, LinearSparsity(0.0, 0.6, 0, 40, 1)),
        ({"constant": {"target_sparsity": 0.6}}, ConstantSparsity(0.6, 0)),
        ({"constant": {"target_sparsity": 0.6, "begin_step": 7}}, ConstantSparsity(0.6, 7)),
        ({"iterative": {"final_sparsity": 0.6, "stages": 4}}, IterativeSparsity(0.0, 0.6, 0, 150, 4)),
        ({"stepped": {"sparsities": [0.3, 0.6, 0.9]}}, SteppedSparsity((0.3, 0.6, 0.9), (50, 100, 150))),
        ({"stepped": {"sparsities": [0.3], "steps": [9]}}, SteppedSparsity((0.3,), (9,))),
        (
            {
                "join": {
                    "schedules": [
                        {"linear": {"final_sparsity": 0.6, "begin_step": 0, "end_step": 9}},
                        {"constant": {"target_sparsity": 0.6, "begin_step": 20}},
                    ]
                }
            },
            Join((LinearSparsity(0.0, 0.6, 0, 9), ConstantSparsity(0.6, 20))),
        ),
    ],
)
def test_what_is_left_out_is_laid_over_the_training(spec, expected):
    assert schedule(spec, steps=200) == expected


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_shortest_training_has_a_schedule_too(steps):
    assert schedule({"polynomial_decay": {"final_sparsity": 0.6}}, steps=steps).end_step == 3 * steps // 4


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"polynomial_decay": {"final_sparsity": 0.8, "begin_epoch": 0.5, "end_epoch": 4}},
            PolynomialDecay.over_epochs(final_sparsity=0.8, begin=0.5, end=4),
        ),
        (
            {"linear": {"final_sparsity": 0.8, "end_epoch": 4, "updates_per_epoch": 3}},
            LinearSparsity.over_epochs(final_sparsity=0.8, end=4, updates_per_epoch=3),
        ),
        (
            {"constant": {"target_sparsity": 0.8, "begin_epoch": 1}},
            ConstantSparsity.over_epochs(target_sparsity=0.8, begin=1),
        ),
        (
            {"stepped": {"sparsities": [0.5, 0.8], "epochs": [1, 2]}},
            SteppedSparsity.over_epochs(sparsities=(0.5, 0.8), epochs=(1, 2)),
        ),
        (
            {
                "join": {
                    "schedules": [
                        {"linear": {"final_sparsity": 0.6, "end_epoch": 2}},
                        {"constant": {"target_sparsity": 0.6, "begin_epoch": 3}},
                    ]
                }
            },
            Join.over_epochs(
                schedules=(
                    LinearSparsity.over_epochs(final_sparsity=0.6, end=2),
                    ConstantSparsity.over_epochs(target_sparsity=0.6, begin=3),
                )
            ),
        ),
    ],
)
def test_a_mapping_may_count_epochs(spec, expected):
    assert schedule(spec) == schedule(spec, steps=1000) == expected


def test_a_mapping_of_expressions_gives_each_its_schedule_in_order():
    epochs = LinearSparsity.over_epochs(final_sparsity=0.4, end=2)
    made = schedules_of({"conv": {"linear": {"final_sparsity": 0.5}}, "a|b": epochs, "": ConstantSparsity(0.8, 0)}, 200)
    assert list(made.items()) == [
        ("conv", LinearSparsity(0.0, 0.5, 0, 150, 3)),
        ("a|b", epochs),
        ("", ConstantSparsity(0.8, 0)),
    ]
    by_name = {"constant": {"target_sparsity": 0.5, "begin_step": 0}}
    assert schedules_of(by_name) == {None: ConstantSparsity(0.5, 0)}
    assert schedules_of({"constant": by_name}) == {"constant": ConstantSparsity(0.5, 0)}  # a layer of that name
    assert schedules_of(epochs) == {None: epochs}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: schedule("polynomial_decay"), "expected a Schedule"),
        (lambda: schedule({"polynomial": {}}), "Did you mean 'polynomial_decay'"),
        (lambda: schedule({"polynomial_decay": {"final_sparsty": 0.5}}), "Did you mean 'final_sparsity'"),
        (lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5}}), "was given no 'begin_step'. It takes"),
        (lambda: schedule({"stepped": {}}, 100), "was given no 'sparsities'"),
        (lambda: schedule({"stepped": {"sparsities": 0.5}}, 100), "was given no 'steps'"),
        (lambda: schedule({"constant": 0.5}), "expected a mapping"),
        (
            lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5, "begin_step": "5"}}, steps=40),
            "begin_step is '5'; expected a whole number",
        ),
        (
            lambda: schedule({"polynomial_decay": {"final_sparsity": 0.5, "end_step": None}}, steps=40),
            "end_step is None; expected a whole number",
        ),
        (
            lambda: schedule({"linear": {"final_sparsity": 0.5, "begin_epoch": 1, "end_step": 40}}),
            "has begin_epoch and end_step; expected all of it in epochs or in steps",
        ),
        (lambda: schedule({"linear": {"final_sparsity": 0.5, "begin_epoch": 1}}, 40), "was given no 'end_epoch'"),
        (lambda: schedule({"linear": {"final_sparsity": 0.5, "end_epochs": 1}}), "Did you mean 'end_epoch'"),
        (lambda: schedule({"stepped": {"sparsities": [0.5], "end_epoch": 1}}), "has no 'end_epoch'"),
        (lambda: schedule({"join": {"schedules": [{"linear": {"final_sparsity": 0.5}}]}}, 40), "no 'begin_step'"),
        (
            lambda: schedules_of({"a": {"linear": {}}, "b": {"constant": {"target_sparsity": 0.5}}}, 9),
            "The schedule of 'a'",
        ),
        (lambda: schedules_of({"a(": ConstantSparsity(0.5, 0)}), r"'a\(', which is no regular expression"),
        (lambda: schedules_of({"a": ConstantSparsity(0.5, 0), "b": 0.5}), "The schedule of 'b': The schedule is 0.5"),
        (lambda: schedules_of({"polynomial": {"final_sparsity": 0.5}}), "Did you mean 'polynomial_decay'"),
        (
            lambda: schedules_of({"a": {"linar": {"final_sparsity": 0.5}}}),
            "The schedule of 'a': .* Did you mean 'linear'",
        ),
        (lambda: schedules_of({}), "The schedule is {}"),
        (lambda: schedules_of(None), "The schedule is None"),
    ],
)
def test_wrong_specifications_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
