"""`tf.distribute.MirroredStrategy` on two logical processors, set up in a process of its own."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(written):
    return json.loads((written("cluster/mirrored_clusters.py") / "found.json").read_text())


@pytest.mark.parametrize("case", ["adam", "averages", "scaled"])
def test_two_mirrored_devices_hold_the_same_clusters(found, case):
    assert found["replicas"] == 2 and found[case] == {"most": 6, "alike": True, "averages": True}


def test_gradients_of_all_devices_are_summed_once(found):
    assert found["by hand"] < 1e-6
