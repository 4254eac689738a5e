"""ONNX files run by onnxruntime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.engines import ENGINES, Engine
from kpipe.export.file import Port
from kpipe.export.onnx.int8 import scale_behind
from kpipe.export.onnx.load import first_line, load, refuse_signature
from kpipe.export.onnx.profile import by_profiler
from kpipe.export.runtime import Runtime, batches_of, filled


class OnnxRuntime(Runtime):
    """An .onnx file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int = 1, signature: str | None = None):
        super().__init__(path, threads)
        refuse_signature(path, signature)
        proto = load(path)
        try:
            self.session: Any = native.onnx_session(path, threads)
        except Exception as error:  # onnxruntime's own exceptions have no common parent
            raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
        self.inputs = tuple(_port(end) for end in self.session.get_inputs())
        self.outputs = tuple(_port(end, *scale_behind(proto.graph, end.name)) for end in self.session.get_outputs())

    def _feed(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        return {
            port.name: np.ascontiguousarray(array, port.dtype) for port, array in zip(self.inputs, inputs, strict=True)
        }

    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Take one batch of the file's own size, one sample where it is open, and give a function that runs it."""
        feed = self._feed([filled(array, self.inputs[0].shape[0] or 1) for array in inputs])
        return lambda: self.session.run(None, feed)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run batch by batch of the file's own size; where it is open, all samples at once."""
        rows: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for batch, count in batches_of(inputs, self.inputs[0].shape[0] or len(inputs[0])):
            for row, output in zip(rows, self._outputs(self._feed(batch)), strict=True):
                row.append(np.asarray(output)[:count])
        return [np.concatenate(row) for row in rows]

    def _outputs(self, feed: dict[str, np.ndarray]) -> list[Any]:
        try:
            return self.session.run(None, feed)
        except Exception as error:  # onnxruntime's own exceptions have no common parent
            raise ExportError(f"onnxruntime fails to run {self.path}: {first_line(error)}") from error

    def close(self) -> None:
        """Drop the session."""
        self.session = None


def _port(end: Any, scale: float | None = None, zero_point: int = 0) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in end.shape)
    kind = str(end.type)[len("tensor(") : -1]
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return Port(end.name, shape, dtype, scale, zero_point)


ENGINES("onnxruntime")(Engine("onnx", OnnxRuntime, by_profiler, "onnxruntime on the CPU"))
