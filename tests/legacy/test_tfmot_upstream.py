"""TFMOT's own tests of pruning hold for `kpipe.legacy.tfmot`, all but those that are skipped for a reason.

They are no part of this project: give a checkout of tensorflow/model-optimization as KPIPE_TFMOT_SOURCE, and run with
`-m slow`. `tfmot_upstream.py` says how they are run, and which cases are skipped why.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.legacy.tfmot_upstream import SKIPPED

SOURCE = os.environ.get("KPIPE_TFMOT_SOURCE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="KPIPE_TFMOT_SOURCE names no checkout of tensorflow/model-optimization"),
]


def outcome(*options: str) -> dict:
    """Run the tests in a process of their own, for they change Keras."""
    root = Path(__file__).parents[2]
    command = [sys.executable, Path(__file__).with_name("tfmot_upstream.py"), SOURCE, *options]
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> dict:
    """Give what came of every file."""
    return outcome()


@pytest.mark.parametrize("file", SKIPPED)
def test_the_cases_of_tfmot_pass(file, found):
    assert found[file]["passed"] and found[file]["failed"] == {}


@pytest.mark.parametrize("file", SKIPPED)
def test_every_skip_is_of_a_case_that_there_is(file, found):
    for begin in SKIPPED[file]:
        assert any(f"{case} ".startswith(begin) for case in found[file]["skipped"]), begin


def test_the_cases_see_masks_that_drop_nothing():
    seeing = {"tools/sparsity_tooling_test": 2, "pruning_impl_test": 11}
    found = outcome("--broken", *seeing)
    assert {file: len(found[file]["failed"]) for file in seeing} == seeing
