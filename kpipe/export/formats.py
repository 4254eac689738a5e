"""The file formats: what a format must be able to do, and which there are."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.errors import ExportError
from kpipe.export.file import File, Inspection
from kpipe.export.runtime import Runtime
from kpipe.registry import Registry, nearest

OWN, CONVERTER = METHODS = ("kpipe", "converter")
"""Who rounds what a file holds: kpipe in the model, or the format's own converter as it writes a float model."""


@dataclass(frozen=True)
class Converter:
    """How a format's own converter rounds a float model, with ranges that it finds on calibration data.

    Args:
        precisions: What it can write.
        convert: `(model, precision, output names, batch, io, calibration inputs) -> content`.
    """

    precisions: tuple[str, ...]
    convert: Callable[[keras.Model, str, list[str], int | None, str, Sequence[np.ndarray]], bytes]


@dataclass(frozen=True)
class Format:
    """How files of one format are written, run and read.

    Args:
        suffix: With its dot.
        precisions: What `convert` can write.
        convert: `(model, precision, output names, batch, io) -> content`; a quantized model comes baked.
        runtime: Runs a file: `(path, threads, signature) -> Runtime`; the last two may be left out.
        inspect: `(path, signature) -> Inspection`, of the whole file without a signature.
        embed: `(content, text) -> content` with a text in it that no runtime reads.
        extract: `(content) -> text`, what `embed` put there; None where there is none.
        batch: The size of a batch where none is asked for; None leaves it open.
        whole_ends: Whether inputs and outputs of files in whole numbers are whole numbers too, unless asked otherwise.
        converter: Its own converter where that can round; None where kpipe alone does.
        join: `(name of a signature -> content) -> content` of one file with all of them; None where a file has one
            graph only.
    """

    suffix: str
    precisions: tuple[str, ...]
    convert: Callable[[keras.Model, str, list[str], int | None, str], bytes]
    runtime: Callable[..., Runtime]
    inspect: Callable[..., Inspection]
    embed: Callable[[bytes, str], bytes]
    extract: Callable[[bytes], str | None]
    batch: int | None
    whole_ends: bool
    converter: Converter | None = None
    join: Callable[[Mapping[str, bytes]], bytes] | None = None

    def precisions_by(self, method: str) -> tuple[str, ...]:
        """Name the precisions of the files that one of `METHODS` gives."""
        if method == OWN:
            return self.precisions
        return () if self.converter is None else self.converter.precisions


FLOAT = "float32"
"""The precision of what was never rounded."""


FORMATS: Registry[Format] = Registry("file format")


def as_path(path: Any) -> Path:
    """Give the path that a caller names.

    Raises:
        ExportError: When it is none.

    Example:
        >>> as_path("small.onnx").suffix
        '.onnx'
    """
    named = path.path if isinstance(path, File) else path
    if not isinstance(named, (str, os.PathLike)):
        raise ExportError(f"Received {type(path).__name__} for a path; expected the path of a file as text or a Path.")
    return Path(named)


def file_at(path: Any) -> Path:
    """Give the path of a file that is there, of a known format.

    Raises:
        ExportError: When it is no path, has no suffix of a format, or leads to no file.
    """
    path = as_path(path)
    format_of(path)
    if not path.is_file():
        raise ExportError(f"{path} is a folder; expected a file." if path.is_dir() else f"There is no file {path}.")
    return path


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
