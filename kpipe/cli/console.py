"""How the command line speaks: results on the standard output, errors and progress beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from kpipe.errors import KpipeError

USERS_MISTAKE = 2
INTERRUPTED = 130


def out() -> Console:
    """Give the console for results, which are the same whoever reads them."""
    return Console(highlight=False)


def aside() -> Console:
    """Give the console for errors, hints and progress."""
    return Console(stderr=True, highlight=False)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show the user's own mistakes as one message without a traceback, and end with status 2."""
    try:
        yield
    except KpipeError as error:
        aside().print(f"[bold red]error:[/] {escape(str(error).strip())}", soft_wrap=True)
        raise typer.Exit(USERS_MISTAKE) from None
    except KeyboardInterrupt:
        aside().print("stopped; run the same command again to continue")
        raise typer.Exit(INTERRUPTED) from None
