"""ONNX files read and checked, and how a fault of theirs is put into words."""

from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export import native


def load(path: Path) -> Any:
    """Read an ONNX file, or raise an `ExportError`."""
    try:
        return native.load_onnx(path)
    except Exception as error:  # protobuf and the checker each raise their own
        raise ExportError(f"{path} is no ONNX file, or a broken one: {first_line(error)}") from error


def refuse_signature(path: Path, signature: str | None) -> None:
    """Raise an `ExportError` when a signature is asked for: no .onnx file has one."""
    if signature is not None:
        raise ExportError(f"{path} has no signatures, as no .onnx file has; received signature={signature!r}.")


def first_line(error: Exception) -> str:
    """Say what went wrong, with the first line of a converter's or runtime's message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:500]
