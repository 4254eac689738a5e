"""`kpipe bench`: time files in their runtimes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import as_table, aside, out, plain_errors
from kpipe.errors import KpipeError
from kpipe.export import Latency, benchmark
from kpipe.report.details import Row
from kpipe.report.units import kilobytes, milliseconds, times


@app.command(
    epilog=examples(
        "kpipe bench exported/digits/digits.tflite",
        "kpipe bench exported/digits/01-train/model.tflite exported/digits/digits.tflite --threads 2 --runs 200",
    )
)
def bench(
    files: Annotated[list[Path], typer.Argument(help=".tflite and .onnx files; they take turns in one process.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each file.")] = 100,
) -> None:
    """Time one or several files on one sample; with several, each is also compared with the first."""
    with plain_errors():
        for path in files:
            if not path.is_file():
                raise KpipeError(f"There is no file {path} (looked in {path.resolve().parent}).")
        with aside().status("timing"):
            timed = benchmark(files, threads=threads, runs=runs)
        out().print(as_table(rows(files, timed), title=f"{threads} thread{'s' if threads > 1 else ''}, {runs} runs"))


def rows(files: Sequence[Path], timed: Sequence[Latency]) -> list[Row]:
    """Give a row a file: its size, its times, and how many times as fast as the first one it is.

    Args:
        files: The files.
        timed: The latency of each.

    Returns:
        The rows: column title -> text.
    """
    return [
        {
            "File": str(path),
            "KB": kilobytes(path.stat().st_size),
            "ms": milliseconds(latency.median_ms),
            "ms p90": milliseconds(latency.p90_ms),
            "Faster": times(timed[0].median_ms / latency.median_ms),
        }
        for path, latency in zip(files, timed, strict=True)
    ]
