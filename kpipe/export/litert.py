"""LiteRT (.tflite): written by TensorFlow's converter, run by ai-edge-litert."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ExportError
from kpipe.export.file import FloatOperation, Inspection, Operation, Port
from kpipe.export.formats import FORMATS, Format
from kpipe.export.quiet import quiet, quiet_native
from kpipe.export.runtime import Runtime, from_port, to_port
from kpipe.export.signature import input_names, serving

IDENTIFIER = b"TFL3"
MOVES = frozenset(
    "QUANTIZE DEQUANTIZE RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK "
    "CONCATENATION GATHER PAD TILE BROADCAST_TO SHAPE".split()
)
"""Operations that compute nothing."""


def convert(model: keras.Model, precision: str, names: list[str]) -> bytes:
    """Write a model as a LiteRT file for one sample at a time.

    Args:
        model: The model; for int8 one that was baked.
        precision: "float32", "float16" (weights are stored so, computation stays in float32) or "int8" (inputs and
            outputs too).
        names: Names of the outputs, in the order of `model.outputs`.

    Returns:
        The file's content; its inputs and outputs are in the Keras order.

    Raises:
        ExportError: When the converter refuses the model.
    """
    serve, specs = serving(model, names)
    with tempfile.TemporaryDirectory() as folder, quiet():
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.int8
        try:
            content = converter.convert()
        except Exception as error:
            raise ExportError(f"LiteRT's converter refuses model {model.name!r}: {_first_lines(error)}") from error
    return in_order(content, input_names(model), names)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"


def in_order(content: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Put a file's inputs and outputs into the given order; the converter sorts them by name."""
    if len(inputs) == len(outputs) == 1:
        return content
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    signature = model.signatureDefs[0]
    graph = model.subgraphs[signature.subgraphIndex]
    for names, maps, end in ((inputs, signature.inputs, "inputs"), (outputs, signature.outputs, "outputs")):
        tensors = {_text(entry.name): entry.tensorIndex for entry in maps}
        setattr(graph, end, np.asarray([tensors[name] for name in names], np.int32))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


class LiteRTRuntime(Runtime):
    """A .tflite file in ai-edge-litert, with XNNPACK."""

    def __init__(self, path: Path, threads: int = 1):
        super().__init__(path, threads)
        from ai_edge_litert.interpreter import Interpreter

        check_content(path)
        try:
            with quiet_native():
                self.interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
                self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"ai-edge-litert cannot load {path}: {_first_lines(error)}") from error
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


def check_content(path: Path) -> None:
    """Raise an `ExportError` when a file does not start as a LiteRT file does."""
    head = path.read_bytes()[:8]
    if len(head) < 8 or head[4:] != IDENTIFIER:
        raise ExportError(f"{path} is no LiteRT file: its identifier is {head[4:]!r}, expected {IDENTIFIER!r}.")


def inspect(path: Path) -> Inspection:
    """Read the operations of a LiteRT file and judge them."""
    from ai_edge_litert import schema_py_generated as schema

    check_content(path)
    try:
        model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"{path} is a broken LiteRT file: {_first_lines(error)}") from error
    operators, types = _names_of(schema.BuiltinOperator), _names_of(schema.TensorType)
    found: Counter[Operation] = Counter()
    floats: list[FloatOperation] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = f"CUSTOM {_text(code.customCode)}" if number == schema.BuiltinOperator.CUSTOM else ""
            inputs, outputs = (
                tuple(types[graph.tensors[i].type].lower() for i in places if i >= 0)
                for places in (operator.inputs, operator.outputs)
            )
            found[Operation(custom or operators[number], inputs, outputs)] += 1
            if "float32" in (*inputs, *outputs) and operators[number] not in MOVES:
                scope = _text(graph.tensors[operator.outputs[0]].name)
                floats.append(FloatOperation(scope, f"{operators[number]} computes in float"))
    graph = model.subgraphs[0]
    ends = {types[graph.tensors[i].type] for i in (*graph.inputs, *graph.outputs)}
    stored = {types[tensor.type] for tensor in graph.tensors if _is_weight(model, tensor)}
    precision = "int8" if "INT8" in ends else "float16" if "FLOAT16" in stored else "float32"
    operations = tuple(Operation(o.name, o.inputs, o.outputs, n) for o, n in found.most_common())
    faults = tuple(
        f"{one.name} needs an extension of the runtime" for one in operations if one.name.startswith("CUSTOM")
    )
    return Inspection(operations, precision, faults, tuple(floats) if precision == "int8" else ())


def _names_of(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _is_weight(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and tensor.shape is not None and len(tensor.shape) > 1


FORMATS("tflite")(Format(".tflite", ("float32", "float16", "int8"), convert, LiteRTRuntime, inspect))
