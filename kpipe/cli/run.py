"""`kpipe run`: run a recipe and deliver."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from kpipe.cli.app import app, examples
from kpipe.cli.console import as_table, aside, out, plain_errors
from kpipe.cli.live import Live
from kpipe.errors import NoEffectWarning
from kpipe.recipe import load_recipe
from kpipe.report import report
from kpipe.report.tables import result_table
from kpipe.report.units import either_way, percent, points

LEFT_OUT = ("ms p90", "Seconds")
"""Columns of the report's table for which a terminal has no room."""

SHORT = {"Drop, points": "Drop", "KB gzip": "gzip", "KB zstd": "zstd"}
"""Columns that a terminal shows under shorter heads."""


@app.command(
    epilog=examples(
        "kpipe run recipes/digits.yaml",
        "kpipe run recipes/digits.yaml --output runs/digits",
        "kpipe run recipes/digits.yaml --fresh   # forget what an earlier run finished",
    )
)
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run directory. Default: exported/<name of the recipe>.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage anew.")] = False,
) -> None:
    """Run a recipe: train, prune, distil, quantize, export, measure, report.

    A run that was stopped continues where it was; a changed stage runs again, and what follows it. What an earlier run
    delivered stays until this one delivers.
    """
    with plain_errors():
        loaded = load_recipe(recipe)
        directory = output or Path("exported", loaded.name)
        with _saying_what_stays(directory), Live(aside()) as live, warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # they are among the notes
            metrics = loaded.run(directory, resume=not fresh, progress=live)
        page = report(directory)
        console = out()
        console.print(table(metrics))
        for line in closing(metrics, directory, page):
            console.print(line, markup=False, soft_wrap=True)


@contextmanager
def _saying_what_stays(directory: Path) -> Iterator[None]:
    """Say of a run that does not come to its end that what lies in its directory was delivered before it."""
    try:
        yield
    except BaseException:
        if (directory / "metrics.json").is_file():
            aside().print(
                f"nothing is delivered; the files and the report in {directory} are those of an earlier run",
                markup=False,
                soft_wrap=True,
            )
        raise


def table(metrics: Mapping[str, Any]) -> Table:
    """Lay out the report's table of results; what only the report has room for is left out."""
    rows = [{SHORT.get(name, name): row[name] for name in row if name not in LEFT_OUT} for row in result_table(metrics)]
    return as_table(rows, title=f"{metrics['name']}: test split, drop in points, files in KB and in their own runtime")


def closing(metrics: dict[str, Any], directory: Path, page: Path) -> list[str]:
    """Say what the run brought, and where it lies."""
    found = metrics["summary"]
    lines = []
    if found["smaller"] is not None:
        sizes = {"": found["smaller"], " gzipped": found["smaller_gzip"], " with zstd": found.get("smaller_zstd")}
        words = [either_way(size, "smaller", "bigger") + how for how, size in sizes.items() if size]
        words += [either_way(found["faster"], "faster", "slower")] if found["faster"] else []
        if found["accuracy_drop"] is not None:
            reached, lost = percent(found["accuracy_delivered"]), points(found["accuracy_drop"])
            words.append(f"accuracy {reached} (drop {lost} points)")
        lines.append(f"{found['file']}: {', '.join(words)}, against {found['baseline']}")
    delivered = [str(directory / file["path"]) for file in metrics["delivery"]]
    lines.append(f"delivered: {', '.join(delivered) or 'no file, as the recipe has no export stage'}")
    return [*lines, f"report:    {page}"]
