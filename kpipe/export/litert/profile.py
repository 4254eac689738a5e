"""The time of each operation of a LiteRT file, from files that end behind each of them."""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.litert.flatbuffer import write
from kpipe.export.litert.text import first_lines, operator_names, signature_graphs, text
from kpipe.export.profile import OperationTime, with_shares
from kpipe.export.quiet import quiet_native

BUDGET = 30.0
"""Seconds that the runs of one file may take in all; there are fewer of them where they take longer."""
FEWEST_RUNS = 5


def by_prefixes(engine: str, path: Path, threads: int, runs: int) -> tuple[OperationTime, ...]:
    """Time a file's operations by how much longer the file takes up to each of them than up to the one before.

    LiteRT's Python package has no profiler, and XNNPACK hides what it computes behind one operation. So a file is made
    that ends behind each operation, and gives all that the rest would need; it and the one before take turns, and the
    difference of their fastest runs is the operation's time. The first one's contains the cost of a call. What takes
    less than about a thousandth of what stands before it drowns in noise.

    Args:
        engine: Which of LiteRT's engines.
        path: The file.
        threads: How many threads the runtime may use.
        runs: How often each of the files is run; less often where all would take longer than 30 s.

    Returns:
        The operations of the main graph, in the order in which they run. A loop or branch counts as one.

    Raises:
        ExportError: When the runtime refuses one of the files, or the file has several signatures.
    """
    if len(names := list(signature_graphs(path.read_bytes()))) > 1:
        raise ExportError(
            f"The time of each operation is not to be had: {path} has several signatures ({', '.join(names)}). Ask for "
            "it of the files that it was joined from."
        )
    with quiet_native(), tempfile.TemporaryDirectory(prefix="kpipe-profile-") as folder:
        return with_shares(_times(engine, path, Path(folder), threads, runs))


def _times(engine: str, path: Path, folder: Path, threads: int, runs: int) -> list[tuple[str, str, float]]:
    """Give (name, scope, milliseconds) of each operation."""
    times, spent = [], 0.0
    before: Callable[[], object] | None = None
    steps = list(prefixes(native.read_litert(path)))
    for n, (name, scope, make) in enumerate(steps):
        place = folder / f"{n}.tflite"
        place.write_bytes(make())
        call = _opened(engine, place, threads, f"{path} up to {name} ({scope})")
        started = time.perf_counter()
        left = max(0.0, (BUDGET - spent) / (len(steps) - n))
        times.append((name, scope, 1e3 * _difference(call, before, runs, left)))
        spent += time.perf_counter() - started
        before = call
        with suppress(OSError):  # where the runtime still reads it
            place.unlink()
    return times


def _opened(engine: str, path: Path, threads: int, what: str) -> Callable[[], object]:
    opener, caller, _ = native.OPENERS[engine]
    try:
        return caller(opener(path, threads))
    except Exception as error:  # each runtime raises its own kinds
        raise ExportError(f"The time of each operation is not to be had: {what}: {first_lines(error)}") from error


def _difference(call: Callable[[], object], before: Callable[[], object] | None, runs: int, seconds: float) -> float:
    """Let two calls take turns and give the difference of their fastest runs, in seconds."""
    fastest = [math.inf, math.inf if before else 0.0]
    end = time.perf_counter() + seconds
    for run in range(runs):
        if run >= FEWEST_RUNS and time.perf_counter() > end:
            break
        for n, each in enumerate((call, before)):
            if each is not None:
                start = time.perf_counter()
                each()
                fastest[n] = min(fastest[n], time.perf_counter() - start)
    return fastest[0] - fastest[1]


def prefixes(model: Any) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Give for each operation its name, the name of what it gives, and what makes the file that ends behind it.

    An operation that gives nothing has no such file: its time goes to the next one.

    Args:
        model: The file, read into objects.
    """
    graph, names = model.subgraphs[0], operator_names(model)
    for end, operator in enumerate(graph.operators, start=1):
        needed = {int(place) for later in graph.operators[end:] for place in later.inputs}
        needed |= {int(place) for place in graph.outputs}
        ends = [int(place) for each in graph.operators[:end] for place in each.outputs if int(place) in needed]
        if ends and len(operator.outputs):
            scope = text(graph.tensors[int(operator.outputs[0])].name)
            yield names[operator.opcodeIndex], scope, lambda end=end, ends=ends: _ending(model, end, ends)


def _ending(model: Any, end: int, outputs: list[int]) -> bytes:
    """Write the file of the first operations; constants that only later ones need are left out."""
    from ai_edge_litert import schema_py_generated as schema

    short = copy.copy(model)
    graph = copy.copy(model.subgraphs[0])
    graph.operators, graph.outputs = graph.operators[:end], np.asarray(outputs, np.int32)
    short.subgraphs = [graph, *model.subgraphs[1:]]
    used = {graph.tensors[int(i)].buffer for each in graph.operators for i in each.inputs if int(i) >= 0}
    used |= {tensor.buffer for other in short.subgraphs[1:] for tensor in other.tensors}
    short.buffers = [buffer if n in used else schema.BufferT() for n, buffer in enumerate(model.buffers)]
    short.signatureDefs = [copy.copy(signature) for signature in (model.signatureDefs or [])[:1]]
    for signature in short.signatureDefs:
        signature.outputs = []
        for place in outputs:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = f"tensor_{place}", place
            signature.outputs.append(entry)
    short.metadata, short.metadataBuffer = [], None
    return write(short)
