"""LiteRT files read into objects, and written again."""

from typing import Any


def read(content: bytes) -> Any:
    """Read a file's content into the objects of its schema."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def written(model: Any) -> bytes:
    """Write objects of the schema as a file's content."""
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
