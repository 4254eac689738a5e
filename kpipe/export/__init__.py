"""Files for devices: written, proved in their runtime, timed, looked into."""

from kpipe.export import litert, onnx
from kpipe.export.benchmark import Latency, benchmark, inspect, load_runtime
from kpipe.export.comparison import Comparison, compare_latencies
from kpipe.export.contents import Contents, dissect
from kpipe.export.engines import ENGINES, Engine
from kpipe.export.file import Agreement, File, Inspection, Operation, Port
from kpipe.export.formats import FORMATS, Format
from kpipe.export.join import join_signatures
from kpipe.export.metadata import read_metadata
from kpipe.export.profile import OperationTime
from kpipe.export.runtime import Runtime
from kpipe.export.trial import ColdStart
from kpipe.export.verify import verify
from kpipe.export.write import export

__all__ = [
    "ENGINES",
    "FORMATS",
    "Agreement",
    "ColdStart",
    "Comparison",
    "Contents",
    "Engine",
    "File",
    "Format",
    "Inspection",
    "Latency",
    "Operation",
    "OperationTime",
    "Port",
    "Runtime",
    "benchmark",
    "compare_latencies",
    "dissect",
    "export",
    "inspect",
    "join_signatures",
    "litert",
    "load_runtime",
    "onnx",
    "read_metadata",
    "verify",
]
