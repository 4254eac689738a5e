"""Latency of files, measured in their real runtimes."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.file import File, Inspection
from kpipe.export.formats import format_of
from kpipe.export.runtime import Runtime

SHORTEST_TIMING = 2e-4
"""Seconds that one timing must last, so that the clock's own steps do not show."""


@dataclass(frozen=True)
class Latency:
    """How long one inference on one sample takes, in milliseconds.

    Args:
        path: The file.
        median_ms: Half of the runs took less.
        p90_ms: Nine tenths of the runs took less.
        mean_ms: Mean of the runs.
        min_ms: The fastest run.
        max_ms: The slowest run.
        threads: How many threads the runtime could use.
        runs: How many timings were taken.
        warmup: How many runs went before them, not counted.
        repeats: Inferences in one timing, whose mean counts as one run; more than 1 for very fast files.
    """

    path: Path
    median_ms: float
    p90_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    threads: int
    runs: int
    warmup: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data, the path as text."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        return (
            f"{self.path}: median {self.median_ms:.4g} ms, p90 {self.p90_ms:.4g} ms "
            f"({self.threads} thread{'s' if self.threads > 1 else ''}, {self.runs} runs after {self.warmup})"
        )


def load_runtime(path: File | str | Path, threads: int = 1) -> Runtime:
    """Load a file in the runtime of its format.

    Args:
        path: A .tflite or .onnx file.
        threads: How many threads the runtime may use, at least 1.

    Returns:
        The runtime; use it in a `with` block or close it.

    Raises:
        ExportError: When the file is missing, of an unknown format, broken, or refused by the runtime.
    """
    path = _checked(path)
    if threads < 1:
        raise ExportError(f"threads is {threads}; expected at least 1.")
    return format_of(path)[1].runtime(path, threads)


def inspect(path: File | str | Path) -> Inspection:
    """Read what a file is made of: its operations with their types, its precision, and its faults.

    Args:
        path: A .tflite or .onnx file.

    Returns:
        The inspection; printed, it is a table.

    Raises:
        ExportError: When the file is missing, of an unknown format, or broken.
    """
    path = _checked(path)
    return format_of(path)[1].inspect(path)


def _checked(path: File | str | Path) -> Path:
    path = Path(path.path if isinstance(path, File) else path)
    format_of(path)
    if not path.is_file():
        raise ExportError(f"There is no file {path}.")
    return path


def benchmark(
    file: File | str | Path | Sequence[File | str | Path], threads: int = 1, runs: int = 50, warmup: int = 10
) -> Any:
    """Measure how long one inference takes, on random inputs.

    Several files take turns, run by run, so that they all see the same disturbances of the machine and their ratio
    can be trusted more than either figure.

    Args:
        file: A file or its path, or a list of them.
        threads: How many threads a runtime may use.
        runs: How many timings to take of each file, at least 1.
        warmup: How many runs to make before, at least 0.

    Returns:
        A `Latency`, or a list of them for a list of files.

    Raises:
        ExportError: When a file cannot be loaded, or a number is too small.

    Example:
        >>> import keras, tempfile
        >>> from kpipe.export.write import export
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latency = benchmark(export(model, Path(folder) / "small.onnx"), runs=5, warmup=1)
        >>> latency.runs, 0 < latency.min_ms <= latency.median_ms <= latency.max_ms
        (5, True)
    """
    if runs < 1 or warmup < 0:
        raise ExportError(f"Received runs={runs}, warmup={warmup}; expected runs of at least 1, warmup of at least 0.")
    if isinstance(file, (File, str, Path)):
        return benchmark([file], threads, runs, warmup)[0]
    if not file:
        raise ExportError("There is no file to measure: the list is empty.")
    with contextlib.ExitStack() as stack:
        runtimes = [stack.enter_context(load_runtime(each, threads)) for each in file]
        calls = [runtime.invocation(random_sample(runtime)) for runtime in runtimes]
        repeats = [_repeats(call, warmup) for call in calls]
        seconds = take_turns(calls, repeats, runs)
    return [
        _latency(runtime, row, threads=threads, runs=runs, warmup=warmup, repeats=repeat)
        for runtime, row, repeat in zip(runtimes, seconds, repeats, strict=True)
    ]


def random_sample(runtime: Runtime) -> list[np.ndarray]:
    """Draw one standard-normal sample for each input of a file."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, *(size or 1 for size in port.shape[1:]))).astype("float32") for port in runtime.inputs]


def _repeats(call: Callable[[], object], warmup: int) -> int:
    """Warm up, and say how many inferences one timing needs to last long enough."""
    for _ in range(warmup):
        call()
    start = time.perf_counter()
    call()
    return max(1, math.ceil(SHORTEST_TIMING / max(time.perf_counter() - start, 1e-9)))


def take_turns(calls: Sequence[Callable[[], object]], repeats: Sequence[int], runs: int) -> np.ndarray:
    """Time all calls in turn, `runs` times; give seconds for one call, shape (calls, runs).

    Example:
        >>> order = []
        >>> take_turns([lambda: order.append("a"), lambda: order.append("b")], [2, 1], runs=2).shape, "".join(order)
        ((2, 2), 'aabaab')
    """
    seconds = np.empty((len(calls), runs))
    for run in range(runs):
        for n, (call, repeat) in enumerate(zip(calls, repeats, strict=True)):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[n, run] = (time.perf_counter() - start) / repeat
    return seconds


def _latency(runtime: Runtime, seconds: np.ndarray, **facts: Any) -> Latency:
    ms = seconds * 1e3
    figures = [np.median(ms), np.percentile(ms, 90), ms.mean(), ms.min(), ms.max()]
    median, p90, mean, least, most = (round(float(figure), 6) for figure in figures)
    return Latency(runtime.path, median, p90, mean, least, most, **facts)
