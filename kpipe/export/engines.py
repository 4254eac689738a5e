"""The engines that run files: one runtime may run a file in several ways."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kpipe.errors import ExportError
from kpipe.export.formats import FORMATS
from kpipe.export.profile import OperationTime
from kpipe.export.runtime import Runtime
from kpipe.registry import Registry, nearest


@dataclass(frozen=True)
class Engine:
    """A way to run the files of one format.

    Args:
        format: The format's name.
        runtime: `(path, threads, signature) -> Runtime`; without a signature a file of several is refused.
        profile: `(path, threads, runs) -> the time of each operation`.
        about: What it is, in a few words.
    """

    format: str
    runtime: Callable[[Path, int, str | None], Runtime]
    profile: Callable[[Path, int, int], tuple[OperationTime, ...]]
    about: str


ENGINES: Registry[Engine] = Registry("engine")
"""Each has an entry of its name in `kpipe.export.native.OPENERS`; that with a format's own runtime is its default."""


def engines_of(format_name: str) -> list[str]:
    """Name the engines that run a format, the default one first."""
    default = FORMATS[format_name].runtime
    known = [name for name in ENGINES if ENGINES[name].format == format_name]
    return sorted(known, key=lambda name: ENGINES[name].runtime is not default)


def choose(format_name: str, wanted: str | None, path: Path) -> str:
    """Settle which engine runs a file, or raise an `ExportError` that names those that can.

    Example:
        >>> choose("onnx", None, Path("m.onnx"))
        'onnxruntime'
    """
    known = engines_of(format_name)
    if wanted is None:
        return known[0]
    if wanted not in ENGINES:
        raise ExportError(f"Unknown engine {wanted!r}. Known: {', '.join(ENGINES)}.{nearest(wanted, ENGINES)}")
    if wanted not in known:
        raise ExportError(f"The engine {wanted!r} does not run {path}. {format_name} files run in {', '.join(known)}.")
    return wanted
