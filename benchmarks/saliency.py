"""Time to score 25 million weights by every criterion, beside np.abs.

A net of four dense layers (25 M weights, float32) on random images of ten classes. Three times a criterion: the pass
over the data, the weights' own values taken out of the model, and the scores, checked to be finite. Only the first
depends on the data; the bar of 10 seconds is on the two others together. The peer is `np.abs` over the same arrays,
which is the least that any criterion has to do. Scores are the best of the repeats, passes are done once.

    python benchmarks/saliency.py            # 25 M weights, 64 samples: about ten minutes on 2 cores, 2 GB
    python benchmarks/saliency.py --quick    # 1 M weights, 8 samples
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.saliency import CRITERIA, Evidence, gather, score
from kpipe.saliency.evidence import fields_of

RESULTS = Path(__file__).parent / "results" / "saliency.json"
LAYERS, CLASSES = 4, 10
BAR = 10.0
"""Seconds for everything but the pass over the data."""


def net(weights: int) -> keras.Model:
    """Build four square dense layers of so many weights together, and a last one for ten classes."""
    keras.utils.set_random_seed(0)
    width = round((weights / LAYERS) ** 0.5)
    inputs = x = keras.Input((width,))
    for _ in range(LAYERS):
        x = keras.layers.Dense(width, activation="relu", use_bias=False)(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, use_bias=False)(x))


def timed(function: Any, repeats: int = 1) -> tuple[float, Any]:
    """Call a function; give the seconds of the fastest call and what the last one gave."""
    seconds, found = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        found = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def scored(function: Any, evidence: dict[str, Evidence]) -> None:
    """Score one weight after the other, as a pruning does, and let the scores go."""
    for path, known in evidence.items():
        if score(function, known, path) is None:
            raise ValueError(f"{path} was not judged")


def measure(weights: int, samples: int, repeats: int) -> list[dict[str, Any]]:
    """Time every criterion, then np.abs."""
    model = net(weights)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, model.inputs[0].shape[1]), dtype="float32")
    data, loss = (x, rng.integers(0, CLASSES, samples)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    named = [(variable.path, "kernel", variable) for variable in model.weights]
    count = sum(int(np.prod(variable.shape)) for variable in model.weights)
    trained = {path: {"movement": np.ones(variable.shape, "float32")} for path, _, variable in named}
    take, plain = timed(lambda: gather(model, named), repeats)
    rows = []
    for name in CRITERIA:
        needs = fields_of(CRITERIA.facts(name)["needs"])
        whole, evidence = timed(lambda needs=needs: gather(model, named, needs, data, loss, observed=trained))
        seconds, _ = timed(lambda name=name, found=evidence: scored(CRITERIA[name], found), repeats)
        passes = [field for field in needs if field != "movement"]
        rows.append(
            {
                "criterion": name,
                "looks at": ", ".join(needs),
                "pass": whole - take if passes else None,
                "samples": samples if passes else None,
                "weights": take,
                "scores": seconds,
                "a second": count / seconds,
                "within the bar": take + seconds < BAR,
            }
        )
        print(f"{name}: {take + seconds:.2f} s beyond the data", flush=True)
    seconds, _ = timed(lambda: [np.abs(known.weight) for known in plain.values()], repeats)
    rows.append({"criterion": "np.abs (peer)", "scores": seconds, "a second": count / seconds})
    return rows


def show(rows: list[dict[str, Any]], weights: int) -> None:
    """Print one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Scores of {weights / 1e6:g} M weights: seconds")
    for column in ("criterion", "looks at", "samples", "pass", "weights", "scores", "M weights a second"):
        table.add_column(column, justify="left" if column in ("criterion", "looks at") else "right")
    for row in rows:
        passed = ("", "") if row.get("pass") is None else (str(row["samples"]), f"{row['pass']:.2f}")
        taken = "" if "weights" not in row else f"{row['weights']:.3f}"
        rate = f"{row['a second'] / 1e6:.0f}"
        table.add_row(row["criterion"], row.get("looks at", ""), *passed, taken, f"{row['scores']:.3f}", rate)
    Console().print(table)
    late = [row["criterion"] for row in rows if not row.get("within the bar", True)]
    print(f"Bar of {BAR:g} s beyond the pass: " + (f"missed by {', '.join(late)}." if late else "met by all."))


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--samples", type=int, default=64, help="samples of each pass over the data")
    parser.add_argument("--repeats", type=int, default=5, help="of the scores; the fastest counts")
    parser.add_argument("--quick", action="store_true", help="1 M weights, 8 samples, 2 repeats")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.weights, arguments.samples, arguments.repeats = 1_000_000, 8, 2
    rows = measure(arguments.weights, arguments.samples, arguments.repeats)
    show(rows, arguments.weights)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"weights": arguments.weights, "samples": arguments.samples, "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
