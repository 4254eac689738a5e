"""`kpipe bench`: time files in their runtimes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import as_table, aside, out, plain_errors
from kpipe.errors import KpipeError
from kpipe.export import Comparison, Latency, benchmark, compare_latencies
from kpipe.export.layout import shortened
from kpipe.export.sizes import sizes_at_once
from kpipe.report.details import Row
from kpipe.report.units import DASH, kilobytes, milliseconds, plain, share, times


@app.command(
    epilog=examples(
        "kpipe bench exported/digits/digits.tflite",
        "kpipe bench exported/digits/01-train/model.tflite exported/digits/digits.tflite --threads 2 --runs 200",
        "kpipe bench exported/digits/digits.tflite --engine litert --engine litert_builtin --per-op",
        "kpipe bench autoencoder.tflite --signature decode",
        "kpipe bench before.tflite after.tflite after.onnx --compare --json",
    )
)
def bench(
    files: Annotated[list[Path], typer.Argument(help=".tflite and .onnx files; they take turns in one process.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each file.")] = 100,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="An engine of `kpipe ls engines`; several take turns. Without: that of a file's format."),
    ] = None,
    cold: Annotated[bool, typer.Option(help="Measure start and memory too, in processes of their own.")] = True,
    per_op: Annotated[bool, typer.Option("--per-op", help="Time each operation too.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Give ratios to the first file, and compare outputs on random inputs.")
    ] = False,
    signature: Annotated[str | None, typer.Option(help="Which signature to run, for files of several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Time one or several files on one sample; with several, each is also compared with the first.

    "load" and "first" are the milliseconds in which a process that has just started loads the file and gives its first
    answer; "MB" is by how much its memory rises at most meanwhile.
    """
    with plain_errors():
        for path in files:
            if not path.is_file():
                raise KpipeError(f"There is no file {path} (looked in {path.resolve().parent}).")
        with aside().status("timing"):
            how = {"engine": engine or None, "cold": cold, "per_op": per_op, "signature": signature}
            timed = benchmark(files, threads=threads, runs=runs, **how)
            compared = compare_latencies(timed) if compare else []
        if as_json:
            out().print(as_text(timed, compared), markup=False, soft_wrap=True)
            return
        out().print(as_table(rows(timed), title=f"{threads} thread{'s' if threads > 1 else ''}, {runs} runs"))
        if compare:
            out().print(as_table(ratios(compared), title=f"compared with {files[0]}"))
        for latency in timed if per_op else []:
            out().print(as_table(operations(latency), title=f"{latency.path} in {latency.engine}"))


def as_text(timed: Sequence[Latency], compared: Sequence[Comparison]) -> str:
    """Write latencies, and comparisons where there are some, as JSON.

    Args:
        timed: The latencies.
        compared: The comparisons.
    """
    sizes = weighed(timed)
    plain_data: dict[str, Any] = {"files": [{**latency.to_dict(), **sizes[latency.path]} for latency in timed]}
    if compared:
        plain_data["compared"] = [comparison.to_dict() for comparison in compared]
    return json.dumps(plain_data, indent=2)


def weighed(timed: Sequence[Latency]) -> dict[Path, dict[str, int | None]]:
    """Give the size of each file as it is and compressed, once, in however many engines it was timed."""
    names = ("bytes", "gzip_bytes", "zstd_bytes")
    paths = dict.fromkeys(latency.path for latency in timed)
    return {path: dict(zip(names, sizes_at_once(path.read_bytes()), strict=True)) for path in paths}


def rows(timed: Sequence[Latency]) -> list[Row]:
    """Give a row a file: its size as it is and compressed, its times, and how many times as fast as the first it is.

    Args:
        timed: The latency of each.

    Returns:
        The rows: column title -> text.
    """
    found = []
    sizes = weighed(timed)
    for latency in timed:
        weight = sizes[latency.path]
        row = {
            "File": named(latency.path, latency.signature),
            "Engine": latency.engine,
            "KB": kilobytes(weight["bytes"]),
            "gzip": kilobytes(weight["gzip_bytes"]),
            "zstd": kilobytes(weight["zstd_bytes"]),
            "ms": milliseconds(latency.median_ms),
            "ms p90": milliseconds(latency.p90_ms),
            "Faster": times(timed[0].median_ms / latency.median_ms),
        }
        if latency.cold is not None:
            peak = latency.cold.peak_bytes
            row["load"], row["first"] = milliseconds(latency.cold.load_ms), milliseconds(latency.cold.first_ms)
            row["MB"] = kilobytes(None if peak is None else peak / 1000)
        found.append(row)
    return found


def named(path: Path, signature: str | None) -> str:
    """Name a file, and which of its signatures was run.

    Args:
        path: The file.
        signature: The signature; None where none was asked for.
    """
    return str(path) if signature is None else f"{path} ({signature})"


def ratios(compared: Sequence[Comparison]) -> list[Row]:
    """Give a row a file: its ratios to the first one, and how its outputs differ.

    Args:
        compared: The comparisons.

    Returns:
        The rows: column title -> text.
    """
    return [
        {
            "File": named(one.path, one.signature),
            "Engine": one.engine,
            "Size": times(one.size_ratio),
            "Faster": times(one.speedup),
            "from": times(one.speedup_low),
            "to": times(one.speedup_high),
            "Outputs differ": one.why_not or plain(one.max_relative_error),
            "Same argmax": DASH if one.argmax_agreement is None else share(one.argmax_agreement),
        }
        for one in compared
    ]


def operations(latency: Latency) -> list[Row]:
    """Give a row an operation: its time and its share.

    Args:
        latency: A latency with the times of the operations.

    Returns:
        The rows: column title -> text.
    """
    return [
        {
            "#": str(n),
            "Operation": one.name,
            "Name": shortened(one.scope),
            "ms": milliseconds(one.ms),
            "Share": share(one.share),
        }
        for n, one in enumerate(latency.operations, start=1)
    ]
