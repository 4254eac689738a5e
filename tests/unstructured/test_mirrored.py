"""`tf.distribute.MirroredStrategy` on two logical processors, set up in a process of its own."""

import json

import pytest

HALF = 0.8 * (1 - 0.5**3)  # of the schedule from 0 to 0.8 over ten steps


@pytest.fixture(scope="module")
def found(written):
    return json.loads((written("unstructured/mirrored.py") / "found.json").read_text())


@pytest.mark.parametrize("case", ["averages", "scaled", "taylor", "wrapped"])
def test_two_mirrored_devices_hold_the_same_zeros_at_every_step(found, case):
    asked = [[round(share * 192), round(share * 64)] for share in [0.0] * 4 + [HALF] * 5 + [0.8] * 7]
    assert found["replicas"] == 2
    assert found[case] == {"zeros": asked, "alike": True, "averages": True}


def test_zeros_that_move(found):
    assert found["rigl"]["alike"]
    for now in found["rigl"]["zeros"]:
        assert all(zeros >= round(0.6 * size) for zeros, size in zip(now, (192, 64), strict=True))
    assert found["rigl"]["zeros"][0] == [115, 38]


def test_the_tap_sees_the_gradients_of_all_devices(found):
    assert found["gradient"]["count"] == 8 and found["gradient"]["error"] < 1e-5


@pytest.mark.parametrize("case", ["filters", "filters, pulled"])
def test_filters(found, case):
    units, filters = 16 - round(0.8 * 16), found[case]
    assert filters["units"] == units and filters["error"] < 1e-5 and filters["alike"]
    assert filters["zeros"][-1] == [(16 - units) * 12, (16 - units) * 4]


def test_a_regulariser_pulls_once_for_all_devices(found):
    assert found["pulled"] < 1e-3
