"""What is inside a LiteRT file."""

from collections import Counter
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.file import FloatOperation, Inspection, Operation
from kpipe.export.litert_content import check_content, first_lines, text

MOVES = frozenset(
    "QUANTIZE DEQUANTIZE RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK "
    "CONCATENATION GATHER PAD TILE BROADCAST_TO SHAPE".split()
)
"""Operations that compute nothing."""


def inspect(path: Path) -> Inspection:
    """Read the operations of a LiteRT file and judge them."""
    from ai_edge_litert import schema_py_generated as schema

    check_content(path)
    try:
        model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"{path} is a broken LiteRT file: {first_lines(error)}") from error
    operators, types = _names_of(schema.BuiltinOperator), _names_of(schema.TensorType)
    found: Counter[Operation] = Counter()
    floats: list[FloatOperation] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = f"CUSTOM {text(code.customCode)}" if number == schema.BuiltinOperator.CUSTOM else ""
            inputs, outputs = (
                tuple(types[graph.tensors[i].type].lower() for i in places if i >= 0)
                for places in (operator.inputs, operator.outputs)
            )
            found[Operation(custom or operators[number], inputs, outputs)] += 1
            if "float32" in (*inputs, *outputs) and operators[number] not in MOVES:
                scope = text(graph.tensors[operator.outputs[0]].name)
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
