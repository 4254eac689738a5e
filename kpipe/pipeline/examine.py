"""Measure what a step left behind: the Keras model, and the files exported from it in the real runtimes."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.data import Dataset
from kpipe.export import benchmark, export, load_runtime
from kpipe.pipeline.ledger import plain
from kpipe.pipeline.task import accuracy, gives_probabilities, loss_for

BATCH = 256
RUNS = 100


def evaluate(model: keras.Model, data: Dataset, loss: str = "auto") -> dict[str, float | None]:
    """Give the accuracy and the loss of a Keras model on the test split.

    Args:
        model: A model with one output.
        data: The data set.
        loss: The loss, as `loss_for` takes it.

    Returns:
        {"accuracy", "loss"}; the accuracy is None where the labels are no classes to the loss.

    Raises:
        KpipeError: When the loss does not fit the model and the labels.
    """
    x, y = data.test
    outputs = model.predict(x, batch_size=BATCH, verbose=0)  # type: ignore[arg-type]
    value: Any = loss_for(model, y, loss)(y, outputs)
    return {"accuracy": accuracy(outputs, y, gives_probabilities(model), loss), "loss": float(value)}


def file_accuracy(path: Path, model: keras.Model, data: Dataset, loss: str = "auto") -> float | None:
    """Give the accuracy of an exported file on the test split, run in its own runtime.

    Args:
        path: The `.tflite` or `.onnx` file.
        model: The Keras model it was exported from, which tells how its output is to be read.
        data: The data set.
        loss: The loss that the model was trained with.

    Returns:
        The fraction in [0, 1]; None where the labels are no classes to the loss.
    """
    x, y = data.test
    with closing(load_runtime(path)) as runtime:
        outputs = np.concatenate([runtime.run([x[start : start + BATCH]])[0] for start in range(0, len(x), BATCH)])
    return accuracy(outputs, y, gives_probabilities(model), loss)


def export_file(
    model: keras.Model,
    path: Path,
    data: Dataset,
    precision: str | None = None,
    loss: str = "auto",
    metadata: Mapping[str, Any] | None = None,
    **written: Any,
) -> dict[str, Any]:
    """Export a model, verified on the calibration samples, and measure the file.

    Args:
        model: The float or quantized Keras model.
        path: The target; its suffix is the format.
        data: The data set.
        precision: None for the model's own: float32, or the scheme by which it is quantized.
        loss: The loss that the model was trained with.
        metadata: What the file is to say of itself, beside the accuracy that is measured on it here. None for a file
            that is not delivered.
        written: How it is written: other arguments of `kpipe.export`, such as `batch`.

    Returns:
        The file's entry: path (relative to its folder), format, precision, bytes, gzip_bytes, zstd_bytes,
            accuracy, agreement, batch, recurrent ("loop" or "unrolled", where layers are), beside (what was written
            beside it).
    """
    measured: list[float | None] = []

    def facts(written: Path) -> dict[str, Any]:
        measured.append(file_accuracy(written, model, data, loss))
        found = {"accuracy": measured[0], "data": data.name, "test_samples": len(data.test[0])}
        return {**found, **(metadata or {})}

    given = None if metadata is None else facts
    file = export(model, path, precision, data.calibration, metadata=given, **written)
    return {
        "path": path.name,
        "format": file.format,
        "precision": file.precision,
        "bytes": file.bytes,
        "gzip_bytes": file.gzip_bytes,
        "zstd_bytes": file.zstd_bytes,
        "accuracy": measured[0] if measured else file_accuracy(path, model, data, loss),
        "agreement": None if file.agreement is None else plain(file.agreement.to_dict()),
        "batch": file.metadata["batch"],
        "recurrent": file.metadata["recurrent"],
        "beside": [beside.name for beside in file.beside],
    }


def latencies(directory: Path, paths: Iterable[str], threads: int = 1, runs: int = RUNS) -> dict[str, Any]:
    """Time files against one another, interleaved in this process; files of the same bytes are timed once.

    Args:
        directory: The folder that the paths are relative to.
        paths: The files.
        threads: Threads of the runtime.
        runs: Runs a file.

    Returns:
        {"threads", "runs", "files": {path: {"median_ms", "p90_ms"}}}.
    """
    first: dict[str, str] = {}  # digest of the bytes -> the first path that holds them
    same = {path: first.setdefault(_digest(directory / path), path) for path in paths}
    timed = benchmark([directory / path for path in first.values()], threads=threads, runs=runs) if first else []
    found = {
        path: {"median_ms": latency.median_ms, "p90_ms": latency.p90_ms}
        for path, latency in zip(first.values(), timed, strict=True)
    }
    files = {path: found[original] for path, original in same.items()}
    return {"threads": threads, "runs": runs, "files": files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    """Give the versions that a measurement depends on, and the processor."""
    packages = ("keras", "tensorflow", "ai-edge-litert", "onnxruntime", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "cpu": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
