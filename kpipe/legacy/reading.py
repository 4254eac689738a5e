"""Have old files read by tf_keras, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.legacy.source import OldFile

_PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("kpipe_keras2", {home!r} + "/__init__.py", submodule_search_locations=[{home!r}])
sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
sys.modules[spec.name].main({job!r})
"""
"""Loads the package by its place, so that no module of the user's can come before it."""
_NOISE = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True)
class Request:
    """A file to read.

    Attributes:
        file: What a look at it told.
        objects: Name in the file -> "module:qualified name", imported where Keras is tf_keras.
        samples: Inputs to compare on; None for random ones.
        safe_mode: Whether layers whose call is stored as code are refused.
    """

    file: OldFile
    objects: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[np.ndarray] | None = None
    safe_mode: bool = True


@dataclass(frozen=True)
class Reading:
    """What tf_keras said of a model.

    Attributes:
        path: The file it is of.
        graph: Its inputs, calls and outputs.
        layers: Key -> class, config and weights of a layer, or the graph of a nested model.
        notes: What the user is to know.
        arrays: Weights and constants by key.
        probe: Inputs, outputs, and the outputs of each call.
    """

    path: Path
    graph: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]
    arrays: Mapping[str, np.ndarray]
    probe: Mapping[str, np.ndarray]


def read_files(requests: Sequence[Request], workplace: Path) -> list[Reading | KpipeError]:
    """Read several files in one process of tf_keras.

    Args:
        requests: The files.
        workplace: A folder of one's own for what the two processes exchange; the readings need it no more.

    Returns:
        For each file its reading, or the error that says why there is none.
    """
    _check_installed(requests)
    folders = [workplace / str(number) for number in range(len(requests))]
    for folder in folders:
        folder.mkdir()
    job = workplace / "job.json"
    jobs = [_job(request, folder) for request, folder in zip(requests, folders, strict=True)]
    job.write_text(json.dumps(jobs), encoding="utf-8")
    program = _PROGRAM.format(home=str(Path(__file__).with_name("keras2")), job=str(job))
    places = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    process = subprocess.run(
        [sys.executable, "-P", "-c", program],  # -P: only what is on this process's own path is imported
        env={**os.environ, **_NOISE, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    return [_result(request.file.path, folder, last) for request, folder in zip(requests, folders, strict=True)]


def _check_installed(requests: Sequence[Request]) -> None:
    if find_spec("tf_keras") is None:
        raise KpipeError("Files of Keras 2 are read with tf_keras, which is not installed: pip install tf_keras")
    for request in requests:
        if request.file.is_wrapped and find_spec("tensorflow_model_optimization") is None:
            raise KpipeError(
                f"{request.file.path} holds wrappers of TFMOT, which is not installed: "
                "pip install tensorflow-model-optimization"
            )


def _job(request: Request, folder: Path) -> dict[str, Any]:
    samples = None
    if request.samples is not None:
        samples = str(folder / "samples.npz")
        named: dict[str, Any] = {f"sample_{number:04d}": array for number, array in enumerate(request.samples)}
        np.savez(samples, **named)
    return {
        "path": str(request.file.path.resolve()),
        "kind": request.file.kind,
        "folder": str(folder),
        "objects": dict(request.objects),
        "tfmot": request.file.is_wrapped,
        "samples": samples,
        "safe_mode": request.safe_mode,
    }


def _result(path: Path, folder: Path, last: str) -> Reading | KpipeError:
    failed = folder / "error.json"
    if failed.is_file():
        return KpipeError(f"{path} cannot be converted: {json.loads(failed.read_text(encoding='utf-8'))['error']}.")
    if not (folder / "probe.npz").is_file():
        return KpipeError(f"{path} cannot be read: the process that runs tf_keras ended early ({last}).")
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    with np.load(folder / "weights.npz") as weights, np.load(folder / "probe.npz") as probe:
        arrays, probed = dict(weights), dict(probe)
    return Reading(path, model["graph"], model["layers"], model["notes"], arrays, probed)
