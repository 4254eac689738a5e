"""LiteRT files run by ai-edge-litert's interpreter."""

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


class LiteRTRuntime(Runtime):
    """A .tflite file in ai-edge-litert's interpreter, with XNNPACK or, without delegates, with its own kernels."""

    def __init__(self, path: Path, threads: int = 1, delegates: bool = True):
        super().__init__(path, threads)
        check_content(path)
        try:
            with quiet_native():
                self.interpreter: Any = native.litert(path, threads, delegates)
            names_in, names_out = self._names()
            inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
            self.inputs = tuple(_port(detail, names_in) for detail in inputs)
            self.outputs = tuple(_port(detail, names_out) for detail in outputs)
            if any(port.dtype == "float32" for port in self.outputs):  # they may lie on a grid all the same
                self.outputs = ports(native.read_litert(path))[1]
        except Exception as error:  # what is broken inside fails anywhere
            raise ExportError(f"ai-edge-litert cannot load {path}: {first_lines(error)}") from error
        self._places = [detail["index"] for detail in inputs]
        self._results = [detail["index"] for detail in outputs]
        self._laid_out: list[tuple[int, ...]] = []

    def _names(self) -> tuple[dict[int, str], dict[int, str]]:
        """Map tensor indices to the names of the file's one signature."""
        if len(self.interpreter.get_signature_list()) != 1:
            return {}, {}
        runner = self.interpreter.get_signature_runner()
        details = (runner.get_input_details(), runner.get_output_details())
        names_in, names_out = ({detail["index"]: name for name, detail in each.items()} for each in details)
        return names_in, names_out

    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Set one batch of the file's own size, one sample where it is open; give the interpreter's own `invoke`."""
        self.check(inputs)
        size = self.inputs[0].shape[0] or 1
        self._set([to_port(filled(array, size), port) for array, port in zip(inputs, self.inputs, strict=True)])
        return self.interpreter.invoke

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run batch by batch of the file's own size; where it is open, all samples at once."""
        self.check(inputs)
        rows: list[list[np.ndarray]] = [[] for _ in self.outputs]
        ready = [to_port(array, port) for array, port in zip(inputs, self.inputs, strict=True)]
        for batch, count in batches_of(ready, self.inputs[0].shape[0] or len(inputs[0])):
            self._set(batch)
            self._invoke(count)
            for row, place, port in zip(rows, self._results, self.outputs, strict=True):
                row.append(from_port(self.interpreter.get_tensor(place), port)[:count])
        return [np.concatenate(row) for row in rows]

    def _invoke(self, count: int) -> None:
        try:
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ExportError(
                f"ai-edge-litert fails to run {self.path} on {count} samples: {first_lines(error)}"
            ) from error

    def _set(self, arrays: Sequence[np.ndarray]) -> None:
        """Set the inputs; a file whose batch is open is laid out anew when their size is another."""
        shapes = [tuple(array.shape) for array in arrays]
        if self.inputs[0].shape[0] is None and shapes != self._laid_out:
            for place, shape in zip(self._places, shapes, strict=True):
                self.interpreter.resize_tensor_input(place, shape)
            try:
                with quiet_native():
                    self.interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ExportError(
                    f"{self.path} has an open batch, and ai-edge-litert does not take one of {shapes[0][0]}: "
                    f"{first_lines(error)}"
                ) from error
            self._laid_out = shapes
        for place, array in zip(self._places, arrays, strict=True):
            self.interpreter.set_tensor(place, array)

    def close(self) -> None:
        """Drop the interpreter."""
        self.interpreter = None


def _port(detail: dict[str, Any], names: dict[int, str]) -> Port:
    scale, zero_point = detail["quantization"]
    return Port(
        name=names.get(detail["index"], str(detail["name"])),
        shape=tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
        dtype=np.dtype(detail["dtype"]).name,
        scale=float(scale) or None,
        zero_point=int(zero_point),
    )


class SignatureRuntime(Runtime):
    """One of several signatures of a .tflite file, in the interpreter's runner for it.

    The runner takes and gives arrays by name; timed, that counts the copying of inputs and outputs too.
    """

    def __init__(self, path: Path, threads: int, signature: str, delegates: bool = True):
        super().__init__(path, threads)
        try:
            with quiet_native():
                self.interpreter: Any = native.litert(path, threads, delegates)
                self.runner: Any = self.interpreter.get_signature_runner(signature)
            self.inputs, self.outputs = ports(native.read_litert(path), signature)
        except Exception as error:  # what is broken inside fails anywhere
            raise ExportError(f"ai-edge-litert cannot load {path}: {first_lines(error)}") from error

    def _feed(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {port.name: to_port(array, port) for port, array in zip(self.inputs, arrays, strict=True)}

    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Take one batch of the signature's own size, one sample where it is open; give what runs it on that."""
        self.check(inputs)
        feed = self._feed([filled(array, self.inputs[0].shape[0] or 1) for array in inputs])
        return lambda: self.runner(**feed)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run batch by batch of the signature's own size; where it is open, all samples at once."""
        self.check(inputs)
        rows: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for batch, count in batches_of(inputs, self.inputs[0].shape[0] or len(inputs[0])):
            try:
                found = self.runner(**self._feed(batch))
            except (ValueError, RuntimeError) as error:
                raise ExportError(
                    f"ai-edge-litert fails to run {self.path} on {count} samples: {first_lines(error)}"
                ) from error
            for row, port in zip(rows, self.outputs, strict=True):
                row.append(from_port(found[port.name], port)[:count])
        return [np.concatenate(row) for row in rows]

    def close(self) -> None:
        """Drop the interpreter."""
        self.runner = self.interpreter = None


def load(path: Path, threads: int = 1, signature: str | None = None, delegates: bool = True) -> Runtime:
    """Load a .tflite file, or one of its signatures, in ai-edge-litert's interpreter.

    Args:
        path: The file.
        threads: How many threads the runtime may use.
        signature: Which of its signatures; a file of several is refused without one.
        delegates: Whether XNNPACK computes, or the interpreter's own kernels.
    """
    check_content(path)
    graphs = signature_graphs(path.read_bytes())
    wanted = settle_signature(graphs, signature, path)
    if wanted is not None and (len(graphs) > 1 or graphs[wanted] != 0):  # what is called without a name is graph 0
        return SignatureRuntime(path, threads, wanted, delegates)
    return LiteRTRuntime(path, threads, delegates)


ENGINES("litert")(Engine("tflite", load, partial(by_prefixes, "litert"), "the interpreter, with XNNPACK"))
ENGINES("litert_builtin")(
    Engine(
        "tflite",
        partial(load, delegates=False),
        partial(by_prefixes, "litert_builtin"),
        "the interpreter with its own kernels, without XNNPACK",
    )
)
