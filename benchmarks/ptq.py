"""What post-training quantization loses, and what observers and improvements win back without labels.

A MobileNet-like net (a stem and five depthwise-separable blocks with batch norms) learns Fashion-MNIST for 5 epochs on
20,000 images, once a seed. Then its weights are rounded to 4 or 8 bits per channel, its activations to 8, with ranges
from 512 images of the training set. The accuracy on the 10,000 test images is taken in Keras, which rounds as
the runtimes do. "off" is the root mean square difference of the logits from the float net's, over their standard
deviation.

    KPIPE_DATA=folder-of-fashion_mnist.npz python benchmarks/ptq.py
    python benchmarks/ptq.py --quick    # two minutes; its figures mean nothing

Trained nets and rows are kept in benchmarks/results/ by their settings, so that a run that was broken off goes on where
it was, and the rows of a whole run in benchmarks/records/ptq.json. What was tried beside them on the same nets and left
out is in its part "left_out".
"""

import argparse
import functools
import json
import statistics
import time
from typing import Any

import papers

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias_correction": {"improve": "bias_correction"},
    "adaptive_rounding": {"improve": "adaptive_rounding"},
    "adaptive_rounding, 64 images": {"improve": "adaptive_rounding", "calibration_samples": 64},
    "percentile": {"observer": "percentile"},
    "mse": {"observer": "mse"},
}
"""Name of a row -> the arguments of `kpipe.quantize`."""
SCHEMES = ("w4a8", "int8")
RECORD = papers.RECORDS / "ptq.json"


def mobile(seed):
    """Build the net."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(seed)

    def normed(x, name):
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))

    x = image = keras.Input((28, 28, 1), name="image")
    x = normed(layers.Conv2D(16, 3, 2, "same", use_bias=False, name="stem")(x), "stem")
    for number, (filters, stride) in enumerate(((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)), 1):
        depth = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"depth{number}")
        x = normed(depth(x), f"depth{number}")
        x = normed(layers.Conv2D(filters, 1, use_bias=False, name=f"point{number}")(x), f"point{number}")
    logits = layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, logits, name="mobile")


def trained(seed, x, y, epochs, folder):
    """Give the net of a seed, trained, or as an earlier run has left it."""
    import keras

    path = folder / f"net-{seed}.keras"
    if path.exists():
        return keras.models.load_model(path, compile=False)
    net: Any = mobile(seed)
    rate: Any = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x) // 64))
    net.compile(keras.optimizers.Adam(rate), papers.cross_entropy(), jit_compile=False)
    net.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    folder.mkdir(parents=True, exist_ok=True)
    net.save(path)
    return net


def answers(model, x):
    """Give the logits."""
    import numpy as np

    return np.concatenate([np.asarray(model(x[at : at + 500], training=False)) for at in range(0, len(x), 500)])


def measure(net, data, scheme, arguments):
    """Give accuracy in percent, how far the logits are off, and the seconds that quantizing took."""
    import kpipe

    x, y = data["test"]
    begin = time.perf_counter()
    quantized = kpipe.quantize(net, scheme, data["calibration"], **arguments)
    seconds = time.perf_counter() - begin
    exact, rounded = answers(net, x), answers(quantized, x)
    off = float(((exact - rounded) ** 2).mean() ** 0.5 / exact.std())
    return {"accuracy": 100 * float((rounded.argmax(-1) == y).mean()), "off": off, "seconds": seconds}


def show(rows, float_accuracy):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Accuracy in percent; in float {papers.spread(float_accuracy)}")
    for column in ("scheme", "way", "accuracy", "off", "seconds"):
        table.add_column(column, justify="left" if column in ("scheme", "way") else "right")
    for scheme in SCHEMES:
        for way in WAYS:
            found = [row for row in rows if (row["scheme"], row["way"]) == (scheme, way)]
            if found:
                accuracy = papers.spread(row["accuracy"] for row in found)
                off, seconds = (statistics.mean(row[key] for row in found) for key in ("off", "seconds"))
                table.add_row(scheme, way, accuracy, f"{off:.4f}", f"{seconds:.1f}")
        table.add_section()
    Console().print(table)


def main() -> None:
    """Read the arguments, train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one net of one epoch on 3,000 images, 1,000 to test on")
    arguments = parser.parse_args()
    images, tested, epochs, seeds = (3000, 1000, 1, 1) if arguments.quick else (20_000, 10_000, 5, arguments.seeds)
    import kpipe.data

    loaded = kpipe.data.load("fashion_mnist", validation_fraction=5000 / 60000, seed=0)
    (x, y), (test_x, test_y) = loaded.train, loaded.test
    data = {"calibration": x[:512], "test": (test_x[:tested], test_y[:tested])}
    folder = papers.folder("ptq", {"images": images, "epochs": epochs, "batch": 64, "rate": 4e-3})
    rows, float_accuracy = [], []
    for seed in range(seeds):
        net = trained(seed, x[:images], y[:images], epochs, folder)
        float_accuracy.append(100 * float((answers(net, data["test"][0]).argmax(-1) == data["test"][1]).mean()))
        for scheme in SCHEMES:
            for way, given in WAYS.items():
                path = folder / f"{seed}-{scheme}-{way.replace(' ', '-')}.json"
                found = papers.remembered(path, functools.partial(measure, net, data, scheme, given))
                rows.append({"seed": seed, "scheme": scheme, "way": way, **found})
    show(rows, float_accuracy)
    if not arguments.quick:
        before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        papers.keep(RECORD, {**before, "float": float_accuracy, "rows": rows})
        print(f"Written to {RECORD}")


if __name__ == "__main__":
    main()
