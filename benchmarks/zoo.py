"""Cut filters out of every model of keras.applications, with time and peak memory.

Each model is made with random weights (biases and scales too, so that no channel is neutral; batch norms know what
comes in, as after a training, or the answers of deep models would be rounding alone) at the size that it is meant for,
in a process of its own. The first cut (half of the filters, multiples of 8, each layer alone) is timed, from the plan
to the comparison with the masked original, and its memory is measured: how much more the process held at its peak than
before the model was there, as a multiple of the model's own bytes. (A small model is a small part of it: most is
TensorFlow's and that of the maps.) Then come the other requests, on the model for images of 96 pixels a side, whose
graph is the same: ratio 0.3 and 0.5, multiples of 1 and 8, every scope. Each smaller model must pass the comparison
within 1e-4, answer bit by bit alike after `save` and `load_model`, and have a finite loss in one step of `fit`.

    python benchmarks/zoo.py                              # all of keras.applications: hours
    python benchmarks/zoo.py --more --jobs 2              # those that are not in the record yet, two at a time
    python benchmarks/zoo.py --quick                      # one of each family, the first request alone
    python benchmarks/zoo.py --only ResNet50 --only VGG16
    python benchmarks/zoo.py --table                      # the record, a row a family, as in docs/results.md

But for the quick form, what is found is kept in benchmarks/records/zoo.json, model by model, with how many were
measured beside one another: times are longer then.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import papers

RECORD = Path(__file__).parent / "records" / "zoo.json"
FIRST = (0.5, 8, "layer")
SIDE = 96
"""Pixels a side of the images for all other requests."""
BARS = {"ResNet50": {"seconds": 10.0}, "ConvNeXtXLarge": {"seconds": 120.0, "memory": 2.5}}
"""Seconds for the first cut; memory as a multiple of the model's."""
FAMILIES = (
    "VGG16 ResNet50 ResNet50V2 DenseNet121 InceptionV3 InceptionResNetV2 Xception NASNetMobile MobileNet MobileNetV2 "
    "MobileNetV3Small EfficientNetB0 EfficientNetV2B0 ConvNeXtTiny"
).split()


def names() -> list[str]:
    """List the constructors of keras.applications."""
    from keras import applications

    return sorted(name for name, value in vars(applications).items() if callable(value) and name[0].isupper())


def held() -> int:
    """Give the bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Give the most bytes that this process has held since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def forget_peak() -> None:
    """Let the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def make(name: str, **options: Any) -> Any:
    """Build a model whose channels all speak: biases and scales are random, batch norms know what comes in.

    They learn it from small images, so that the maps of large ones do not count as memory of a cut.
    """
    import keras

    model = drawn(name, **options)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        small = drawn(name, **{**options, "input_shape": options.get("input_shape", (SIDE, SIDE, 3))})
        learn_statistics(small)
        model.set_weights(small.get_weights())
    settle(model)
    return model


def drawn(name: str, **options: Any) -> Any:
    """Build a model with random weights, biases, scales and statistics."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = vars(keras.applications)[name](weights=None, **options)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance", "variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
    settle(model)
    return model


def settle(model: Any) -> None:
    """Let layers that compute with what they make of their weights make it."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def learn_statistics(model: Any, images: Any = None) -> None:
    """Let the batch norms of a model take the statistics of what comes in.

    Args:
        model: The model.
        images: What comes in. None: drawn, more of them where they are small.
    """
    import keras
    import numpy as np

    if images is None:
        size = (max(2, (384 // model.input_shape[1]) ** 2), *model.input_shape[1:])
        images = np.random.default_rng(0).uniform(0.0, 2.0, size).astype("float32")
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def used(small: Any) -> None:
    """Save, load and train a smaller model; raise a ValueError when one of these goes wrong."""
    import keras
    import numpy as np

    size = [side or 224 for side in small.input_shape[1:]]
    images = np.random.default_rng(1).normal(0.0, 1.0, (2, *size)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "small.keras")
        again: Any = keras.models.load_model(Path(folder) / "small.keras")
    if not np.array_equal(again(images, training=False), small(images, training=False)):
        raise ValueError("the saved file answers otherwise")
    small.compile("sgd", "categorical_crossentropy", run_eagerly=True)  # one step: a graph would not pay
    loss = small.fit(images, np.eye(small.output_shape[-1])[:2], batch_size=2, verbose=0).history["loss"][0]
    if not np.isfinite(loss):
        raise ValueError(f"one step of fit has the loss {loss}")


def difference(model: Any, small: Any, plan: Any) -> float:
    """Compare once more, for the number."""
    import numpy as np

    from kpipe.graph import trace
    from kpipe.structured.channels import check_removal
    from kpipe.structured.ranking import keep_of

    traced = trace(model, unknown="freeze")
    return check_removal(model, small, traced, keep_of(traced, [np.array(g.removed, int) for g in plan.groups]))


def cut(model: Any, ratio: float, round_to: int, scope: str) -> tuple[Any, Any]:
    """Plan and cut, with the comparison that goes with it; give the plan and the smaller model."""
    from kpipe.structured import plan_filters, prune_filters

    plan = plan_filters(model, ratio=ratio, round_to=round_to, scope=scope)
    return plan, prune_filters(model, plan)


def first(name: str) -> dict[str, Any]:
    """Cut a model of full size by the first request; give what it took."""
    before, start = held(), time.perf_counter()
    model = make(name)
    built = time.perf_counter()
    forget_peak()
    plan, small = cut(model, *FIRST)
    done = time.perf_counter()
    memory = (peak() - before) / sum(variable.value.numpy().nbytes for variable in model.variables)
    apart_by = difference(model, small, plan)  # before it is trained
    used(small)
    return {
        "params": model.count_params(),
        "groups": len(plan.groups),
        "build": built - start,
        "seconds": done - built,
        "memory": memory,
        "left": small.count_params() / model.count_params(),
        "difference": apart_by,
    }


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Cut one model by every request; give what the first one took and what failed."""
    from kpipe.structured.scopes import SCOPES

    requests = [] if quick else [one for one in itertools.product((0.3, 0.5), (1, 8), SCOPES) if one != FIRST]
    row, failures = first(name), {}
    model = make(name, input_shape=(SIDE, SIDE, 3)) if requests else None
    for request in requests:
        try:
            used(cut(model, *request)[1])
        except Exception as fault:
            failures[" ".join(map(str, request))] = f"{type(fault).__name__}: {fault}"[:500]
    return {"model": name, **row, "requests": 1 + len(requests), "failures": failures}


def apart(name: str, quick: bool) -> dict[str, Any]:
    """Measure a model in a process of its own."""
    command = [sys.executable, __file__, "--here", name, *(["--quick"] if quick else [])]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {
            "model": name,
            "failures": {"all": done.stderr.strip().splitlines()[-1][:500] if done.stderr else "killed"},
        }
    return json.loads(done.stdout.splitlines()[-1])


def missed(row: dict[str, Any]) -> list[str]:
    """Name the bars that a model misses."""
    bars = BARS.get(row["model"], {}) if row.get("jobs", 1) == 1 else {}
    return [f"{kind} {row[kind]:.1f} > {bar:g}" for kind, bar in bars.items() if kind in row and row[kind] > bar]


def line(row: dict[str, Any]) -> str:
    """Write a row of the table."""
    if "seconds" not in row:
        return f"{row['model']:18} {row['failures']}"
    verdict = "; ".join(missed(row) + [f"{key}: {why}" for key, why in row["failures"].items()]) or "ok"
    return (
        f"{row['model']:18} {row['params'] / 1e6:7.1f} {row['groups']:6} {row['build']:7.1f} {row['seconds']:7.1f} "
        f"{row['memory']:7.2f} {row['left']:6.1%} {row['difference']:9.1e} {row['requests']:4}  {verdict}"
    )


SIZE = r"(?<!V)\d+|Tiny|Small|Base|X?Large|Mobile$|(?<=EfficientNet)B\d|(?<=V2)[BSML]\d?$"
"""What the names of a family differ by: ResNet50 and ResNet101 are of one, ResNet50V2 is of another."""


def table(rows: list[dict[str, Any]]) -> str:
    """Write what was measured as a table of Markdown, from the least to the greatest of each family."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in [row for row in rows if "seconds" in row]:
        families.setdefault(re.sub(SIZE, "", row["model"]), []).append(row)
    columns = ("family", "models", "parameters, M", "first cut, s", "memory", "left of it, %", "apart", "requests held")
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for stem, family in sorted(families.items()):
        asked = sum(row["requests"] for row in family)
        held = asked - sum(len(row["failures"]) for row in family)
        cells = [
            span(family, "params", "{:.1f}", 1e-6),
            span(family, "seconds", "{:.1f}"),
            span(family, "memory", "{:.1f}"),
        ]
        cells += [
            span(family, "left", "{:.0f}", 100),
            f"{max(row['difference'] for row in family):.0e}".replace("0e+00", "0"),
        ]
        lines.append(f"| {stem} | {len(family)} | {' | '.join(cells)} | {held} of {asked} |")
    return "\n".join(lines)


def span(rows: list[dict[str, Any]], key: str, written: str, scale: float = 1.0) -> str:
    """Write the least and the greatest of a figure."""
    least, greatest = (written.format(scale * end(row[key] for row in rows)) for end in (min, max))
    return least if least == greatest else f"{least} – {greatest}"


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a model; may be given several times")
    parser.add_argument("--more", action="store_true", help="what the record does not hold yet")
    parser.add_argument("--quick", action="store_true", help="one of each family, one request")
    parser.add_argument("--jobs", type=int, default=1, choices=range(1, 65), metavar="N", help="models at a time")
    parser.add_argument("--table", action="store_true", help="print the record, a row a family")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.quick)))
        return
    if options.table:
        print(table(json.loads(RECORD.read_text())))
        return
    head = ("model", "params", "groups", "build s", "cut s", "memory", "left", "differs", "done")
    print("{:18} {:>7} {:>6} {:>7} {:>7} {:>7} {:>6} {:>9} {:>4}".format(*head))
    rows = {}
    if RECORD.exists() and not options.quick:
        rows = {row["model"]: row for row in json.loads(RECORD.read_text())}
    asked = options.only or (FAMILIES if options.quick else names())
    left = [name for name in asked if not (options.more and "seconds" in rows.get(name, {}))]
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(apart, name, options.quick) for name in left]):
            row = done.result()
            name = row["model"]
            rows[name] = row | {"jobs": options.jobs}
            print(line(rows[name]), flush=True)
            if not options.quick:
                papers.keep(RECORD, list(rows.values()))
    if any(rows[name]["failures"] or missed(rows[name]) for name in asked):
        sys.exit(1)


if __name__ == "__main__":
    main()
