"""A run that is killed again and again ends like one that is left alone."""

import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kpipe.recipe import load_recipe

SOURCE = """
import keras
import numpy as np


def data():
    rng = np.random.default_rng(0)
    y = np.arange(260) % 4
    x = rng.normal(size=(260, 6, 6, 1)).astype("float32")
    x[np.arange(260), y, y, 0] += 3.0
    return x[:200], y[:200], x[200:], y[200:]


def net():
    # Nameless layers, dropout and batch norm: what depends on counters, on seeds and on moving averages.
    return keras.Sequential([
        keras.Input((6, 6, 1)),
        keras.layers.Conv2D(8, 3, use_bias=False), keras.layers.BatchNormalization(momentum=0.5), keras.layers.ReLU(),
        keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(4),
    ])
"""

RECIPE = {
    "name": "tiny",
    "data": {"source": "resume_source:data", "calibration_samples": 64},
    "model": {"factory": "resume_source:net"},
    "stages": [
        {"stage": "train", "epochs": 3},
        {"stage": "prune_filters", "ratio": 0.25, "criterion": "taylor", "epochs": 2, "distill": {}},
        {"stage": "prune_weights", "sparsity": 0.5, "epochs": 2},
        {"stage": "quantize", "epochs": 1},
        {"stage": "export", "formats": ["tflite", "onnx"]},
    ],
}

PLACES: list[Callable[[Path], bool]] = [
    # in the first stage, while it trains; nothing is finished
    lambda run: (run / ".partial-01-train").exists(),
    # when a step is just finished and the next has begun
    lambda run: (run / "02-prune_filters").exists(),
    # when a step's model is saved, but its files and its entry are not
    lambda run: (run / ".partial-03-prune_weights" / "model.keras").exists(),
    # after the last step, before anything is delivered
    lambda run: (run / "05-export").exists(),
]


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "resume_source.py").write_text(SOURCE)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def run_until(recipe: Path, directory: Path, reached: Callable[[Path], bool]) -> int:
    """Run in a process of its own, and kill it when the run directory has reached a state."""
    code = "import sys, kpipe_cli; sys.argv = ['kpipe', *sys.argv[1:]]; kpipe_cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(recipe), "--output", str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while process.poll() is None and not reached(directory) and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def without_timings(metrics: dict) -> dict:
    metrics = copy.deepcopy(metrics)
    for entry in metrics["stages"]:
        del entry["seconds"]
        for file in entry["files"]:
            del file["latency"]
    for file in metrics["delivery"]:
        del file["latency"], file["faster"]
    del metrics["summary"]["faster"]
    return metrics


@pytest.mark.slow
def test_a_run_killed_in_four_places_ends_like_one_left_alone(recipe, tmp_path):
    killed = tmp_path / "killed"
    ends = [run_until(recipe, killed, place) for place in PLACES]
    assert ends == [-signal.SIGKILL] * 4
    assert not (killed / "metrics.json").exists()

    finished = {path: path.stat().st_mtime_ns for path in killed.glob("*/entry.json")}
    assert len(finished) == 5
    resumed = load_recipe(recipe).run(killed)
    assert {path: path.stat().st_mtime_ns for path in killed.glob("*/entry.json")} == finished
    assert not list(killed.glob(".partial-*"))

    whole = load_recipe(recipe).run(tmp_path / "whole")
    assert without_timings(resumed) == without_timings(whole)
    assert without_timings(json.loads((killed / "metrics.json").read_text())) == without_timings(whole)
    for file in whole["delivery"]:
        assert (killed / file["path"]).read_bytes() == (tmp_path / "whole" / file["path"]).read_bytes()
    # The control: the comparison sees one digit of one curve.
    other = copy.deepcopy(whole)
    other["stages"][0]["history"]["loss"][0] += 1e-9
    assert without_timings(other) != without_timings(whole)
