"""`kpipe report`: write the report of a run anew."""

from pathlib import Path
from typing import Annotated

import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import out, plain_errors
from kpipe.report import report as write_report


@app.command(epilog=examples("kpipe report exported/digits"))
def report(run: Annotated[Path, typer.Argument(help="A run directory, such as exported/digits.")]) -> None:
    """Write report.md and report.html from what a run wrote down; nothing is measured anew."""
    with plain_errors():
        page = write_report(run)
        out().print(f"{page.with_suffix('.md')}\n{page}", markup=False, soft_wrap=True)
