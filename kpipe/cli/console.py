"""How the command line speaks: results on the standard output, errors and progress beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kpipe.errors import KpipeError
from kpipe.report.details import Row
from kpipe.report.tables import is_numeric

USERS_MISTAKE = 2
INTERRUPTED = 130
WIDTH = 120
"""Columns of a result that goes into a file or a pipe, where there is no terminal to ask."""

UNBROKEN = 24
"""Columns up to which a cell of a table stays in one line."""


def out() -> Console:
    """Give the console for results, which are the same whoever reads them."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def aside() -> Console:
    """Give the console for errors, hints and progress."""
    return Console(stderr=True, highlight=False)


def as_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Lay out rows of text, columns of figures flush right; only headings and long texts wrap.

    Args:
        rows: At least one row, all with the same columns: title -> text.
        title: Stands above the table.

    Returns:
        The table.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        width = min(UNBROKEN, max(len(row[name]) for row in rows))
        justify = "right" if is_numeric(list(rows), name) else "left"
        table.add_column(name, justify=justify, min_width=width, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row.values()))
    return table


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
