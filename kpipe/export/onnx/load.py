"""ONNX files read and checked, and how a fault of theirs is put into words."""

import re
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export import native

TRACED = "in user code:"
"""What TensorFlow begins a message with that comes out of a function as it is traced; the error itself ends it."""
IN_A_LAYER = "Exception encountered when calling"
"""What Keras begins a message with that comes out of a layer; the next line says what."""


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
    r"""Say what went wrong, with the first line of a converter's or runtime's message that says it.

    Example:
        >>> first_line(ValueError("in user code:\n\n  File 'a.py', line 1\n\n  TypeError: no number\n"))
        'ValueError: TypeError: no number'
    """
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()] or [""]
    if lines[0] == TRACED:
        found = [line.strip() for line in lines if not line.startswith("      ")]
        lines = next((found[n:] for n, line in enumerate(found) if re.match(r"\w+(Error|Exception): ", line)), lines)
    said = lines[1:] if IN_A_LAYER in lines[0] and lines[1:] else lines
    return f"{type(error).__name__}: {said[0].strip()}"[:500]
