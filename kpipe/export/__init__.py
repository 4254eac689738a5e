"""Files for devices: written, proved in their runtime, timed, looked into."""

from kpipe.export import litert, onnx
from kpipe.export.benchmark import Latency, benchmark, inspect, load_runtime
from kpipe.export.file import Agreement, File, Inspection, Operation, Port
from kpipe.export.formats import FORMATS, Format
from kpipe.export.runtime import Runtime
from kpipe.export.verify import verify
from kpipe.export.write import export

__all__ = [
    "FORMATS",
    "Agreement",
    "File",
    "Format",
    "Inspection",
    "Latency",
    "Operation",
    "Port",
    "Runtime",
    "benchmark",
    "export",
    "inspect",
    "litert",
    "load_runtime",
    "onnx",
    "verify",
]
