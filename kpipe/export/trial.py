"""Files tried in another process before they are loaded in this one: a broken file can end whatever loads it."""

import atexit
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError

SECONDS_VARIABLE = "KPIPE_TRIAL_SECONDS"
"""Environment variable: how long a file may take to be loaded and run once."""
SECONDS = 60.0
GRACE = 10.0
"""Seconds for which the process may be late with its answer: it imports the runtime first."""
PROGRAM = Path(__file__).with_name("native.py")


@dataclass
class Helper:
    """The process that tries files: started when it is needed first, and anew after it died."""

    process: subprocess.Popen[str] | None = None
    owner: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to a request; {"died": ...} or {"late": True} where there is none."""
        with self.lock:
            process = self._started()
            late = threading.Event()
            timer = threading.Timer(request["seconds"] + GRACE, lambda: (late.set(), process.kill()))
            timer.daemon = True
            timer.start()
            try:
                line = self._exchange(process, json.dumps(request))
            finally:
                timer.cancel()
            if line:
                return json.loads(line)
            self.stop()
            return {"late": True} if late.is_set() else {"died": process.returncode}

    def _exchange(self, process: subprocess.Popen[str], request: str) -> str:
        if process.stdin is None or process.stdout is None:
            return ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        return ""

    def _started(self) -> subprocess.Popen[str]:
        if self.process is not None and (self.process.poll() is not None or self.owner != os.getpid()):
            self.stop()
        if self.process is None:
            quiet = {"OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],  # -P: its folder holds an onnx package
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **quiet},
            )
            self.owner = os.getpid()
        return self.process

    def stop(self) -> None:
        """End the process; it ends by itself when its input is closed."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return
        process.kill()
        process.wait()


HELPER = Helper()
atexit.register(HELPER.stop)

_FAULTS: dict[tuple[str, str, bool], str | None] = {}
"""(content's hash, engine, whether it was run) -> what is wrong; None where nothing is."""
_TRUSTED: set[str] = set()
"""Hashes of contents that this process has written itself."""


def trust(content: bytes) -> None:
    """Take a content for good that this process has just written itself: it is not tried elsewhere first."""
    _TRUSTED.add(hashlib.sha256(content).hexdigest())


def assure(path: Path, engine: str, run: bool = True, threads: int = 1) -> None:
    """Raise an `ExportError` unless a file can be read, or loaded and run, in another process.

    Each content is tried once. It may take as many seconds as the environment variable KPIPE_TRIAL_SECONDS says, 60
    without it, and on Linux half of the machine's memory.

    Args:
        path: The file.
        engine: Which runtime: one of `kpipe.export.ENGINES`.
        run: Whether it is to be run; else it is only read.
        threads: How many threads the runtime may use.
    """
    digest = _digest(path)
    if digest in _TRUSTED:
        return
    key = (digest, engine, run)
    if key not in _FAULTS:
        _FAULTS[key] = _fault(_ask(path, engine, run, threads), engine, run)
    if _FAULTS[key] is not None:
        raise ExportError(f"{path} {_FAULTS[key]}")


@dataclass(frozen=True)
class ColdStart:
    """What a file costs a process that has just started and has imported the runtime.

    Args:
        load_ms: Milliseconds to load the file.
        first_ms: Milliseconds of the first inference.
        peak_bytes: Bytes by which the memory in use rises at most; None where the system does not tell.
    """

    load_ms: float
    first_ms: float
    peak_bytes: int | None


def cold_start(path: Path, engine: str, threads: int = 1, signature: str | None = None) -> ColdStart:
    """Load and run a file in a new process, and measure its start and memory; a file that fails there is refused."""
    answer = _ask(path, engine, run=True, threads=threads, memory=True, signature=signature)
    fault = _fault(answer, engine)
    if fault is not None:
        raise ExportError(f"{path} {fault}")
    return ColdStart(answer["load_ms"], answer["first_ms"], answer["peak_bytes"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ask(path: Path, engine: str, run: bool, threads: int, **more: Any) -> dict[str, Any]:
    request = {"path": str(path.absolute()), "engine": engine, "run": run, "threads": threads, "seconds": _seconds()}
    return HELPER.ask({"memory": False, "signature": None, **request, **more})


def _seconds() -> float:
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        return max(1.0, float(text)) if text else SECONDS
    except ValueError:
        raise ExportError(f"{SECONDS_VARIABLE} is {text!r}; expected a number of seconds.") from None


def _fault(answer: dict[str, Any], engine: str, run: bool = True) -> str | None:
    """Say what an answer means for a file; None when nothing is wrong.

    Example:
        >>> _fault({"died": -11}, "litert")
        'is broken: litert died of it (SIGSEGV) in a process of its own. Export the model again.'
    """
    if "error" in answer:
        return f"cannot be {'loaded and run by' if run else 'read for'} {engine}: {answer['error']}"
    code = answer.get("died", 0)
    if "late" in answer or (code < 0 and -code == getattr(signal, "SIGALRM", None)):
        return f"took {engine} longer than {_seconds():g} s. Set {SECONDS_VARIABLE} to allow more."
    if "died" in answer:
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return f"is broken: {engine} died of it ({how}) in a process of its own. Export the model again."
    return None
