"""`tf.distribute.MirroredStrategy` on two logical processors, set up in a process of its own."""

import json

import pytest

HALF = 0.8 * (1 - 0.5**3)  # of the schedule from 0 to 0.8 over ten steps
QUICK = ("scaled", "gradient", "filters")
OTHERS = ("averages", "taylor", "rigl", "wrapped", "filters, pulled", "pulled")


@pytest.fixture
def found(written, case):
    """Give what came of a case; the quick ones and the others run in a process each."""
    together = QUICK if case in QUICK else OTHERS
    everything = json.loads((written("unstructured/mirrored.py", *together) / "found.json").read_text())
    assert everything["replicas"] == 2
    return everything[case]


def cases(*names):
    """Parametrize by cases, those that are not quick left to the slow suite."""
    return pytest.mark.parametrize(
        "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


@cases("averages", "scaled", "taylor", "wrapped")
def test_two_mirrored_devices_hold_the_same_zeros_at_every_step(found):
    asked = [[round(share * 192), round(share * 64)] for share in [0.0] * 4 + [HALF] * 5 + [0.8] * 7]
    assert found == {"zeros": asked, "alike": True, "averages": True}


@cases("rigl")
def test_zeros_that_move(found):
    assert found["alike"]
    for now in found["zeros"]:
        assert all(zeros >= round(0.6 * size) for zeros, size in zip(now, (192, 64), strict=True))
    assert found["zeros"][0] == [115, 38]


@cases("gradient")
def test_the_tap_sees_the_gradients_of_all_devices(found):
    assert found["count"] == 8 and found["error"] < 1e-5


@cases("filters", "filters, pulled")
def test_filters(found):
    units = 16 - round(0.8 * 16)
    assert found["units"] == units and found["error"] < 1e-5 and found["alike"]
    assert found["zeros"][-1] == [(16 - units) * 12, (16 - units) * 4]


@cases("pulled")
def test_a_regulariser_pulls_once_for_all_devices(found):
    assert found < 1e-3
