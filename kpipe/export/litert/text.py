"""What a LiteRT file begins with, and how what is read of one is put into words."""

from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.file import Port

IDENTIFIER = b"TFL3"


def check_content(path: Path) -> None:
    """Raise an `ExportError` when a file does not start as a LiteRT file does."""
    head = path.read_bytes()[:8]
    if len(head) < 8 or head[4:] != IDENTIFIER:
        raise ExportError(f"{path} is no LiteRT file: its identifier is {head[4:]!r}, expected {IDENTIFIER!r}.")


def first_lines(error: Exception) -> str:
    """Say what went wrong, with the first lines of a converter's or runtime's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"


def text(name: Any) -> str:
    """Give a name of a flatbuffer as text."""
    return name.decode() if isinstance(name, bytes) else str(name)


def enumeration(kind: type) -> dict[int, str]:
    """Map the numbers of one of the flatbuffer's enumerations to their names."""
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}


def operator_names(model: Any) -> list[str]:
    """Name the kinds of operations that a file uses, in the order of its table; own ones as "CUSTOM name"."""
    from ai_edge_litert import schema_py_generated as schema

    known, names = enumeration(schema.BuiltinOperator), []
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = number == schema.BuiltinOperator.CUSTOM
        names.append(f"CUSTOM {text(code.customCode)}" if custom else known.get(number, f"operation {number}"))
    return names


def ports(model: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Give a file's inputs and outputs, named by its signature where it has exactly one.

    Floats that a file makes of whole numbers at its end lie on the grid of these.

    Args:
        model: The file, read into objects.
    """
    from ai_edge_litert import schema_py_generated as schema

    kinds = operator_names(model)
    types, graph = enumeration(schema.TensorType), model.subgraphs[0]
    signatures = model.signatureDefs or []
    maps = [*signatures[0].inputs, *signatures[0].outputs] if len(signatures) == 1 else []
    names = {entry.tensorIndex: text(entry.name) for entry in maps}

    last = [each for each in graph.operators if kinds[each.opcodeIndex] == "DEQUANTIZE"]
    made_of = {int(each.outputs[0]): int(each.inputs[0]) for each in last}

    def port(place: int) -> Port:
        tensor = graph.tensors[place]
        open_axes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = tuple(None if int(size) < 0 else int(size) for size in open_axes)
        grid = graph.tensors[made_of.get(place, place)].quantization
        scale, zero = None, 0
        if grid is not None and grid.scale is not None and len(grid.scale) == 1:
            scale, zero = float(grid.scale[0]), int(grid.zeroPoint[0])
        return Port(names.get(place, text(tensor.name)), shape, types[tensor.type].lower(), scale, zero)

    return tuple(port(int(i)) for i in graph.inputs), tuple(port(int(i)) for i in graph.outputs)
