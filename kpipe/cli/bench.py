"""`kpipe bench`: time files in their runtimes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kpipe.cli.app import app, examples
from kpipe.cli.console import aside, out, plain_errors
from kpipe.errors import KpipeError
from kpipe.export import benchmark


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
        table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}, {runs} runs")
        for heading in ("file", "KB", "median ms", "p90 ms", "times as fast"):
            table.add_column(heading, justify="left" if heading == "file" else "right")
        for path, latency in zip(files, timed, strict=True):
            faster = timed[0].median_ms / latency.median_ms
            table.add_row(
                str(path),
                f"{path.stat().st_size / 1024:,.1f}",
                f"{latency.median_ms:.4f}",
                f"{latency.p90_ms:.4f}",
                f"{faster:.2f}",
            )
        out().print(table)
