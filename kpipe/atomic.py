"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
"""How the names of unfinished files and folders start; whatever bears such a name may be removed after a kill."""


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its place when the block ends well.

    A reader never sees half a file, and a file that was there before stays until then. When the block raises, the
    temporary file is removed; when the process is killed, it stays, and its name says what it is.

    Args:
        path: Where the file is to stand; its folder must exist.

    Yields:
        The temporary path: in the same folder, with the same ending, one for each process.

    Raises:
        OSError: When the block wrote nothing, or the file cannot be moved.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "plan.json"
        ...     with replace_atomically(target) as temporary:
        ...         _ = temporary.write_text("{}")
        ...         print(target.exists(), temporary.name.startswith(PARTIAL), temporary.suffix)
        ...     print([file.name for file in Path(folder).iterdir()])
        False True .json
        ['plan.json']
    """
    path = Path(path)
    temporary = _beside(path, "")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replace_together(paths: Sequence[str | Path], without: Sequence[str | Path] = ()) -> Iterator[list[Path]]:
    """Give temporary paths that take their places together when the block ends well: all of them or none.

    The first path is the one that counts: it is taken away before the others are moved and takes its place after them,
    so that whoever finds it finds the others that belong to it. When one cannot be moved, those moved before it are
    taken back, and what they had replaced is put there again, the first one last. Only a kill amid the moves, which
    are one system call each, can leave some of the others without the first.

    Args:
        paths: Where the files are to stand; their folders must exist.
        without: Files that are to go when the others come, where they are there.

    Yields:
        One temporary path for each of `paths`, as `replace_atomically` gives it.

    Raises:
        OSError: When the block did not write one of them, or it cannot be moved.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target, beside = Path(folder) / "net.tflite", Path(folder) / "net.json"
        ...     with replace_together([target, beside]) as temporaries:
        ...         for temporary in temporaries:
        ...             _ = temporary.write_text("{}")
        ...     print(sorted(file.name for file in Path(folder).iterdir()))
        ['net.json', 'net.tflite']
    """
    targets, going = [Path(path) for path in paths], [Path(path) for path in without]
    temporaries = [_beside(target, "") for target in targets]
    backups = {place: _beside(place, "old-") for place in (*targets, *going)}
    changed: list[Path] = []
    try:
        yield temporaries
        for temporary in temporaries:
            temporary.stat()  # all of them were written, or none is moved
        for place, backup in backups.items():
            if place.is_dir():
                raise IsADirectoryError(
                    f"{place} is a folder; a file was to stand there. Remove it, or choose another."
                )
            _keep(place, backup)
        for place in (targets[0], *going):
            changed.append(place)
            if len(backups) > 1:  # one alone is replaced at once
                place.unlink(missing_ok=True)
        for target, temporary in reversed(list(zip(targets, temporaries, strict=True))):
            changed.append(target)
            temporary.replace(target)
    except BaseException:
        for place in (*(one for one in changed if one != targets[0]), *changed[:1]):
            _take_back(place, backups[place])
        _remove(backups.values())
        raise
    else:
        _remove(backups.values())
    finally:
        _remove(temporaries)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{PARTIAL}{kind}{os.getpid()}-{path.name}")


def _take_back(path: Path, backup: Path) -> None:
    if backup.exists():
        backup.replace(path)
    else:
        path.unlink(missing_ok=True)


def _keep(path: Path, backup: Path) -> None:
    """Keep what stands at `path` under another name too; a second name for the same bytes where the disk allows it."""
    backup.unlink(missing_ok=True)
    if not path.is_file():
        return
    try:
        backup.hardlink_to(path)
    except OSError:
        with suppress(FileNotFoundError):
            shutil.copyfile(path, backup)
