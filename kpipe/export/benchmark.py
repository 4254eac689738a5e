"""Latency of files, measured in their real runtimes."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.engines import ENGINES, choose, engines_of
from kpipe.export.file import File, Inspection, Port
from kpipe.export.formats import file_at, format_of
from kpipe.export.native import any_input
from kpipe.export.profile import OperationTime
from kpipe.export.runtime import Runtime
from kpipe.export.trial import ColdStart, assure, cold_start

SHORTEST_TIMING = 2e-4
"""Seconds that one timing must last, so that the clock's own steps do not show."""
PROBES = 3
"""Runs that say how long one takes, before the timings."""
COLD_STARTS = 3
"""Processes in which a cold start is measured."""


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
        engine: What ran the file: one of `kpipe.export.ENGINES`.
        signature: Which of the file's signatures was run; None where none was asked for.
        cold: The start of a process that has just been made, and its memory; None unless asked for.
        operations: The time of each operation; none unless asked for.
        times_ms: Every run, in the order of time, in milliseconds.
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
    engine: str = ""
    signature: str | None = None
    cold: ColdStart | None = None
    operations: tuple[OperationTime, ...] = ()
    times_ms: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data, the path as text, without the single runs."""
        plain = {**asdict(self), "path": str(self.path)}
        del plain["times_ms"]
        return plain

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        which = f" ({self.signature})" if self.signature else ""
        line = (
            f"{self.path}{which}: median {self.median_ms:.4g} ms, p90 {self.p90_ms:.4g} ms "
            f"({', '.join(filter(None, (self.engine, threads)))}, {self.runs} runs after {self.warmup})"
        )
        if self.cold is not None:
            memory = "" if self.cold.peak_bytes is None else f", at most {self.cold.peak_bytes / 1e6:.3g} MB"
            line += f"; cold: loaded in {self.cold.load_ms:.3g} ms, first answer {self.cold.first_ms:.3g} ms{memory}"
        return "\n".join([line, *(f"  {time.ms:9.4f} ms {time.share:6.1%}  {time.name}" for time in self.operations)])


def load_runtime(
    path: File | str | Path, threads: int = 1, engine: str | None = None, signature: str | None = None
) -> Runtime:
    """Load a file in a runtime of its format.

    A file that this process has not written itself is loaded and run in another process first: a broken one can end
    the process that loads it.

    Args:
        path: A .tflite or .onnx file.
        threads: How many threads the runtime may use, at least 1.
        engine: Which of `kpipe.export.ENGINES`; None: the format's default.
        signature: Which of its signatures, for a file of several.

    Returns:
        The runtime; use it in a `with` block or close it.

    Raises:
        ExportError: When the file is missing, of an unknown format, broken, or refused by the runtime; when the engine
            is unknown or does not run the format; when it has several signatures and none is named, or not this one.
    """
    path = file_at(path)
    if threads < 1:
        raise ExportError(f"threads is {threads}; expected at least 1.")
    engine = choose(format_of(path)[0], engine, path)
    assure(path, engine, threads=threads)
    runtime = ENGINES[engine].runtime(path, threads, signature)
    runtime.check_samples()
    return runtime


def inspect(path: File | str | Path) -> Inspection:
    """Read what a file is made of: its operations with their types, its precision, and its faults.

    Args:
        path: A .tflite or .onnx file.

    Returns:
        The inspection; printed, it is a table.

    Raises:
        ExportError: When the file is missing, of an unknown format, or broken.
    """
    path = readable(path)
    return format_of(path)[1].inspect(path)


def readable(path: File | str | Path) -> Path:
    """Give the path of a file that is there and can be read without harm, or raise an `ExportError`."""
    path = file_at(path)
    assure(path, engines_of(format_of(path)[0])[0], run=False)
    return path


def benchmark(
    file: File | str | Path | Sequence[File | str | Path],
    threads: int = 1,
    runs: int = 50,
    warmup: int = 10,
    *,
    engine: str | Sequence[str] | None = None,
    cold: bool = False,
    per_op: bool = False,
    signature: str | None = None,
) -> Any:
    """Measure how long one inference takes, on random inputs.

    Several files and engines take turns, run by run, so that they all see the same disturbances of the machine and
    their ratio can be trusted more than either figure.

    A cold start is measured in processes that have just been made and have imported the runtime: the time to load the
    file and that of the first inference, each the median of 3 processes; and the memory, of which only Linux tells: by
    how much it rises at most while the file is loaded and run, beyond what the runtime itself takes up.

    The times of operations come from onnxruntime's profiler. LiteRT has none for Python: there they are the differences
    between files that end behind each operation.

    Args:
        file: A file or its path, or a list of them.
        threads: How many threads a runtime may use.
        runs: How many timings to take of each file, at least 1.
        warmup: How many runs to make before, at least 0.
        engine: One of `kpipe.export.ENGINES`, or several: each file is run by those of them that run its format. None:
            the first of its format, which is LiteRT's interpreter with XNNPACK, or onnxruntime.
        cold: Whether to measure cold starts and memory too.
        per_op: Whether to time each operation too; not of a file of several signatures.
        signature: Which signature to run, for files of several. LiteRT's interpreter then counts the copying of what
            goes in and comes out too: some microseconds more than for a file of its own ("litert_compiled" does not).

    Returns:
        A `Latency`; for a list of files or engines a list of them, each file with each of its engines.

    Raises:
        ExportError: When a file cannot be loaded, an engine is unknown or runs none of the files, a number is too
            small, a signature is not settled, or the times of operations are not to be had.

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
    single = isinstance(file, (File, str, Path))
    pairs = pairings([file] if single else file, engine)
    found = _turns(pairs, threads, runs, warmup, signature)
    details = [_details(latency, cold, per_op) for latency in found]
    latencies = [replace(latency, **more) for latency, more in zip(found, details, strict=True)]
    return latencies[0] if single and (engine is None or isinstance(engine, str)) else latencies


def pairings(files: Sequence[File | str | Path], engine: str | Sequence[str] | None = None) -> list[tuple[Path, str]]:
    """Pair each file with the engines that are to run it, or raise an `ExportError` where none can."""
    if not files:
        raise ExportError("There is no file to measure: the list is empty.")
    paths = [file_at(file) for file in files]
    if engine is None or isinstance(engine, str):
        return [(path, choose(format_of(path)[0], engine, path)) for path in paths]
    for name in engine:
        if not any(name in engines_of(format_of(path)[0]) for path in paths):
            choose(format_of(paths[0])[0], name, paths[0])
    pairs = [(path, name) for path in paths for name in engine if name in engines_of(format_of(path)[0])]
    unserved = [str(path) for path in paths if path not in {path for path, _ in pairs}]
    if unserved:
        raise ExportError(f"None of the engines {', '.join(engine)} runs {', '.join(unserved)}.")
    return pairs


def _turns(
    pairs: Sequence[tuple[Path, str]], threads: int, runs: int, warmup: int, signature: str | None
) -> list[Latency]:
    """Let all files and engines take turns."""
    with contextlib.ExitStack() as stack:
        runtimes = [stack.enter_context(load_runtime(path, threads, engine, signature)) for path, engine in pairs]
        calls = [runtime.invocation(random_sample(runtime)) for runtime in runtimes]
        repeats = [_repeats(call, warmup) for call in calls]
        seconds = take_turns(calls, repeats, runs)
    facts = {"threads": threads, "runs": runs, "warmup": warmup, "signature": signature}
    return [
        _latency(path, row, engine=engine, repeats=repeat, **facts)
        for (path, engine), row, repeat in zip(pairs, seconds, repeats, strict=True)
    ]


def _details(found: Latency, cold: bool, per_op: bool) -> dict[str, Any]:
    """Measure what is asked for beside the latency."""
    path, engine, threads = found.path, found.engine, found.threads
    details: dict[str, Any] = {}
    if cold:
        starts = [cold_start(path, engine, threads, found.signature) for _ in range(COLD_STARTS)]
        load, first = (float(np.median(each)) for each in zip(*((s.load_ms, s.first_ms) for s in starts), strict=True))
        peaks = [start.peak_bytes for start in starts if start.peak_bytes is not None]
        peak = int(np.median(peaks)) if peaks else None
        details["cold"] = ColdStart(round(load, 6), round(first, 6), peak)
    if per_op:
        details["operations"] = ENGINES[engine].profile(path, threads, found.runs)
    return details


def random_sample(runtime: Runtime, count: int = 1) -> list[np.ndarray]:
    """Draw samples for each input of a file: standard-normal, or zeros and ones where it takes indices."""
    return [_drawn(port, count) for port in runtime.inputs]


def _drawn(port: Port, count: int) -> np.ndarray:
    shape = (count, *(size or 1 for size in port.shape[1:]))
    return any_input(shape, "float32" if port.scale or port.dtype.startswith("float") else port.dtype)


def _repeats(call: Callable[[], object], warmup: int) -> int:
    """Warm up, and say how many inferences one timing needs to last long enough."""
    for _ in range(warmup):
        call()
    fastest = float(take_turns([call], [1], PROBES).min())  # one alone may be held up
    return max(1, math.ceil(SHORTEST_TIMING / max(fastest, 1e-9)))


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


def _latency(path: Path, seconds: np.ndarray, **facts: Any) -> Latency:
    ms = seconds * 1e3
    figures = [np.median(ms), np.percentile(ms, 90), ms.mean(), ms.min(), ms.max()]
    median, p90, mean, least, most = (round(float(figure), 6) for figure in figures)
    return Latency(path, median, p90, mean, least, most, times_ms=tuple(ms.tolist()), **facts)
