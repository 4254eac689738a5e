"""Zeros and clusters kept through quantization-aware training: a DS-CNN on spoken digits, in TFMOT's form of table.

The network is trained by the first stage of `recipes/spoken_digits_pcqat.yaml`. Its stages are then left out in all
the ways that compare: float, rounded after the training (PTQ) and trained on with the rounding (QAT), each of the net
as it was trained, with half of the weights pruned (QAT is then PQAT), and pruned and clustered (PCQAT). Accuracy is
that of the stage's file on the 300 test recordings, of which one is 0.33 points; *gzip* is the file as a download.

    KPIPE_DATA=folder-of-spoken_digits_logmel.npz python benchmarks/pqat.py --seeds 0 1
    KPIPE_DATA=folder-of-spoken_digits_logmel.npz python benchmarks/pqat.py --quick    # a minute; means nothing

Every finished stage is kept in benchmarks/results/, so that a run that was broken off goes on where it was, and the
figures of finished seeds in benchmarks/records/; a record is made anew where the recipe has changed.

Reference: TFMOT's own table for its DS-CNN-L of 50 % sparsity, on speech commands: 95.23 % in float, 94.80 % pruned;
int8 by PTQ 94.48 % (434,879 bytes zipped), pruned and PTQ 93.80 % (334,154), QAT 94.72 % (403,261), PQAT 94.13 %
(303,997).
"""

import argparse
import copy
import json
import os
import shutil
from pathlib import Path

import papers
import yaml

RECIPE = Path(__file__).parents[1] / "recipes" / "spoken_digits_pcqat.yaml"
CHAINS = {"as trained": 1, "pruned": 2, "pruned, clustered": 3}
"""Name -> how many of the recipe's stages come before the rounding."""
NAMES = {"as trained": "QAT", "pruned": "PQAT", "pruned, clustered": "PCQAT"}


def shortened(document):
    """Leave of a recipe what shows that it runs."""
    document["data"]["limit"] = 128
    for stage in document["stages"]:
        stage |= {"epochs": 1} if "epochs" in stage else {"max_accuracy_drop": None}
    return document


def measured(document, folder, earlier):
    """Run some stages of the recipe; the first that an earlier run had too are taken over."""
    from kpipe.recipe import parse_recipe

    for other, stages in earlier:
        for index, (one, same) in enumerate(zip(document["stages"], stages, strict=False), 1):
            name = f"{index:02d}-{one['stage']}"
            if one != same:
                break
            if (other / name).is_dir() and not (folder / name).exists():
                shutil.copytree(other / name, folder / name)
    earlier.append((folder, document["stages"]))
    print(f"{folder.parent.name}, {folder.name} ...", flush=True)
    return parse_recipe(document, RECIPE.parent).run(folder)["stages"]


def of_seed(document, seed, folder, record):
    """Give a row for each net and each way to round it."""
    found = json.loads(record.read_text()) if record is not None and record.exists() else {}
    if found.get("recipe") == document["stages"]:
        return found["rows"]
    *stages, quantize, export = document["stages"]
    once = {key: value for key, value in quantize.items() if key not in ("batch_size", "optimizer")} | {"epochs": 0}
    rows, earlier = {}, []
    for name, count in CHAINS.items():
        rows[name] = {}
        for way, last in (("PTQ", once), ("QAT", quantize)):
            chain = {**copy.deepcopy(document), "seed": seed}
            chain["stages"] = [*stages[:count], last, export | {"max_accuracy_drop": None}]
            entries = measured(chain, folder / f"{count}_{way}", earlier)
            rows[name]["float"], rows[name][way] = row(entries[count - 1]), row(entries[count])
    if record is not None:
        papers.keep(record, {"recipe": document["stages"], "rows": rows})
    return rows


def row(entry):
    """Read the figures of a stage: of its files, and the zeros of its kernels."""
    files = {file["format"]: file for file in entry["files"]}
    figures = {name: {key: file[key] for key in ("accuracy", "bytes", "gzip_bytes")} for name, file in files.items()}
    return {**figures, "zeros": entry["measure"]["sparsity"]}


def show(seeds):
    """Print the means over the seeds."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"DS-CNN on spoken digits, {len(seeds)} seeds, accuracy of the files in per cent")
    for column in ("", "", "LiteRT", "onnxruntime", "zeros %", ".tflite KB", "gzip", ".onnx gzip"):
        table.add_column(column, justify="right" if column else "left")
    for name in CHAINS:
        for way in ("float", "PTQ", "QAT"):
            rows = [rows[name][way] for rows in seeds]
            cells = [papers.spread(100 * row[kind]["accuracy"] for row in rows) for kind in ("tflite", "onnx")]
            cells.append(f"{100 * sum(row['zeros'] for row in rows) / len(rows):.1f}")
            for kind, key in (("tflite", "bytes"), ("tflite", "gzip_bytes"), ("onnx", "gzip_bytes")):
                cells.append(f"{sum(row[kind][key] for row in rows) / len(rows) / 1000:.1f}")
            table.add_row(name if way == "float" else "", NAMES[name] if way == "QAT" else way, *cells)
        table.add_section()
    Console(width=110).print(table)


def main():
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true", help="one epoch of a few recordings")
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    document = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    document = shortened(document) if asked.quick else document
    place = papers.folder("pqat", {"recipe": document})
    results = []
    for seed in [0] if asked.quick else asked.seeds:
        record = None if asked.quick else papers.RECORDS / "pqat" / f"seed{seed}.json"
        results.append(of_seed(document, seed, place / f"seed{seed}", record))
    show(results)


if __name__ == "__main__":
    main()
