"""A wake-word network of another project, from its Keras 2 file to int8 files that answer alike.

The streaming wake-word network of MLPerf Tiny (47,707 parameters) is read from the `.h5` file in which its authors
published it, which Keras 3 refuses. It is quantized without any training, with the 45 samples by which they
calibrated it, and exported as float32, int8 and int8_dynamic (whole weights, activations in float) to both formats.
Every file then answers the 45 samples in its own runtime. "as Keras" counts the samples in which the file's answer is
that of the Keras model in float32. Latency is taken of all files in turns.

    KPIPE_DATA=folder-of-the-files python benchmarks/wake_word.py
    python benchmarks/wake_word.py --quick    # few timings; the other figures are the same

The table's rows are kept in benchmarks/records/wake_word.json.
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path

import papers

OLD, SAMPLES = "sww_streaming_wakeword_keras2.h5", "sww_samples.npz"
RECORD = papers.RECORDS / "wake_word.json"


def folder():
    """Give the folder with the files."""
    named = Path(os.environ.get("KPIPE_DATA", "."))
    missing = [name for name in (OLD, SAMPLES) if not (named / name).is_file()]
    if missing:
        raise SystemExit(f"{named} has no {' and no '.join(missing)}. Name their folder in KPIPE_DATA.")
    return named


def chosen(path, x):
    """Give the class that a file chooses for each sample."""
    import numpy as np

    from kpipe.export import load_runtime

    with load_runtime(path) as runtime:
        return np.concatenate([runtime.run([one[None]])[0] for one in x]).argmax(-1)


def measured(into, runs):
    """Load, quantize, export, run: a row for the Keras model and for each file."""
    import numpy as np

    import kpipe

    with np.load(folder() / SAMPLES) as held:
        x, y = held["x"], held["y"]
    model = kpipe.legacy.load(folder() / OLD)
    networks = {"float32": model, "int8": kpipe.quantize(model, calibration=x)}
    networks["int8_dynamic"] = kpipe.quantize(model, "int8_dynamic")
    before = np.asarray(model(x)).argmax(-1)
    rows = [{"what": "Keras, float32", "as Keras": len(x), "accuracy": float((before == y).mean())}]
    files = []
    for name, suffix in itertools.product(networks, (".tflite", ".onnx")):
        try:
            files.append(kpipe.export(networks[name], into / f"{name}{suffix}", data=x))
        except kpipe.ExportError as error:
            rows.append({"what": f"{name}, {suffix}", "refused": str(error)})
    for file, latency in zip(files, kpipe.benchmark(files, runs=runs), strict=True):
        answers = chosen(file.path, x)
        row = {"what": f"{file.precision}, .{file.format}", "as Keras": int((answers == before).sum())}
        row |= {"accuracy": float((answers == y).mean()), "bytes": file.bytes, "gzip_bytes": file.gzip_bytes}
        rows.append({**row, "median_ms": latency.median_ms})
    return {"samples": len(x), "parameters": model.count_params(), "rows": rows}


def show(result):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Wake-word network, {result['parameters']:,} parameters, {result['samples']} samples, one thread"
    )
    for column in ("", "as Keras", "accuracy", "KB", "KB gzip", "ms"):
        table.add_column(column, justify="right" if column else "left")
    for row in result["rows"]:
        if "refused" in row:
            table.add_row(row["what"], "refused")
            print(f"{row['what']}: {row['refused']}")
            continue
        cells = [row["what"], f"{row['as Keras']} of {result['samples']}", f"{row['accuracy']:.1%}".replace("%", " %")]
        sized = "bytes" in row
        cells += [f"{row[name] / 1000:.1f}" if sized else "" for name in ("bytes", "gzip_bytes")]
        table.add_row(*cells, f"{row['median_ms']:.4f}" if sized else "")
    Console(width=110).print(table)


def main():
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few timings, nothing is kept")
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as into:
        result = measured(Path(into), 20 if asked.quick else 200)
    show(result)
    if not asked.quick:
        papers.keep(RECORD, result)


if __name__ == "__main__":
    main()
