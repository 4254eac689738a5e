"""What is inside a LiteRT file."""

from collections import Counter
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export import native
from kpipe.export.file import FloatOperation, Inspection, Operation
from kpipe.export.litert.flatbuffer import reachable
from kpipe.export.litert.text import (
    check_content,
    enumeration,
    first_lines,
    operator_names,
    settle_signature,
    signature_graphs,
    text,
)
from kpipe.fake_quant import precision_of

MOVES = frozenset(
    "QUANTIZE DEQUANTIZE RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK "
    "CONCATENATION GATHER PAD TILE BROADCAST_TO SHAPE".split()
)
"""Operations that compute nothing."""


def inspect(path: Path, signature: str | None = None) -> Inspection:
    """Read the operations of a LiteRT file, or those that one of its signatures leads to, and judge them."""
    from ai_edge_litert import schema_py_generated as schema

    check_content(path)
    graphs = {} if signature is None else signature_graphs(path.read_bytes())
    if signature is not None:
        settle_signature(graphs, signature, path)
    try:
        model: Any = native.read_litert(path)
        if signature is not None:
            model.subgraphs = reachable(model, graphs[signature])
        return judge(model, operator_names(model), enumeration(schema.TensorType))
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"{path} is a broken LiteRT file: {first_lines(error)}") from error


def judge(model: Any, operators: list[str], types: dict[int, str]) -> Inspection:
    """Judge a LiteRT file that was read into objects.

    Args:
        model: The file.
        operators: The names of its kinds of operations.
        types: The names of the types of tensors.
    """
    found: Counter[Operation] = Counter()
    floats: list[FloatOperation] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = operators[operator.opcodeIndex]
            inputs, outputs = (
                tuple(types[graph.tensors[i].type].lower() for i in places if i >= 0)
                for places in (operator.inputs, operator.outputs)
            )
            found[Operation(name, inputs, outputs)] += 1
            if "float32" in (*inputs, *outputs) and name not in MOVES:
                scope = text(graph.tensors[operator.outputs[0]].name) if len(operator.outputs) else name
                floats.append(FloatOperation(scope, f"{name} computes in float"))
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    stored = Counter((types[each.type].lower(), int(each.shape.prod())) for each in tensors if _is_weight(model, each))
    flowing = {types[each.type] for each in tensors if _flows_on_a_grid(model, each)}
    bits = next((bits for bits in (8, 16) if f"INT{bits}" in flowing), None)
    precision = precision_of(bits, {dtype for dtype, _ in stored})
    operations = tuple(Operation(o.name, o.inputs, o.outputs, n) for o, n in found.most_common())
    faults = tuple(
        f"{one.name} needs an extension of the runtime" for one in operations if one.name.startswith("CUSTOM")
    )
    return Inspection(operations, precision, faults, tuple(floats) if bits else (), tuple(stored.elements()))


def _flows_on_a_grid(model: Any, tensor: Any) -> bool:
    """Say whether a tensor is no constant, and its whole numbers stand for values."""
    grid = tensor.quantization
    return model.buffers[tensor.buffer].data is None and grid is not None and grid.scale is not None


def _is_weight(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and tensor.shape is not None and len(tensor.shape) > 1
