"""Several LiteRT files joined into one of several named signatures."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.litert.flatbuffer import read, references
from kpipe.export.litert.metadata import NAME
from kpipe.export.litert.text import operator_names, signature_graphs, text
from kpipe.export.litert.weights import packed

NEEDS_RUNTIME = "min_runtime_version"
"""The name under which a converter says which runtime a file needs, such as "2.14.0"."""
KEEPING = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE", "CALL_ONCE")
"""Operations on what an interpreter keeps for a whole file, under names that two files may both use."""


def join(contents: Mapping[str, bytes]) -> bytes:
    """Write LiteRT files as one, each of them a signature that bears its name.

    The graphs stand one after another, unchanged. What they store stands there once, where it is the same byte for
    byte: files of models that share layers share their weights.

    Args:
        contents: Name of a signature -> the file, which has one signature.

    Returns:
        The file. It asks for the newest runtime that one of them asks for; what kpipe wrote into them is left out.

    Raises:
        ExportError: When a file has not exactly one signature, or keeps variables or tables from call to call.
    """
    models = []
    for name, content in contents.items():
        if len(names := list(signature_graphs(content))) != 1:
            raise ExportError(
                f"The file for the signature {name!r} has {len(names)} signatures ({', '.join(names) or 'none'}); "
                "expected one. Join the files that it was made of."
            )
        models.append(read(content))
        models[-1].signatureDefs[0].signatureKey = name
        _check_kept(name, models[-1])
    first, *others = models
    first.metadata = _metadata(first, max(models, key=_needed))
    stored = {bytes(one.data): n for n, one in enumerate(first.buffers) if one.data is not None}
    kinds = {_kind(code): n for n, code in enumerate(first.operatorCodes)}
    for model in others:
        _append(first, model, stored, kinds)
    return packed(first)


def _check_kept(name: str, model: Any) -> None:
    kept = sorted({kind for kind in operator_names(model) if kind.startswith(KEEPING)})
    if kept:
        raise ExportError(
            f"The file for the signature {name!r} has {', '.join(kept)}: an interpreter keeps variables and tables for "
            "the whole of a file, so that signatures would change each other's. Deliver it as a file of its own."
        )
    if any(tensor.externalBuffer for graph in model.subgraphs for tensor in graph.tensors):
        raise ExportError(f"The file for the signature {name!r} keeps weights outside of it; write them into it.")


def _append(first: Any, model: Any, stored: dict[bytes, int], kinds: dict[tuple[Any, ...], int]) -> None:
    """Put the graphs of a file behind those of the first, with all the numbers that they refer to."""
    buffers, codes = [], []
    for number, buffer in enumerate(model.buffers):
        content = None if buffer.data is None else bytes(buffer.data)
        known = 0 if number == 0 else stored.get(content) if content is not None else None
        if known is None:
            known = len(first.buffers)
            first.buffers.append(buffer)
            if content is not None:
                stored[content] = known
        buffers.append(known)
    for code in model.operatorCodes:
        if _kind(code) not in kinds:
            kinds[_kind(code)] = len(first.operatorCodes)
            first.operatorCodes.append(code)
        codes.append(kinds[_kind(code)])
    behind = len(first.subgraphs)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = buffers[tensor.buffer]
        for operator in graph.operators:
            operator.opcodeIndex = codes[operator.opcodeIndex]
            _move_graphs(operator, behind)
        first.subgraphs.append(graph)
    for signature in model.signatureDefs:
        signature.subgraphIndex += behind
        first.signatureDefs.append(signature)


def _move_graphs(operator: Any, by: int) -> None:
    """Add to the numbers of the graphs that an operation refers to."""
    for options, name, numbers in references(operator):
        moved = [number + by if number >= 0 else number for number in numbers]
        setattr(options, name, moved[0] if isinstance(getattr(options, name), int) else np.asarray(moved, np.int32))


def _kind(code: Any) -> tuple[Any, ...]:
    return max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode, code.version


def _needed(model: Any) -> tuple[int, ...]:
    """Give the version of the runtime that a file asks for; () where it asks for none."""
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data if entry.buffer < len(model.buffers) else None
        if text(entry.name) == NEEDS_RUNTIME and data is not None:
            words = bytes(data).decode("ascii", "replace").strip("\0 ")
            return tuple(int(part) if part.isdigit() else 0 for part in words.split("."))
    return ()


def _metadata(first: Any, newest: Any) -> list[Any]:
    """Give what the first file says of itself, but kpipe's own text, with the version of the runtime of the newest."""
    kept = [entry for entry in first.metadata or [] if text(entry.name) not in (NAME, NEEDS_RUNTIME)]
    for entry in newest.metadata or [] if _needed(newest) else []:
        if text(entry.name) == NEEDS_RUNTIME:
            first.buffers.append(newest.buffers[entry.buffer])
            renamed = copy.copy(entry)
            renamed.buffer = len(first.buffers) - 1
            kept.append(renamed)
    return kept
