"""What a model costs on a device, as targets of a plan: bytes of its int8 file, milliseconds in LiteRT."""

from kpipe.costs.file_size import int8_bytes
from kpipe.costs.latency import litert_ms

__all__ = ["int8_bytes", "litert_ms"]
