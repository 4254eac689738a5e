"""`kpipe ls`: list what kpipe knows."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from kpipe.cli.app import app, examples
from kpipe.cli.check import kinds
from kpipe.cli.console import out, plain_errors
from kpipe.data import SOURCES
from kpipe.errors import KpipeError
from kpipe.export import FORMATS
from kpipe.layers import RULES
from kpipe.patterns import PATTERNS
from kpipe.pipeline import STAGES
from kpipe.registry import Registry, nearest
from kpipe.saliency import CRITERIA
from kpipe.schedules import SCHEDULES

Rows = list[tuple[str, str]]


def first_line(item: object) -> str:
    """Give the first line of what is written about something.

    Example:
        >>> first_line(first_line)
        'Give the first line of what is written about something.'
    """
    return (inspect.getdoc(item) or "").partition("\n")[0]


def _registry(registry: Registry) -> Callable[[], Rows]:
    return lambda: [(name, first_line(registry[name])) for name in registry]


def _stages() -> Rows:
    return [(name, f"{first_line(STAGES[name])} ({kinds(STAGES[name])})") for name in STAGES]


def _layers() -> Rows:
    return [(kind.__name__, "") for kind in RULES]


def _recipes() -> Rows:
    found = sorted(Path("recipes").glob("*.yaml"))
    return [(str(path), _heading(path)) for path in found]


def _heading(path: Path) -> str:
    """Give the first sentence of the comment at a recipe's head."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#!")]
    return comments[0] if comments else str((yaml.safe_load("\n".join(lines)) or {}).get("name", ""))


LISTS: dict[str, Callable[[], Rows]] = {
    "stages": _stages,
    "criteria": _registry(CRITERIA),
    "layers": _layers,
    "schedules": _registry(SCHEDULES),
    "patterns": _registry(PATTERNS),
    "formats": _registry(FORMATS),
    "data": _registry(SOURCES),
    "recipes": _recipes,
}


@app.command("ls", epilog=examples("kpipe ls", "kpipe ls criteria", "kpipe ls stages layers"))
def ls(
    what: Annotated[list[str] | None, typer.Argument(help=f"Any of: {', '.join(LISTS)}. Default: all.")] = None,
) -> None:
    """List the stages, criteria, layers, schedules, patterns, formats, data sources and recipes that kpipe knows."""
    with plain_errors():
        for name in what or LISTS:
            if name not in LISTS:
                raise KpipeError(f"Unknown list {name!r}. Known: {', '.join(LISTS)}.{nearest(name, LISTS)}")
            rows = LISTS[name]()
            table = Table(title=name, show_header=False, title_justify="left", box=None)
            for row in rows or [("none here", "")]:
                table.add_row(*(escape(cell) for cell in row))
            out().print(table)
