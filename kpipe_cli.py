"""The `kpipe` command: import TensorFlow quietly, then hand over to `kpipe.cli`.

It lives outside the package because importing the package imports TensorFlow, whose C++ start-up messages go straight
to file descriptor 2 and heed no log level. An error in the import is still shown: only the import itself is muffled.
"""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def _muffled_stderr() -> Iterator[None]:
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def main() -> None:
    """Run the command line with TensorFlow's start-up noise silenced."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _muffled_stderr():
        import tensorflow  # noqa: F401  (imported for its start-up alone)
    from kpipe.cli import main as run

    run()


if __name__ == "__main__":
    main()
