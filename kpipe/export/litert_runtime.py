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
from kpipe.export.litert_content import check_content, first_lines
from kpipe.export.litert_profile import by_prefixes
from kpipe.export.quiet import quiet_native
from kpipe.export.runtime import Runtime, from_port, to_port


class LiteRTRuntime(Runtime):
    """A .tflite file in ai-edge-litert's interpreter, with XNNPACK or, without delegates, with its own kernels."""

    def __init__(self, path: Path, threads: int = 1, delegates: bool = True):
        super().__init__(path, threads)
        check_content(path)
        try:
            with quiet_native():
                self.interpreter: Any = native.litert(path, threads, delegates)
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"ai-edge-litert cannot load {path}: {first_lines(error)}") from error
        names_in, names_out = self._names()
        self.inputs = tuple(_port(detail, names_in) for detail in self.interpreter.get_input_details())
        self.outputs = tuple(_port(detail, names_out) for detail in self.interpreter.get_output_details())
        self._places = [detail["index"] for detail in self.interpreter.get_input_details()]
        self._results = [detail["index"] for detail in self.interpreter.get_output_details()]

    def _names(self) -> tuple[dict[int, str], dict[int, str]]:
        """Map tensor indices to the names of the file's one signature."""
        if len(self.interpreter.get_signature_list()) != 1:
            return {}, {}
        runner = self.interpreter.get_signature_runner()
        details = (runner.get_input_details(), runner.get_output_details())
        names_in, names_out = ({detail["index"]: name for name, detail in each.items()} for each in details)
        return names_in, names_out

    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Set one sample and give the interpreter's own `invoke`."""
        self.check(inputs)
        for place, port, array in zip(self._places, self.inputs, inputs, strict=True):
            self.interpreter.set_tensor(place, to_port(array[:1], port))
        return self.interpreter.invoke

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run sample by sample."""
        self.check(inputs)
        rows: list[list[np.ndarray]] = [[] for _ in self.outputs]
        ready = [to_port(array, port) for array, port in zip(inputs, self.inputs, strict=True)]
        for n in range(len(inputs[0])):
            for place, array in zip(self._places, ready, strict=True):
                self.interpreter.set_tensor(place, array[n : n + 1])
            self.interpreter.invoke()
            for row, place, port in zip(rows, self._results, self.outputs, strict=True):
                row.append(from_port(self.interpreter.get_tensor(place), port))
        return [np.concatenate(row) for row in rows]

    def close(self) -> None:
        """Drop the interpreter."""
        self.interpreter = None


def _port(detail: dict[str, Any], names: dict[int, str]) -> Port:
    scale, zero_point = detail["quantization"]
    return Port(
        name=names.get(detail["index"], str(detail["name"])),
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=np.dtype(detail["dtype"]).name,
        scale=float(scale) or None,
        zero_point=int(zero_point),
    )


ENGINES("litert")(Engine("tflite", LiteRTRuntime, partial(by_prefixes, "litert"), "the interpreter, with XNNPACK"))
ENGINES("litert_builtin")(
    Engine(
        "tflite",
        partial(LiteRTRuntime, delegates=False),
        partial(by_prefixes, "litert_builtin"),
        "the interpreter with its own kernels, without XNNPACK",
    )
)
