"""The file formats: what a format must be able to do, and which there are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from kpipe.errors import ExportError
from kpipe.export.file import Inspection
from kpipe.export.runtime import Runtime
from kpipe.registry import Registry, nearest


@dataclass(frozen=True)
class Format:
    """How files of one format are written, run and read.

    Args:
        suffix: With its dot.
        precisions: What `convert` can write.
        convert: `(model, precision, output names, batch, io) -> content`; a quantized model comes baked.
        runtime: Runs a file: `runtime(path, threads)`.
        inspect: `(path) -> Inspection`.
        embed: `(content, text) -> content` with a text in it that no runtime reads.
        extract: `(content) -> text`, what `embed` put there; None where there is none.
        batch: The size of a batch where none is asked for; None leaves it open.
        io: What inputs and outputs of files in whole numbers may be, the usual one first.
    """

    suffix: str
    precisions: tuple[str, ...]
    convert: Callable[[keras.Model, str, list[str], int | None, str], bytes]
    runtime: type[Runtime]
    inspect: Callable[[Path], Inspection]
    embed: Callable[[bytes, str], bytes]
    extract: Callable[[bytes], str | None]
    batch: int | None
    io: tuple[str, ...]


FLOAT = "float32"
"""The precision of what was never rounded."""


FORMATS: Registry[Format] = Registry("file format")


def format_of(path: Path) -> tuple[str, Format]:
    """Find a format by a path's suffix.

    Returns:
        Its name and the format.

    Raises:
        ExportError: When no format has that suffix.
    """
    known = {FORMATS[name].suffix: name for name in FORMATS}
    if path.suffix.lower() not in known:
        hint = nearest(path.suffix, known)
        raise ExportError(f"Unknown suffix {path.suffix!r} of {str(path)!r}. Known: {', '.join(known)}.{hint}")
    name = known[path.suffix.lower()]
    return name, FORMATS[name]
