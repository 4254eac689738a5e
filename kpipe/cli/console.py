"""How the command line speaks: results on the standard output, errors and progress beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from kpipe.errors import KpipeError

USERS_MISTAKE = 2
INTERRUPTED = 130
WIDTH = 120
"""Columns of a result that goes into a file or a pipe, where there is no terminal to ask."""


def out() -> Console:
    """Give the console for results, which are the same whoever reads them."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


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
