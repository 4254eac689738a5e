"""Files compared with the first of them: sizes, latencies in turns, and outputs on the same inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.benchmark import Latency, load_runtime, random_sample
from kpipe.export.file import Port
from kpipe.export.runtime import Runtime
from kpipe.export.verify import relative_error, same_argmax

Ends = tuple[tuple[Port, ...], tuple[Port, ...]]
"""Inputs and outputs."""
SAMPLES = 32
"""Random samples on which outputs are compared."""


@dataclass(frozen=True)
class Comparison:
    """A file, or a file in an engine, compared with the first of its list.

    Args:
        path: The file.
        engine: What ran it.
        size_ratio: Its size over the first one's.
        speedup: How many times as fast as the first one it is: the median of the ratios of the times that the two took
            in the same round.
        speedup_low: The median is at least this, with a confidence of 95 % from either side together.
        speedup_high: The median is at most this.
        max_relative_error: Greatest difference of an output from the first file's, over the first one's greatest value;
            None where the outputs cannot be compared.
        argmax_agreement: Fraction of rows whose greatest entry is at the same place; None without outputs of at least
            two entries.
        why_not: Why the outputs were not compared; empty where they were.
        signature: Which of its signatures was run; None where none was asked for.
    """

    path: Path
    engine: str
    size_ratio: float
    speedup: float
    speedup_low: float
    speedup_high: float
    max_relative_error: float | None
    argmax_agreement: float | None
    why_not: str = ""
    signature: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data, the path as text."""
        return {**vars(self), "path": str(self.path)}


def compare_latencies(timed: Sequence[Latency], samples: int = SAMPLES) -> list[Comparison]:
    """Compare files with the first of them, itself included.

    Args:
        timed: What `benchmark` gave for a list: the files took turns, so that the times of one round belong together.
        samples: On how many random samples the outputs are compared.

    Returns:
        One comparison for each.

    Raises:
        ExportError: When the list is empty, or the files were not timed together.

    Example:
        >>> import keras, tempfile
        >>> from kpipe.export.benchmark import benchmark
        >>> from kpipe.export.write import export
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [export(model, Path(folder) / f"small.{suffix}") for suffix in ("tflite", "onnx")]
        ...     first, second = compare_latencies(benchmark(files, runs=5))
        >>> first.speedup, second.argmax_agreement, second.max_relative_error < 1e-5
        (1.0, 1.0, True)
    """
    if not timed or len({len(latency.times_ms) for latency in timed}) != 1:
        raise ExportError("Expected what kpipe.benchmark gives for a list of files, timed together.")
    first = timed[0]
    before, answers = _answers(first, samples)
    found = []
    for latency in timed:
        ratios = np.asarray(first.times_ms) / np.asarray(latency.times_ms)
        median, (low, high) = float(np.median(ratios)), median_bounds(ratios)
        why_not, error, argmax = _difference(latency, samples, before, answers)
        size = latency.path.stat().st_size / first.path.stat().st_size
        found.append(
            Comparison(latency.path, latency.engine, size, median, low, high, error, argmax, why_not, latency.signature)
        )
    return found


def median_bounds(values: np.ndarray) -> tuple[float, float]:
    """Give bounds between which a median lies with a confidence of 95 %, whatever the values' distribution.

    How many of n values lie below the median is binomial with p = 1/2: n/2 ± 1.96 √n/2. So the bounds are the values of
    these ranks; the least and the greatest where there are too few.

    Example:
        >>> median_bounds(np.arange(1.0, 101.0))
        (40.0, 61.0)
        >>> median_bounds(np.array([3.0, 1.0, 2.0]))
        (1.0, 3.0)

    References:
        W. J. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.
    """
    ordered, count = np.sort(values), len(values)
    rank = max(1, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return float(ordered[rank - 1]), float(ordered[count - rank])


def _answers(latency: Latency, samples: int) -> tuple[Ends, list[np.ndarray]]:
    """Run a file on random inputs; give its inputs and outputs too."""
    with load_runtime(latency.path, latency.threads, latency.engine, latency.signature) as runtime:
        return (runtime.inputs, runtime.outputs), runtime.run(random_sample(runtime, samples))


def _difference(
    latency: Latency, samples: int, before: Ends, answers: list[np.ndarray]
) -> tuple[str, float | None, float | None]:
    """Say why outputs cannot be compared, or give the relative error and the agreement of the argmax."""
    with load_runtime(latency.path, latency.threads, latency.engine, latency.signature) as runtime:
        why_not = _mismatch(before, runtime)
        if why_not:
            return why_not, None, None
        found = runtime.run(random_sample(runtime, samples))
    if [each.shape for each in found] != [each.shape for each in answers]:
        return "other shapes of outputs", None, None
    rows = [same_argmax(a, b) for a, b in zip(found, answers, strict=True) if b.ndim > 1 and b.shape[-1] > 1]
    agreement = float(np.concatenate(rows).mean()) if rows else None
    return "", max(relative_error(a, b) for a, b in zip(found, answers, strict=True)), agreement


def _mismatch(before: Ends, runtime: Runtime) -> str:
    """Say in what the inputs of two files, or the number of their outputs, differ."""
    inputs, outputs = before
    for what, expected, found in (("inputs", inputs, runtime.inputs), ("outputs", outputs, runtime.outputs)):
        if len(expected) != len(found):
            return f"{len(found)} {what}, the first has {len(expected)}"
    for one, other in zip(inputs, runtime.inputs, strict=True):
        if one.shape[1:] != other.shape[1:]:
            return f"input {other.name!r} of another shape"
        if _takes_floats(one) != _takes_floats(other):
            return f"input {other.name!r} of another type"
    return ""


def _takes_floats(port: Port) -> bool:
    return bool(port.scale) or port.dtype.startswith("float")
