"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
