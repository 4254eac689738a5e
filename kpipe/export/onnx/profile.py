"""The time of each operation of an ONNX file, from onnxruntime's own profiler."""

import json
import statistics
import tempfile
from pathlib import Path

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.onnx.load import first_line
from kpipe.export.profile import OperationTime, with_shares

SUFFIX = "_kernel_time"
WARMUP = 5


def by_profiler(path: Path, threads: int, runs: int) -> tuple[OperationTime, ...]:
    """Run a file under onnxruntime's profiler and give the median time of each node.

    The nodes are those that onnxruntime has made of the file's: fused ones stand as one. The profiler tells whole
    microseconds, and takes some time itself: the sum is greater than an inference without it.

    Args:
        path: The file.
        threads: How many threads the runtime may use.
        runs: Inferences under the profiler.

    Returns:
        The nodes, in the order in which they run.

    Raises:
        ExportError: When the runtime refuses the file, or gives no profile.
    """
    with tempfile.TemporaryDirectory(prefix="kpipe-profile-") as folder:
        try:
            session = native.onnx_session(path, threads, profile=Path(folder) / "profile")
            call = native.session_call(session)
            for _ in range(WARMUP + runs):
                call()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # onnxruntime's own exceptions have no common parent
            raise ExportError(f"onnxruntime cannot profile {path}: {first_line(error)}") from error
    return with_shares(node_times(events, skip=WARMUP))


def node_times(events: list[dict], skip: int = 0) -> list[tuple[str, str, float]]:
    """Take from a profile what each node is, its name, and its median time in milliseconds.

    Args:
        events: The profile's events, in the order of time.
        skip: How many of the first runs do not count.

    Example:
        >>> event = {"cat": "Node", "name": "conv1_kernel_time", "args": {"op_name": "Conv"}}
        >>> node_times([{**event, "dur": dur} for dur in (900, 20, 30, 25)], skip=1)
        [('Conv', 'conv1', 0.025)]
    """
    found: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            key = (event["args"]["op_name"], event["name"].removesuffix(SUFFIX))
            found.setdefault(key, []).append(event["dur"])
    return [(*key, statistics.median(durations[skip:]) / 1e3) for key, durations in found.items() if durations[skip:]]
