"""LiteRT files run as compiled models, LiteRT's newer interface."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.engines import ENGINES, Engine
from kpipe.export.file import Port
from kpipe.export.litert.profile import by_prefixes
from kpipe.export.litert.text import check_content, first_lines, ports, settle_signature, signature_graphs
from kpipe.export.quiet import quiet_native
from kpipe.export.runtime import Runtime, batches_of, filled, from_port, to_port


class CompiledRuntime(Runtime):
    """A .tflite file, or one of its signatures, as a compiled model of ai-edge-litert, on the CPU."""

    def __init__(self, path: Path, threads: int = 1, signature: str | None = None):
        super().__init__(path, threads)
        check_content(path)
        settle_signature(signature_graphs(path.read_bytes()), signature, path)
        try:
            with quiet_native():
                self.model: Any = native.litert_compiled(path, threads)
            self.key = signature or next(iter(self.model.get_signature_list()))
            read = native.read_litert(path)
            _check_handed_through(read)
            inputs, outputs = ports(read, signature)
            self.inputs = _named(inputs, self.model.get_input_tensor_details(self.key))
            self.outputs = _named(outputs, self.model.get_output_tensor_details(self.key))
        except Exception as error:  # what is broken inside fails anywhere
            raise ExportError(f"ai-edge-litert cannot compile {path}: {first_lines(error)}") from error
        self._buffers = {p.name: self.model.create_input_buffer_by_name(self.key, p.name) for p in self.inputs}
        self._results = {p.name: self.model.create_output_buffer_by_name(self.key, p.name) for p in self.outputs}
        try:
            with quiet_native():  # the first value that is written makes an environment, of which the runtime tells
                self._write([np.zeros([size or 1 for size in port.shape], port.dtype) for port in self.inputs])
        except (TypeError, ValueError) as error:
            wide = any(port.dtype == "int16" for port in self.inputs)
            how = "Export with io='float32', or run" if wide else "Run"
            raise ExportError(
                f"Compiled models do not take the inputs of {path}: {first_lines(error)}. {how} it in another engine."
            ) from error

    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Write one batch of the file's own size, one sample where it is open, and give what runs the model on it."""
        self.check(inputs)
        size = self.inputs[0].shape[0] or 1
        self._write([to_port(filled(array, size), port) for array, port in zip(inputs, self.inputs, strict=True)])
        return self._invoke

    def _invoke(self) -> None:
        try:
            self.model.run_by_name(self.key, self._buffers, self._results)
        except RuntimeError as error:
            raise ExportError(f"ai-edge-litert fails to run {self.path}: {first_lines(error)}") from error

    def _write(self, arrays: Sequence[np.ndarray]) -> None:
        for port, array in zip(self.inputs, arrays, strict=True):
            self._buffers[port.name].write(np.ascontiguousarray(array))

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run batch by batch of the file's own size, sample by sample where it is open."""
        self.check(inputs)
        rows: list[list[np.ndarray]] = [[] for _ in self.outputs]
        ready = [to_port(array, port) for array, port in zip(inputs, self.inputs, strict=True)]
        for batch, count in batches_of(ready, self.inputs[0].shape[0] or 1):
            self._write(batch)
            self._invoke()
            for row, port in zip(rows, self.outputs, strict=True):
                shape = [size or 1 for size in port.shape]
                found = self._results[port.name].read(math.prod(shape), np.dtype(port.dtype).type)
                row.append(from_port(np.asarray(found).reshape(shape), port)[:count])
        return [np.concatenate(row) for row in rows]

    def close(self) -> None:
        """Drop the model and its buffers."""
        with quiet_native():
            self._buffers, self._results, self.model = {}, {}, None


def _check_handed_through(model: Any) -> None:
    """Refuse files that give out what goes in: a compiled model leaves the memory of such an output as it was."""
    for graph in model.subgraphs:
        if set(map(int, graph.inputs)) & set(map(int, graph.outputs)):
            raise ExportError("it gives an input out as it is, which compiled models do not. Take another engine.")


def _named(found: tuple[Port, ...], details: dict[str, Any]) -> tuple[Port, ...]:
    """Check that the compiled model knows the ports by these names."""
    missing = [port.name for port in found if port.name not in details]
    if missing:
        raise ExportError(f"The compiled model has no {', '.join(missing)}; it knows {', '.join(details)}.")
    return found


ENGINES("litert_compiled")(
    Engine("tflite", CompiledRuntime, partial(by_prefixes, "litert_compiled"), "a compiled model on the CPU")
)
