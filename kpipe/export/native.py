"""The runtimes' own ways to open a file; and, run as a program, the process in which a file is tried first.

The program imports neither kpipe nor Keras, to start within half a second: of the package, only what stands here may be
used here. It reads requests from its standard input and answers on its standard output, a line of JSON each. On Linux
each has a process of its own: what one file does to the memory, another does not meet. Elsewhere the program itself
ends with a bad file, and is started anew.
"""

import ctypes
import gc
import json
import math
import os
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MEMORY_RUNS = 3
"""Inferences in which the greatest use of memory is looked for."""
EXACT_ON_OLD_PROCESSORS = "session.x64quantprecision"
"""onnxruntime's setting by which sums of int8 products do not overflow 16 bits on x86 processors that have AVX2 or
AVX512 but no VNNI; elsewhere it changes nothing."""
LITERT_IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of a .tflite file."""
SHARED_WEIGHTS = "Attempt to replace the existing tensor"
"""What onnxruntime says where that setting meets int8 weights that several operations share, as in files from
elsewhere. Those are run without it."""


def litert(path: Path, threads: int = 1, delegates: bool = True) -> Any:
    """Open a .tflite file in an interpreter, with XNNPACK or with the built-in kernels alone."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    return interpreter


def litert_compiled(path: Path, threads: int = 1) -> Any:
    """Open a .tflite file as a compiled model on the CPU."""
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

    cpu = CpuOptions(num_threads=threads)
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    return CompiledModel.from_file(str(path), options=options)


def onnx_session(path: Path, threads: int = 1, profile: Path | None = None) -> Any:
    """Open an .onnx file in a session on the CPU; it writes a profile under that name when it is asked to."""
    import onnxruntime

    def opened(exact: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        if exact:
            options.add_session_config_entry(EXACT_ON_OLD_PROCESSORS, "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    try:
        return opened(exact=True)
    except Exception as error:  # onnxruntime's own exceptions have no common parent
        if SHARED_WEIGHTS not in str(error):
            raise
        return opened(exact=False)


def read_litert(path: Path) -> Any:
    """Read a .tflite file into objects; whatever points outside the file is an error."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if (fault := litert_fault(content)) is not None:
        raise ValueError(f"it {fault}")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except struct.error as error:
        raise ValueError(f"it is cut off, or damaged ({error})") from error


def litert_fault(content: bytes) -> str | None:
    """Say why a content is not that of a .tflite file; None where it begins as one.

    Example:
        >>> litert_fault(b""), litert_fault(b"TFL3"), litert_fault(b"1234TFL3")
        ('is empty', "is no LiteRT file: it begins with b'TFL3'", None)
    """
    if not content:
        return "is empty"
    return None if content[4:8] == LITERT_IDENTIFIER else f"is no LiteRT file: it begins with {content[:8]!r}"


def load_onnx(path: Path) -> Any:
    """Read an .onnx file and check it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(path))
    except DecodeError as error:
        raise ValueError(f"it is cut off, damaged, or no ONNX file ({error})") from error
    if not proto.ByteSize():
        raise ValueError("it is empty")
    onnx.checker.check_model(proto)
    return proto


def read_onnx(path: Path) -> Any:
    """Read an .onnx file, check it, and infer the types and shapes that it does not say."""
    import onnx

    return onnx.shape_inference.infer_shapes(load_onnx(path))


def any_input(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    """Draw one input: standard-normal, all of the grid for 8 bits, else zeros and ones, which serve as indices.

    Example:
        >>> any_input((2, 3), "float32").shape, set(any_input(100, "int64").tolist())
        ((2, 3), {0, 1})
    """
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    ends = np.iinfo(dtype) if dtype.kind in "iu" and dtype.itemsize == 1 else None
    low, high = (ends.min, ends.max) if ends else (0, 1)
    return rng.integers(low, high + 1, shape).astype(dtype)


def interpreter_call(interpreter: Any, signature: str | None = None) -> Callable[[], object]:
    """Set any inputs; give what runs an interpreter on them; of a file of several signatures one, or all of them."""
    names = list(interpreter.get_signature_list())
    if len(names) > 1:
        runners = [interpreter.get_signature_runner(name) for name in names if signature in (None, name)]
        calls = [partial(runner, **_feed(runner.get_input_details())) for runner in runners]
        return lambda: [call() for call in calls]
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], any_input(detail["shape"], detail["dtype"]))
    return interpreter.invoke


def _feed(details: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: any_input(detail["shape"], detail["dtype"]) for name, detail in details.items()}


def compiled_call(model: Any, signature: str | None = None) -> Callable[[], object]:
    """Set any inputs; give what runs a compiled model on them; of a file of several signatures one, or all of them."""
    calls = []
    for key in [name for name in model.get_signature_list() if signature in (None, name)]:
        inputs = _feed(model.get_input_tensor_details(key))
        buffers = {name: model.create_input_buffer_by_name(key, name) for name in inputs}
        for name, array in inputs.items():
            buffers[name].write(array)
        results = {name: model.create_output_buffer_by_name(key, name) for name in model.get_output_tensor_details(key)}
        calls.append(partial(model.run_by_name, key, buffers, results))
    return lambda: [call() for call in calls]


def session_call(session: Any, signature: str | None = None) -> Callable[[], object]:
    """Draw any inputs, 1 for each open size; give what runs a session on them. Its files have no signatures."""
    feed = {}
    for end in session.get_inputs():
        kind = str(end.type)[len("tensor(") : -1]
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        feed[end.name] = any_input([size if isinstance(size, int) else 1 for size in end.shape], dtype)
    return lambda: session.run(None, feed)


OPENERS: dict[str, tuple[Callable[..., Any], Callable[..., Callable[[], object]], Callable[[Path], Any]]] = {
    "litert": (litert, interpreter_call, read_litert),
    "litert_builtin": (partial(litert, delegates=False), interpreter_call, read_litert),
    "litert_compiled": (litert_compiled, compiled_call, read_litert),
    "onnxruntime": (onnx_session, session_call, read_onnx),
}
"""Engine -> how a file is opened, how it is called, and how its content is read."""


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Read a file, or open and run it, as a request says; give the figures, or the error.

    Args:
        request: "path"; "engine"; "run", whether the file is run and not only read; "threads"; "signature", which of
            several is run, None for all; "memory", whether its greatest use of memory is measured too.
    """
    path = Path(request["path"])
    opener, caller, reader = OPENERS[request["engine"]]
    try:
        if not request["memory"]:  # its structure first: runtimes may trust in it
            reader(path)
        if not request["run"]:
            return {}
        start = time.perf_counter()
        opened = opener(path, request["threads"])
        loaded = time.perf_counter()
        call = caller(opened, request["signature"])
        ready = time.perf_counter()
        call()
        answer: dict[str, Any] = {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (time.perf_counter() - ready)}
        del opened, call
        if request["memory"]:
            answer["peak_bytes"] = peak_bytes(lambda: caller(opener(path, request["threads"]), request["signature"]))
        return answer
    except Exception as error:  # each runtime raises its own kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"}


def peak_bytes(load: Callable[[], Callable[[], object]]) -> int | None:
    """Measure by how much the memory in use rises at most while a file is loaded and run; None where that is unknown.

    The file was loaded once before, so that pages of the runtime's own code do not count; what that left behind is
    given back to the system. Only Linux tells the greatest use since a given moment.
    """
    if sys.platform != "linux":
        return None
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError):
        return None
    before, call = _status("VmRSS"), load()
    for _ in range(MEMORY_RUNS):
        call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """Give a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def apart(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks in a process of its own, limited in time and memory; give its answer, or how it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _limit(request)
            os.write(writing, json.dumps(perform(request)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"died": os.waitstatus_to_exitcode(status)}


def _limit(request: dict[str, Any]) -> None:
    import resource
    import signal

    signal.alarm(math.ceil(request["seconds"]))  # its default action ends loops of native code too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = _status("VmSize") + memory // 2
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve() -> None:
    """Answer requests until there are no more; what runtimes print goes nowhere."""
    nowhere, answers = os.open(os.devnull, os.O_WRONLY), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for line in sys.stdin:
        request = json.loads(line)
        _import(request["engine"], request["run"])
        answer = apart(request) if sys.platform == "linux" else perform(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import(engine: str, run: bool) -> None:
    """Import what a request needs, before its process is made and its time is taken."""
    import importlib

    if engine == "onnxruntime":
        names = ("onnx", "onnx.shape_inference", "onnxruntime")[: 3 if run else 2]
    else:
        compiled = ("ai_edge_litert.compiled_model",) if engine == "litert_compiled" else ()
        names = ("ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", *compiled)
    for name in names:
        importlib.import_module(name)


if __name__ == "__main__":
    serve()
