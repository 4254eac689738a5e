"""`kpipe run`: run a recipe and deliver."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from kpipe.cli.app import app, examples
from kpipe.cli.console import aside, out, plain_errors
from kpipe.cli.live import Live
from kpipe.errors import NoEffectWarning
from kpipe.recipe import load_recipe
from kpipe.report import report


@app.command(
    epilog=examples(
        "kpipe run recipes/digits.yaml",
        "kpipe run recipes/digits.yaml --output /tmp/digits",
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

    A run that was stopped continues where it was; a changed stage runs again, and what follows it.
    """
    with plain_errors():
        loaded = load_recipe(recipe)
        directory = output or Path("exported", loaded.name)
        with Live(aside()) as live, warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # they are among the notes
            metrics = loaded.run(directory, resume=not fresh, progress=live)
        page = report(directory)
        console = out()
        console.print(table(metrics))
        for line in closing(metrics, directory, page):
            console.print(line, markup=False, soft_wrap=True)


def table(metrics: dict[str, Any]) -> Table:
    """Lay out a run's figures, a row a stage, sizes and latencies of its first file."""
    made = Table(title=f"{metrics['name']}: test split, files in their own runtime")
    for heading in ("stage", "accuracy", "params", "nonzeros", "MACs", "file", "KB", "gzip KB", "latency ms"):
        made.add_column(heading, justify="left" if heading in ("stage", "file") else "right", no_wrap=True)
    for entry in metrics["stages"]:
        files = entry["files"] if entry["artifact"]["kind"] == "file" else entry["files"][:1]
        for index, file in enumerate(files):
            counted = entry["measure"] if index == 0 else {}
            made.add_row(
                entry["name"] if index == 0 else "",
                _number(file["accuracy"], "{:.4f}"),
                *(_number(counted.get(key), "{:,}") for key in ("params", "nonzeros", "macs")),
                f"{file['format']} {file['precision']}",
                _number(file["bytes"] / 1024, "{:,.1f}"),
                _number(file["gzip_bytes"] / 1024, "{:,.1f}"),
                _number(file["latency"]["median_ms"], "{:.4f}"),
            )
    return made


def closing(metrics: dict[str, Any], directory: Path, page: Path) -> list[str]:
    """Say what the run brought, and where it lies."""
    found = metrics["summary"]
    lines = []
    if found["smaller"] is not None:
        words = [f"{found['smaller']:.1f} times smaller", f"{found['smaller_gzip']:.1f} times smaller gzipped"]
        words += [f"{found['faster']:.1f} times faster"] if found["faster"] else []
        if found["accuracy_drop"] is not None:
            points = 0.0 - round(100 * found["accuracy_drop"], 2)  # never "-0.00"
            words.append(f"accuracy {found['accuracy_delivered']:.4f} ({points:+.2f} points)")
        lines.append(f"{found['file']}: {', '.join(words)}, against {found['baseline']}")
    delivered = [str(directory / file["path"]) for file in metrics["delivery"]]
    lines.append(f"delivered: {', '.join(delivered) or 'no file, as the recipe has no export stage'}")
    return [*lines, f"report:    {page}"]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
