"""The named signatures of a LiteRT file: which there are, and several files joined into one of several."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.litert.flatbuffer import read, written
from kpipe.export.litert.metadata import NAME
from kpipe.export.litert.text import signature_names, text

NEEDS_RUNTIME = "min_runtime_version"
"""The name under which a converter says which runtime a file needs, such as "2.14.0"."""


def joined(contents: Mapping[str, bytes]) -> bytes:
    """Write LiteRT files as one, each of them a signature that bears its name.

    The graphs stand one after another, unchanged. What they store stands there once, where it is the same byte for
    byte: files of models that share layers share their weights.

    Args:
        contents: Name of a signature -> the file, which has one signature.

    Returns:
        The file. It asks for the newest runtime that one of them asks for; what they say of themselves is left out.

    Raises:
        ExportError: When a file has not exactly one signature.
    """
    models = []
    for name, content in contents.items():
        if len(names := signature_names(content)) != 1:
            raise ExportError(
                f"The file for the signature {name!r} has {len(names)} signatures ({', '.join(names) or 'none'}); "
                "expected one. Join the files that it was made of."
            )
        models.append(read(content))
        models[-1].signatureDefs[0].signatureKey = name
    first, *others = models
    first.metadata = _metadata(first, max(models, key=_needed))
    stored = {bytes(one.data): n for n, one in enumerate(first.buffers) if one.data is not None}
    kinds = {_kind(code): n for n, code in enumerate(first.operatorCodes)}
    for model in others:
        _append(first, model, stored, kinds)
    return written(first)


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
            _move_graphs((operator.builtinOptions, operator.builtinOptions2), behind)
        first.subgraphs.append(graph)
    for signature in model.signatureDefs:
        signature.subgraphIndex += behind
        first.signatureDefs.append(signature)


def _move_graphs(options: Iterable[Any], by: int) -> None:
    """Add to the numbers of the graphs that the options of a loop, a branch or a call refer to."""
    for each in options:
        for name, value in [] if each is None else list(vars(each).items()):
            if name.lower().endswith("subgraphindex") or name == "subgraph":
                setattr(each, name, value + by if value >= 0 else value)


def _kind(code: Any) -> tuple[Any, ...]:
    return max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode, code.version


def _needed(model: Any) -> tuple[int, ...]:
    """Give the version of the runtime that a file asks for; () where it asks for none."""
    for entry in model.metadata or []:
        if text(entry.name) == NEEDS_RUNTIME:
            words = bytes(model.buffers[entry.buffer].data).decode("ascii", "replace").strip("\0 ")
            return tuple(int(part) if part.isdigit() else 0 for part in words.split("."))
    return ()


def _metadata(first: Any, newest: Any) -> list[Any]:
    """Give what the first file says of itself, but kpipe's own text, with the version of the runtime of the newest."""
    kept = [entry for entry in first.metadata or [] if text(entry.name) not in (NAME, NEEDS_RUNTIME)]
    for entry in newest.metadata or []:
        if text(entry.name) == NEEDS_RUNTIME:
            first.buffers.append(newest.buffers[entry.buffer])
            renamed = copy.copy(entry)
            renamed.buffer = len(first.buffers) - 1
            kept.append(renamed)
    return kept
