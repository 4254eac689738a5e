"""The run directory: keys, atomic writes, and which finished steps still hold."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.atomic import PARTIAL, replace_atomically
from kpipe.data import Dataset
from kpipe.errors import KpipeError

STEP = re.compile(r"\d\d-[a-z_]+")


def digest(*parts: Any) -> str:
    """Give the SHA-256 of some plain data, the same for the same data whatever the order of its keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def data_fingerprint(data: Dataset) -> str:
    """Give the SHA-256 of all the splits of a data set."""
    arrays = (*data.train, *data.validation, *data.test, data.calibration)
    seen = hashlib.sha256()
    for array in arrays:
        seen.update(f"{array.dtype}{array.shape}".encode())
        seen.update(np.ascontiguousarray(array).data)
    return seen.hexdigest()


def model_fingerprint(model: keras.Model) -> str:
    """Give the SHA-256 of a model's configuration and weights."""
    seen = hashlib.sha256(model.to_json().encode())
    for variable in model.variables:
        seen.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).data)
    return seen.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_text(path, as_json(content))


def as_json(content: Any) -> str:
    """Give plain data as the text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; None when it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """Give the entry of a step that was finished under this key, with all its files; else None."""
    entry = read_json(folder / "entry.json")
    if not isinstance(entry, dict) or entry.get("key") != key:
        return None
    held = [path for file in entry["files"] for path in (file["path"], *file.get("beside", ()))]
    if entry["artifact"]["kind"] != "file":
        held.append(entry["artifact"]["path"])
    return entry if all((folder / path).is_file() for path in held) else None


def open_directory(directory: Path) -> None:
    """Make the run directory and see that it can be written.

    Raises:
        KpipeError: When it cannot be made or written.
    """
    probe = directory / f"{PARTIAL}probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise KpipeError(
            f"Cannot write into the run directory {directory}: {error.strerror}. Choose another with --output."
        ) from error


def sweep(directory: Path, keep: Iterable[str] = ()) -> None:
    """Remove the steps of earlier runs that are not in `keep`, and what a killed run left half written.

    Only folders that hold an `entry.json` and are named like a step are taken for steps; nothing else is touched.
    """
    keep = set(keep)
    for path in sorted(directory.iterdir()):
        if path.name.startswith(PARTIAL):
            _remove(path)
        elif STEP.fullmatch(path.name) and (path / "entry.json").is_file():
            if path.name not in keep:
                _discard(path)
            else:
                for left in path.glob(f"{PARTIAL}*"):
                    _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _discard(folder: Path) -> None:
    """Remove a folder in two moves, so that one killed in between never leaves a step that looks whole."""
    doomed = folder.with_name(f"{PARTIAL}{folder.name}-stale")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.replace(doomed)
    shutil.rmtree(doomed)


@contextmanager
def step_folder(directory: Path, name: str) -> Iterator[Path]:
    """Give an empty folder to work in; it takes its name when the block ends well, and is removed when it does not."""
    partial = directory / f"{PARTIAL}{name}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if (directory / name).exists():
        _discard(directory / name)
    partial.replace(directory / name)
