"""A text kept inside a LiteRT file: a metadata buffer, which no operation reads."""

from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.litert.flatbuffer import read, write
from kpipe.export.litert.text import first_lines, text
from kpipe.export.native import litert_fault

NAME = "kpipe"


def embed(content: bytes, words: str) -> bytes:
    """Put a text into a LiteRT file; one that was there before is replaced, all else stays.

    Args:
        content: The file.
        words: The text.

    Returns:
        The file with the text under the metadata name "kpipe", in UTF-8.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read(content)
    model.metadata = model.metadata or []
    entry = next((one for one in model.metadata if text(one.name) == NAME), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = NAME, len(model.buffers)
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = np.frombuffer(words.encode(), np.uint8)
    return write(model)


def extract(content: bytes) -> str | None:
    """Give the text that `embed` put into a LiteRT file; None where there is none.

    Raises:
        ExportError: When the file is broken.
    """
    from ai_edge_litert import schema_py_generated as schema

    if (fault := litert_fault(content)) is not None:
        raise ExportError(f"This {fault}.")
    try:
        model: Any = schema.Model.GetRootAs(content, 0)
        for index in range(model.MetadataLength()):
            entry = model.Metadata(index)
            if text(entry.Name() or b"") == NAME:
                buffer = model.Buffers(entry.Buffer())
                return buffer.DataAsNumpy().tobytes().decode() if buffer.DataLength() else ""
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"This is a broken LiteRT file: {first_lines(error)}") from error
    return None
