"""What a LiteRT file begins with, and how what is read of one is put into words."""

from pathlib import Path
from typing import Any

from kpipe.errors import ExportError

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
