"""Processes that run once in a run of the suite, however many workers share it."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
"""TensorFlow has no kernels for channels first on a CPU but these, and leaves them out on processors without VNNI."""
ROOT = Path(__file__).parents[1]
QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
PATIENCE = 600
"""Seconds for which a worker waits for another's work."""


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: else it takes a fifth of the time of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave so many cases of each test marked as a sweep to the fast suite, evenly spread; the others are slow."""
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sweep") is not None and item.get_closest_marker("slow") is None:
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in sweeps.values():
        (quick,) = cases[0].get_closest_marker("sweep").args
        kept = {round(place) for place in np.linspace(0, len(cases) - 1, quick)}
        for place, case in enumerate(cases):
            if place not in kept:
                case.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _traced_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras make the optimizer's and the metrics' variables before the first train step of a built model.

    Made inside it, as Keras does, the step is traced twice, a third of the time of a short fit. Slow tests and those
    marked as `plain_fit` fit as Keras does by itself.
    """
    as_keras = any(request.node.get_closest_marker(name) is not None for name in ("slow", "plain_fit"))
    if not as_keras and "keras" in sys.modules:
        from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

        monkeypatch.setattr(TensorFlowTrainer, "_maybe_symbolic_build", _build_around)


def _build_around(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    if model.optimizer is not None and all(layer.built for layer in model._flatten_layers()):
        with model.distribute_strategy.scope():
            model._symbolic_build(iterator=iterator, data_batch=data_batch)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Give `once(name, work)`: a folder of that name on which one worker does the work, and the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    return partial(_done_once, base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


def _done_once(home: Path, name: str, work: Callable[[Path], None]) -> Path:
    place = home / name
    try:
        place.mkdir()
    except FileExistsError:
        return _awaited(place)
    try:
        work(place)
    except BaseException:
        (place / "failed").touch()
        raise
    (place / "done").touch()
    return place


def _awaited(place: Path) -> Path:
    end = time.monotonic() + PATIENCE
    while not (place / "done").exists():
        assert not (place / "failed").exists(), f"{place.name}: see the worker that did it"
        assert time.monotonic() < end, f"{place.name} is not done after {PATIENCE} s"
        time.sleep(0.2)
    return place


@pytest.fixture(scope="session")
def written(once) -> Callable[..., Path]:
    """Give `written(script, ...)`: the folder into which a script of `tests` has written, in a process of its own.

    The script is called with the folder and what else is given.
    """

    def run(script: str, arguments: tuple[str, ...], folder: Path) -> None:
        command = [sys.executable, str(ROOT / "tests" / script), str(folder), *arguments]
        done = subprocess.run(
            command, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return lambda script, *arguments: once(" ".join((Path(script).stem, *arguments)), partial(run, script, arguments))


@pytest.fixture(scope="session")
def oracle(written) -> dict[str, np.ndarray]:
    """Give what TFMOT says on tf_keras: see `tests/legacy/tfmot_oracle.py`."""
    with np.load(written("legacy/tfmot_oracle.py") / "answers.npz") as found:
        return dict(found)
