"""Quantization-aware training beside post-training quantization and float, in Keras, LiteRT and onnxruntime.

The MobileNet-like nets of benchmarks/ptq.py (a stem and five depthwise-separable blocks with batch norms;
Fashion-MNIST, 20,000 images, 5 epochs, one net a seed) are rounded to int8 with ranges from 512 images of the training
set, as they are and trained on for 2 epochs with the rounding in place. "float, trained on" had the same 2 epochs in
float. Accuracy is that on the 10,000 test images: of the Keras model, which computes with the rounding of the file, of
the .tflite file in LiteRT, of the .onnx file in onnxruntime. Beside them stands the file of TensorFlow's own
converter, made of the same float weights and images (`tf.lite.TFLiteConverter`, full integers). Sizes are means over
the seeds; latencies those of the first seed's files, all in turns, one thread.

    KPIPE_DATA=folder-of-fashion_mnist.npz python benchmarks/qat.py --seeds 0 1 2
    python benchmarks/qat.py --quick    # a minute or two; its figures mean nothing

Nets, files and rows are kept in benchmarks/results/ by their settings, so that a run that was broken off goes on where
it was; the rows of a whole run in benchmarks/records/qat.json.
"""

import argparse
import functools
import os
import statistics
import tempfile
from typing import Any

import papers
import ptq

EPOCHS, RATE, BATCH, CALIBRATION = 2, 5e-4, 64, 512
RECORD = papers.RECORDS / "qat.json"
WAYS = ("float", "float, trained on", "PTQ", "QAT", "converter's PTQ")


def trained_on(model, split, epochs):
    """Train a model on."""
    import keras

    x, y = split
    rate: Any = keras.optimizers.schedules.CosineDecay(RATE, epochs * -(-len(x) // BATCH))
    model.compile(keras.optimizers.Adam(rate), papers.cross_entropy(), jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def hits(path, x, y):
    """Give the accuracy of a file in per cent, in its own runtime."""
    import numpy as np

    from kpipe.export import load_runtime

    with load_runtime(path) as runtime:
        chosen = [runtime.run([x[at : at + 250]])[0].argmax(-1) for at in range(0, len(x), 250)]
    return 100 * float((np.concatenate(chosen) == y).mean())


def converted(net, calibration, path):
    """Write the file that TensorFlow's converter makes of a float net and samples by itself."""
    import keras
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as saved:
        archive = keras.export.ExportArchive()
        archive.track(net)
        shape = keras.InputSpec(shape=(1, *net.input_shape[1:]), dtype="float32")
        archive.add_endpoint("serve", lambda image: net(image, training=False), input_signature=[shape])
        archive.write_out(saved, verbose=False)
        path.write_bytes(whole_numbers(tf.lite.TFLiteConverter.from_saved_model(saved), calibration))


def whole_numbers(converter, calibration):
    """Let a converter round all of a net to whole numbers, inputs and outputs too."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def file_row(path, data):
    """Read size and accuracy of a file."""
    from kpipe.export.sizes import gzip_size

    content = path.read_bytes()
    return {"bytes": len(content), "gzip_bytes": gzip_size(content), "accuracy": hits(path, *data["test"])}


def measured(net, way, data, epochs, folder):
    """Make the files of one way and give their rows."""
    import kpipe
    from kpipe.copies import copy_model

    name = stem(way)
    if way == "converter's PTQ":
        converted(net, data["calibration"], folder / f"{name}.tflite")
        return {"Keras": None, ".tflite": file_row(folder / f"{name}.tflite", data), ".onnx": None}
    model = copy_model(net) if way.startswith("float") else kpipe.quantize(net, calibration=data["calibration"])
    if way in ("float, trained on", "QAT"):
        trained_on(model, data["train"], epochs)
    x, y = data["test"]
    row: dict[str, Any] = {"Keras": 100 * float((ptq.answers(model, x).argmax(-1) == y).mean())}
    for suffix in (".tflite", ".onnx"):
        kpipe.export(model, folder / f"{name}{suffix}", data=data["calibration"])
        row[suffix] = file_row(folder / f"{name}{suffix}", data)
    return row


def stem(way):
    """Give the name of the files of a way.

    Example:
        >>> stem("converter's PTQ")
        'converters_PTQ'
    """
    return way.replace(" ", "_").replace(",", "").replace("'", "")


def timed(rows, folder, runs):
    """Time all files in turns: (way, suffix) -> median in milliseconds."""
    import kpipe

    named = {
        (way, suffix): folder / f"{stem(way)}{suffix}"
        for way, row in rows.items()
        for suffix in (".tflite", ".onnx")
        if row[suffix] is not None
    }
    found = kpipe.benchmark(list(named.values()), runs=runs)
    return {f"{way}{suffix}": one.median_ms for (way, suffix), one in zip(named, found, strict=True)}


def show(seeds, times):
    """Print the table and what our files are beside the converter's."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"MobileNet-like net, Fashion-MNIST, {len(seeds)} seeds, accuracy in per cent")
    for column in ("", "Keras", "LiteRT", "onnxruntime", ".tflite KB", "KB gzip", ".onnx KB", ".tflite ms", ".onnx ms"):
        table.add_column(column, justify="right" if column else "left")
    for way in WAYS:
        rows = [rows[way] for rows in seeds]
        cells = [way, "" if rows[0]["Keras"] is None else papers.spread(row["Keras"] for row in rows)]
        for suffix in (".tflite", ".onnx"):
            held = rows[0][suffix] is not None
            cells.append(papers.spread(row[suffix]["accuracy"] for row in rows) if held else "")
        for suffix, key in ((".tflite", "bytes"), (".tflite", "gzip_bytes"), (".onnx", "bytes")):
            held = rows[0][suffix] is not None
            cells.append(f"{statistics.mean(row[suffix][key] for row in rows) / 1000:.1f}" if held else "")
        cells += [f"{times[way + suffix]:.4f}" if way + suffix in times else "" for suffix in (".tflite", ".onnx")]
        table.add_row(*cells)
    Console(width=130).print(table)
    ratios = [rows["QAT"][".tflite"]["bytes"] / rows["converter's PTQ"][".tflite"]["bytes"] for rows in seeds]
    spent = [times[f"{way}.tflite"] / times["converter's PTQ.tflite"] for way in ("PTQ", "QAT")]
    print(
        f"Beside the converter's file: {max(ratios):.3f} of its bytes at most; of its time {spent[0]:.3f} (PTQ) and "
        f"{spent[1]:.3f} (QAT, the same operations)."
    )


def main() -> None:
    """Read the arguments, train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one net of one epoch on 3,000 images, 1,000 to test on")
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    images, tested, first, epochs = (3000, 1000, 1, 1) if asked.quick else (20_000, 10_000, 5, EPOCHS)
    import kpipe.data

    loaded = kpipe.data.load("fashion_mnist", validation_fraction=5000 / 60000, seed=0)
    (x, y), (test_x, test_y) = loaded.train, loaded.test
    data = {"train": (x[:images], y[:images]), "calibration": x[:CALIBRATION]}
    data["test"] = (test_x[:tested], test_y[:tested])
    nets = papers.folder("ptq", {"images": images, "epochs": first, "batch": 64, "rate": 4e-3})
    settings = {"net": nets.name, "epochs": epochs, "rate": RATE, "batch": BATCH, "tested": tested}
    place, seeds = papers.folder("qat", settings), []
    for seed in asked.seeds[:1] if asked.quick else asked.seeds:
        net, folder = ptq.trained(seed, x[:images], y[:images], first, nets), place / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = {}
        for way in WAYS:
            print(f"seed {seed}, {way} ...", flush=True)
            make = functools.partial(measured, net, way, data, epochs, folder)
            rows[way] = papers.remembered(folder / f"{WAYS.index(way)}.json", make)
        seeds.append(rows)
    times = timed(seeds[0], place / f"seed{asked.seeds[0]}", 20 if asked.quick else 3000)
    show(seeds, times)
    if not asked.quick:
        papers.keep(RECORD, {"seeds": asked.seeds, "rows": seeds, "median_ms": times})


if __name__ == "__main__":
    main()
