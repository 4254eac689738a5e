"""What a LiteRT file begins with, and how what is read of one is put into words."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.file import Port
from kpipe.export.native import litert_fault
from kpipe.registry import nearest


def check_content(path: Path) -> None:
    """Raise an `ExportError` when a file does not start as a LiteRT file does."""
    if (fault := litert_fault(path.read_bytes()[:8])) is not None:
        raise ExportError(f"{path} {fault}.")


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


def signature_graphs(content: bytes) -> dict[str, int]:
    """Map the signatures of a file to the numbers of their graphs.

    Raises:
        ExportError: When the file is broken.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model: Any = schema.Model.GetRootAs(content, 0)
        found = [model.SignatureDefs(n) for n in range(model.SignatureDefsLength())]
        return {text(each.SignatureKey()): int(each.SubgraphIndex()) for each in found}
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"This is a broken LiteRT file: {first_lines(error)}") from error


def operator_names(model: Any) -> list[str]:
    """Name the kinds of operations that a file uses, in the order of its table; own ones as "CUSTOM name"."""
    from ai_edge_litert import schema_py_generated as schema

    known, names = enumeration(schema.BuiltinOperator), []
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = number == schema.BuiltinOperator.CUSTOM
        names.append(f"CUSTOM {text(code.customCode)}" if custom else known.get(number, f"operation {number}"))
    return names


def settle_signature(names: Collection[str], wanted: str | None, path: Path) -> str | None:
    """Settle which of a file's signatures is meant; None where it has none.

    Raises:
        ExportError: When it has several and none is asked for, or not the one that is.

    Example:
        >>> settle_signature(["serving_default"], None, Path("net.tflite"))
        'serving_default'
    """
    if wanted is None and len(names) <= 1:
        return next(iter(names), None)
    if wanted is None:
        raise ExportError(f"{path} has several signatures: {', '.join(names)}. Say which is meant by signature=...")
    if wanted not in names:
        known = f"the signatures {', '.join(names)}" if names else "no signature"
        raise ExportError(f"{path} has {known}; received signature={wanted!r}.{nearest(wanted, names)}")
    return wanted


def ports(model: Any, signature: str | None = None) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Give a file's inputs and outputs, named by a signature.

    Floats that a file makes of whole numbers at its end lie on the grid of these.

    Args:
        model: The file, read into objects.
        signature: Which of its signatures. None: all of them; where there are several, their names stand before those
            of inputs and outputs, as in "encode/x". A file without a signature names its tensors.
    """
    found = [one for one in model.signatureDefs or [] if signature in (None, text(one.signatureKey))]
    if not found:
        return _ports_of(model, 0, {}, {})
    ends: tuple[list[Port], list[Port]] = ([], [])
    for one in found:
        names = (_names(entries) for entries in (one.inputs, one.outputs))
        for end, each in zip(ends, _ports_of(model, one.subgraphIndex, *names), strict=True):
            before = f"{text(one.signatureKey)}/" if len(found) > 1 else ""
            end += [replace(port, name=before + port.name) for port in each]
    return tuple(ends[0]), tuple(ends[1])


def _names(entries: Any) -> dict[int, list[str]]:
    """Map the places of tensors to the names under which a signature takes or gives them; one may have several."""
    found: dict[int, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.tensorIndex, []).append(text(entry.name))
    return found


def _ports_of(
    model: Any, number: int, names_in: Mapping[int, list[str]], names_out: Mapping[int, list[str]]
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Give the inputs and outputs of one graph, with the names of its tensors by their places."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = operator_names(model)
    types, graph = enumeration(schema.TensorType), model.subgraphs[number]
    last = [each for each in graph.operators if kinds[each.opcodeIndex] == "DEQUANTIZE"]
    made_of = {int(each.outputs[0]): int(each.inputs[0]) for each in last}

    def port(place: int, names: list[str] | None) -> Port:
        tensor = graph.tensors[place]
        open_axes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = tuple(None if int(size) < 0 else int(size) for size in open_axes)
        grid = graph.tensors[made_of.get(place, place)].quantization
        scale, zero = None, 0
        if grid is not None and grid.scale is not None and len(grid.scale) == 1:
            scale, zero = float(grid.scale[0]), int(grid.zeroPoint[0])
        name = text(tensor.name) if not names else names.pop(0) if len(names) > 1 else names[0]
        return Port(name, shape, types[tensor.type].lower(), scale, zero)

    inputs = tuple(port(int(place), names_in.get(int(place))) for place in graph.inputs)
    return inputs, tuple(port(int(place), names_out.get(int(place))) for place in graph.outputs)
