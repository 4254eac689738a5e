"""Time and memory of one ranking over 100 million weights, beside np.sort and np.partition.

The weights are those of several arrays, float32: normal ones, ones with few different values (int8 codes), and ones of
which 70 % have been dropped before. kpipe gives keep-masks with the exact count; the peers give the threshold and
compare, which drops ties too many or too few. Peers and kpipe take turns; each figure is the best of the repeats. The
memory is the peak of what NumPy holds beside the weights, masks included (tracemalloc), over the bytes of the weights.

    python benchmarks/ranking.py            # 100 M entries: about two minutes on 2 cores, 2 GB
    python benchmarks/ranking.py --quick    # 5 M entries
"""

import argparse
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kpipe.patterns import drop_count, keep_highest, keep_masks

RESULTS = Path(__file__).parent / "results" / "ranking.json"
SHARES = (0.38, 0.25, 0.16, 0.12, 0.06, 0.03)
"""Sizes of the arrays as shares of all entries."""

SPARSITY = 0.9
Arrays = list[np.ndarray]


def arrays(kind: str, entries: int) -> Arrays:
    """Draw seeded scores, shape (inputs, 256) each."""
    rng = np.random.default_rng(0)
    found = []
    for number, share in enumerate(SHARES):
        shape = (max(8, int(share * entries) // 256), 256)
        values = np.abs(rng.standard_normal(shape, dtype="float32")) * (1 + number)
        if kind == "few values":
            values = np.round(values * 16).clip(0, 127)
        if kind == "70 % dropped":
            values[rng.random(shape, dtype="float32") < 0.7] = -np.inf
        found.append(values)
    return found


def by_sort(given: Arrays, drop: int) -> Arrays:
    """Sort everything, compare with the threshold."""
    threshold = np.sort(np.concatenate([values.ravel() for values in given]))[drop - 1]
    return [values > threshold for values in given]


def by_partition(given: Arrays, drop: int) -> Arrays:
    """Partition everything, compare with the threshold."""
    threshold = np.partition(np.concatenate([values.ravel() for values in given]), drop - 1)[drop - 1]
    return [values > threshold for values in given]


def ranked(scope: str, pattern: str) -> Callable[[Arrays, int], Arrays]:
    """Give what kpipe does for a scope and a pattern."""

    def rank(given: Arrays, drop: int) -> Arrays:
        scores = {str(number): values for number, values in enumerate(given)}
        return list(keep_masks(scores, drop / sum(values.size for values in given), scope, pattern).values())

    return rank


WAYS: dict[str, Callable[[Arrays, int], Arrays]] = {
    "kpipe": keep_highest,
    "np.partition": by_partition,
    "np.sort": by_sort,
}
PATTERNS = {f"kpipe, {pattern}, {scope}": ranked(scope, pattern) for pattern, scope in (
    ("unstructured", "layer"), ("unstructured", "global:mean"), ("unstructured", "global:lamp"),
    ("block:4x1", "layer"), ("block:4x4:max", "global"), ("2:4", "layer"), ("2:4", "global"),
)}  # fmt: skip


def measure(
    ways: dict[str, Callable[[Arrays, int], Arrays]], given: Arrays, drop: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Let the ways take turns; give name -> seconds, memory over the weights' own, and how many entries went."""
    size, bytes_ = sum(values.size for values in given), sum(values.nbytes for values in given)
    rows: dict[str, dict[str, float]] = {name: {"seconds": float("inf")} for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            keeps = way(given, drop)
            rows[name]["seconds"] = min(rows[name]["seconds"], time.perf_counter() - begin)
            rows[name]["dropped"] = size - sum(int(np.count_nonzero(keep)) for keep in keeps)
            del keeps
    for name, way in ways.items():
        tracemalloc.start()
        way(given, drop)
        rows[name]["memory"] = tracemalloc.get_traced_memory()[1] / bytes_
        tracemalloc.stop()
    return rows


def show(results: dict[str, dict[str, dict[str, float]]], entries: int) -> None:
    """Print one table for all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Keep-masks of {entries:,} float32 scores")
    for column in ("scores", "way", "seconds", "memory / weights", "dropped"):
        table.add_column(column, justify="left" if column in ("scores", "way") else "right")
    for kind, rows in results.items():
        for name, row in rows.items():
            table.add_row(kind, name, f"{row['seconds']:.2f}", f"{row['memory']:.2f}", f"{int(row['dropped']):,}")
        table.add_section()
    Console().print(table)


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000_000, help="weights in all")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--quick", action="store_true", help="5 million entries, one turn")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.entries, arguments.repeats = 5_000_000, 1
    results = {}
    for kind in ("normal", "few values", "70 % dropped"):
        given = arrays(kind, arguments.entries)
        drop = drop_count(sum(values.size for values in given), SPARSITY)
        results[kind] = measure(WAYS, given, drop, arguments.repeats)
    given = arrays("normal", arguments.entries)
    half = drop_count(sum(values.size for values in given), 0.5)
    results["normal, half"] = measure(PATTERNS, given, half, 1)
    show(results, sum(values.size for values in given))
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        record = {"entries": arguments.entries, "repeats": arguments.repeats, "cores": os.cpu_count()}
        RESULTS.write_text(json.dumps({**record, "sparsity": SPARSITY, "results": results}, indent=1) + "\n")
        print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
