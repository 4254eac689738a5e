"""The operations and tensors of an ONNX file, as they are stored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.export import native
from kpipe.export.assembly import READERS, Reading, Step, Tensor
from kpipe.export.file import Port
from kpipe.export.onnx.int8 import scale_behind

HALF_BYTES = ("int4", "uint4", "float4e2m1")


@READERS("onnx")
def read(path: Path) -> Reading:
    """Read a file; a tensor's key is its name."""
    proto = native.read_onnx(path)
    tensors: dict[Any, Tensor] = {}
    steps = list(_steps(proto.graph, tensors))
    for step in steps:
        _set_zero_point(step, tensors)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_port(tensors[end.name]) for end in proto.graph.input if end.name not in stored)
    outputs = tuple(_port(tensors[end.name], *scale_behind(proto.graph, end.name)) for end in proto.graph.output)
    return Reading(steps, tensors, inputs, outputs)


def _port(tensor: Tensor, scale: float | None = None, zero_point: int = 0) -> Port:
    return Port(tensor.name, tensor.shape, tensor.dtype, scale, zero_point)


def _steps(graph: Any, tensors: dict[Any, Tensor]) -> Iterator[Step]:
    """Give a graph's operations, each followed by those of the graphs inside it, and note all tensors."""
    from onnx import helper, numpy_helper

    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        tensors[value.name] = Tensor(_text(value.name), helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)
    for tensor in graph.initializer:
        dtype, data = helper.tensor_dtype_to_np_dtype(tensor.data_type).name, numpy_helper.to_array(tensor).reshape(-1)
        size = -(-data.size // 2) if dtype in HALF_BYTES else data.nbytes
        numbers = data if data.dtype.kind in "fiub" else data.astype(np.float32)
        tensors[tensor.name] = Tensor(_text(tensor.name), dtype, tuple(tensor.dims), numbers, size)
    for node in graph.node:
        inputs, outputs = (tuple(name for name in names if name) for names in (node.input, node.output))
        yield Step(_text(node.op_type), _text(node.name or (outputs[0] if outputs else "")), inputs, outputs)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _steps(inner, tensors)


def _text(name: str | bytes) -> str:
    """Give a name as text: protobuf gives bytes where it is not written in UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="replace")


def _set_zero_point(step: Step, tensors: dict[Any, Tensor]) -> None:
    """Note which whole number stands for 0 in a constant that a step unpacks."""
    if step.name == "DequantizeLinear" and len(step.inputs) == 3:
        weight, point = tensors.get(step.inputs[0]), tensors.get(step.inputs[2])
        if weight is not None and weight.data is not None and point is not None and point.data is not None:
            zero = int(point.data[0]) if point.data.size else 0
            tensors[step.inputs[0]] = replace(weight, zero_point=zero)
