"""What is inside an ONNX file."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.file import Inspection, Operation
from kpipe.export.onnx.float import float_operations
from kpipe.export.onnx.load import first_line, refuse_signature
from kpipe.fake_quant import precision_of


def inspect(path: Path, signature: str | None = None) -> Inspection:
    """Read the operations of an ONNX file and judge them."""
    refuse_signature(path, signature)
    try:
        return judge(native.read_onnx(path))
    except Exception as error:  # protobuf, the checker and the tables of types each raise their own
        raise ExportError(f"{path} is no ONNX file, or a broken one: {first_line(error)}") from error


def judge(proto: Any) -> Inspection:
    """Judge an ONNX file that was read, with the types of its tensors."""
    types = dict(_types(proto.graph))
    found = Counter(
        Operation(
            node.op_type,
            tuple(types.get(name, "?") for name in node.input if name),
            tuple(types.get(name, "?") for name in node.output if name),
        )
        for node in proto.graph.node
    )
    operations = tuple(Operation(o.name, o.inputs, o.outputs, n) for o, n in found.most_common())
    faults = [
        f"{node.op_type} belongs to {node.domain}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")
    ]
    rounded = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    constants = [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1]
    stored = tuple((types[tensor.name], math.prod(tensor.dims)) for tensor in constants)
    precision = precision_of(8 if rounded else None, {dtype for dtype, _ in stored})
    floats = tuple(float_operations(proto.graph, types)) if rounded else ()
    return Inspection(operations, precision, tuple(faults), floats, stored)


def _types(graph: Any) -> Iterator[tuple[str, str]]:
    from onnx import helper

    for value in (*graph.input, *graph.value_info, *graph.output):
        yield value.name, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    for tensor in graph.initializer:
        yield tensor.name, helper.tensor_dtype_to_np_dtype(tensor.data_type).name
