"""A ResNet-20 on CIFAR-10 with 2, 2.5 and 4 times fewer multiply-accumulates, beside two floors.

The network is trained by the first stage of `recipes/cifar10.yaml`; then every way cuts it and trains what is left for
as long, by the recipe's second stage, and rounds it to int8 by the third:

- kpipe: the recipe's own: Taylor scores, all layers ranked together, taught by the network as it was;
- l1: each layer loses the same share of its channels, those of lowest L1 norm, in one shot, without a teacher;
- random: half of the channels of each layer, at random, without a teacher.

Accuracy is that of the exported files, in LiteRT. Their latency is taken at the end, of networks with as many
channels, in turns: it does not depend on the weights, and rows that were made on different days compare. The anchor is
Torch-Pruning's ResNet-56 on the whole of CIFAR-10: 0.11 points better at 2.57 times fewer MACs (Fang et al., DepGraph,
2023).

    KPIPE_DATA=folder-of-cifar10.npz python benchmarks/cifar.py --seeds 0 1   # hours on 2 cores
    KPIPE_DATA=folder-of-cifar10.npz python benchmarks/cifar.py --seeds 0 --ways "kpipe 2.5x" "l1 2.5x"
    KPIPE_DATA=folder-of-cifar10.npz python benchmarks/cifar.py --quick       # minutes; its figures mean nothing

Every finished stage is kept in benchmarks/results/, so that a run that was broken off goes on where it was. The trained
networks and the figures of what is finished are kept in benchmarks/records/.
"""

import argparse
import copy
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import papers
import yaml

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10.yaml"
FLOOR = {"scope": "layer", "normalise": None, "max_ratio": None, "distill": None}
WAYS = {
    **{f"kpipe {factor:g}x": {"target": {"macs": 1 / factor}} for factor in (2.5, 2.0, 4.0)},
    "l1 2.5x": {"target": {"macs": 0.4}, "criterion": "l1", **FLOOR},
    "random half": {"target": None, "ratio": 0.5, "criterion": "random", **FLOOR},
}
"""Name -> what differs from the recipe's second stage."""


def shortened(document):
    """Leave of a recipe what shows that it runs; a network that has hardly trained cannot be rounded to int8."""
    document = copy.deepcopy(document)
    document["stages"] = [stage for stage in document["stages"] if stage["stage"] != "quantize"]
    document["data"]["limit"] = 256
    for stage in document["stages"]:
        if "epochs" in stage:
            stage["epochs"] = 1
    return document


def measured(document, folder):
    """Run a recipe; give its stages with their figures."""
    from kpipe.recipe import parse_recipe

    print(f"{folder.name} of {folder.parent.name} ...", flush=True)
    return parse_recipe(document, RECIPE.parent).run(folder)["stages"]


def of_seed(document, seed, folder, record, ways=tuple(WAYS)):
    """Cut the network of one seed in some ways, and give a row for each that is known; the record is kept row by row.

    The trained network is kept beside the record: it takes the longest to make. Without it all rows are made anew.
    """
    kept = folder / "trained.keras" if record is None else record.with_suffix(".keras")
    rows = json.loads(record.read_text()) if kept.exists() and record is not None and record.exists() else {}
    train, prune, *further = copy.deepcopy(document["stages"])
    further[-1] |= {"formats": ["tflite"], "max_accuracy_drop": None}
    head = {key: value for key, value in document.items() if key != "stages"} | {"seed": seed}
    if not kept.exists():
        (base,) = measured({**head, "name": "base", "stages": [train]}, folder / "base")
        keep_network(folder / "base" / base["name"] / "model.keras", kept)
    for way in (way for way in ways if way not in rows):
        stage = {key: value for key, value in {**prune, **WAYS[way]}.items() if value is not None}
        model = {"load": str(kept.resolve())}
        name = way.replace(" ", "_")
        found = measured({**head, "name": name, "model": model, "stages": [stage, *further]}, folder / name)
        base, by_stage = found[0], {one["stage"]: one for one in found}
        rows.setdefault("trained", row(base, base, None))
        rows[way] = row(base, by_stage["prune_filters"], by_stage.get("quantize"))
        if record is not None:
            papers.keep(record, rows)
    return {way: rows[way] for way in ("trained", *WAYS) if way in rows}


def keep_network(path, kept):
    """Store a network without what its training needs."""
    import keras

    kept.parent.mkdir(parents=True, exist_ok=True)
    network: Any = keras.models.load_model(path, compile=False)
    network.save(kept)


def row(base, cut, quantized):
    """Read the figures of one way."""
    plan = cut["details"].get("plan", {"groups": ()})
    return {
        "times fewer MACs": base["measure"]["macs"] / cut["measure"]["macs"],
        "params": cut["measure"]["params"],
        "kept": {group["name"]: group["channels"] - len(group["removed"]) for group in plan["groups"]},
        "float": accuracy(cut),
        "int8": None if quantized is None else accuracy(quantized),
    }


def accuracy(stage):
    """Read the accuracy of a stage's file, in per cent."""
    (file,) = [file for file in stage["files"] if file["format"] == "tflite"]
    return 100 * file["accuracy"]


def timed(rows):
    """Time a float and an int8 network with the channels of each row, all in turns: way -> their milliseconds."""
    import numpy as np

    import kpipe
    from kpipe.models import resnet

    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype("float32")
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(rows.values()):
            model = narrowed(kpipe, resnet((32, 32, 3), 10), one["kept"])
            for kind, network in (("float", model), ("int8", kpipe.quantize(model, calibration=images))):
                files.append(kpipe.export(network, Path(folder) / f"{number}_{kind}.tflite"))
        medians = [found.median_ms for found in kpipe.benchmark(files, runs=200)]
    return dict(zip(rows, zip(medians[::2], medians[1::2], strict=True), strict=True))


def narrowed(kpipe, model, kept):
    """Cut a network to so many channels a group, whichever they are."""
    if not kept:
        return model
    plan = kpipe.plan_filters(model, ratio=0.5, criterion="random")
    groups = [dataclasses.replace(one, removed=tuple(range(one.channels - kept[one.name]))) for one in plan.groups]
    return kpipe.prune_filters(model, dataclasses.replace(plan, groups=tuple(groups)))


def show(results):
    """Print the means over the seeds."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ResNet-20 on CIFAR-10, {len(results)} seeds, files in LiteRT, one thread")
    columns = ("", "seeds", "times fewer MACs", "params", "float", "points lost", "ms", "int8", "points lost", "ms")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    milliseconds = [timed(rows) for rows in results]
    for way in ("trained", *WAYS):
        known = [number for number, rows in enumerate(results) if way in rows]
        if not known:
            continue
        rows = [results[number][way] for number in known]
        cells = [way, str(len(rows)), papers.spread([one["times fewer MACs"] for one in rows])]
        cells.append(f"{sum(one['params'] for one in rows) / len(rows):,.0f}")
        for place, kind in enumerate(("float", "int8")):
            if rows[0][kind] is None:
                cells += ["", "", ""]
                continue
            lost = [results[number]["trained"]["float"] - results[number][way][kind] for number in known]
            mean = sum(milliseconds[number][way][place] for number in known) / len(known)
            cells += [papers.spread([one[kind] for one in rows]), papers.spread(lost), f"{mean:.3f}"]
        table.add_row(*cells)
    Console(width=140).print(table)


def main():
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="networks to train and cut")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="ways to cut them")
    parser.add_argument("--quick", action="store_true", help="one epoch of a few images")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    document = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    document = shortened(document) if arguments.quick else document
    place = papers.folder("cifar", {"recipe": document, "ways": WAYS})
    results = []
    for seed in arguments.seeds:
        record = None if arguments.quick else papers.RECORDS / "cifar" / f"{place.name}_seed{seed}.json"
        results.append(of_seed(document, seed, place / f"seed{seed}", record, arguments.ways))
    show(results)


if __name__ == "__main__":
    main()
