"""A large sparse net against a small dense one with as many weights, on Fashion-MNIST.

The question of Zhu and Gupta (2017). A CNN of 24, 48 and 48 channels is trained while a gradual schedule sets weights
to zero until as many are left as a narrower net of the same kind has in all; the narrower nets are trained dense. Every
net has the same epochs, batches of 128, and Adam with a cosine decay from 2e-3 to 0; the schedule rises over the first
six tenths of the training, with one ranking over all kernels. 55,000 images train, and the test error is that of the
last epoch, without any stopping or choosing.

    KPIPE_DATA=folder-of-fashion_mnist.npz python benchmarks/large_sparse.py
    python benchmarks/large_sparse.py --quick    # a minute; its figures mean nothing

Each finished training is kept in benchmarks/results/ by its settings: a run that was broken off goes on where it was.
"""

import argparse
from typing import Any

import papers

LARGE, SMALL = 24, (9, 5)
"""Channels of the first convolution; the second and the third have twice as many."""
BATCH, STEPS, AT_ONCE = 128, 429, 39
"""Images an update, updates an epoch, and updates between two looks of Python's."""
RATE, BEGIN, END = 2e-3, 0.05, 0.6
"""The rate of Adam at the start, and the shares of the training after which the schedule begins and ends."""


def cnn(channels, seed):
    """Build the net."""
    import keras

    keras.utils.set_random_seed(seed)
    image = x = keras.Input((28, 28, 1))
    for width, strides in ((channels, 2), (2 * channels, 2), (2 * channels, 1)):
        x = keras.layers.Conv2D(width, 3, strides, padding="same", activation="relu")(x)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name=f"cnn{channels}")


def trained(net, splits, epochs, seed, callbacks=()):
    """Train a net by its labels; the seed is that of the order of the images."""
    import keras

    x, y = splits["train"]
    decay: Any = keras.optimizers.schedules.CosineDecay(RATE, epochs * STEPS)
    net.compile(keras.optimizers.Adam(decay), papers.cross_entropy(), steps_per_execution=AT_ONCE, jit_compile=False)
    data = papers.stream(x, y, BATCH, seed)
    net.fit(data, epochs=epochs, steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=list(callbacks))
    left = sum(int((weight.numpy() != 0).sum()) for weight in net.trainable_weights if len(weight.shape) > 1)
    accuracy = papers.make_judge(net, splits["test"])()[1]
    return {"accuracy": 100 * accuracy, "left": left + sum(w.shape[0] for w in net.weights if len(w.shape) == 1)}


def sparse(splits, epochs, left, seed):
    """Train the large net until only as many parameters as given are not zero."""
    from kpipe.callbacks import WeightPruning
    from kpipe.schedules import PolynomialDecay

    net, steps = cnn(LARGE, seed), epochs * STEPS
    biases = sum(weight.shape[0] for weight in net.weights if len(weight.shape) == 1)
    sparsity = 1 - (left - biases) / (net.count_params() - biases)
    schedule = PolynomialDecay(0.0, sparsity, int(BEGIN * steps), int(END * steps), frequency=AT_ONCE)
    return trained(net, splits, epochs, seed, [WeightPruning(schedule, scope="global")])


def one_seed(seed, epochs, folder):
    """Train all nets of a seed; give name -> accuracy and parameters left."""
    splits, found = papers.data("fashion_mnist", seed), {}

    def look(name, make):
        found[name] = papers.remembered(folder / f"seed {seed}" / f"{name}.json", make)
        print(seed, name, found[name], flush=True)

    look("large dense", lambda: trained(cnn(LARGE, seed), splits, epochs, seed))
    for channels in SMALL:
        look(f"small dense {channels}", lambda channels=channels: trained(cnn(channels, seed), splits, epochs, seed))
        left = found[f"small dense {channels}"]["left"]
        look(f"large sparse {channels}", lambda left=left: sparse(splits, epochs, left, seed))
    return found


def show(seeds):
    """Print the table; give its rows."""
    from rich.console import Console
    from rich.table import Table

    large = seeds[0]["large dense"]["left"]
    table = Table(
        "parameters", "of the large net", "small dense %", "large sparse %", "difference", title="Fashion-MNIST"
    )
    accuracies = [found["large dense"]["accuracy"] for found in seeds]
    table.add_row(f"{large:,}", "100 %", "", papers.spread(accuracies) + " (dense)", "")
    rows = [{"parameters": large, "dense": accuracies}]
    for channels in SMALL:
        left = seeds[0][f"small dense {channels}"]["left"]
        small, wide = (
            [found[f"{kind} {channels}"]["accuracy"] for found in seeds] for kind in ("small dense", "large sparse")
        )
        more = papers.spread(after - before for before, after in zip(small, wide, strict=True))
        table.add_row(f"{left:,}", f"{left / large:.1%}", papers.spread(small), papers.spread(wide), more)
        rows.append({"parameters": left, "dense": small, "sparse": wide})
    Console(width=110).print(table)
    return rows


def main():
    """Run the seeds, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    asked = parser.parse_args()
    papers.one_thread()
    name = "large_sparse"
    if asked.quick:
        name, asked.seeds, asked.epochs = "large_sparse_quick", [0], 1
    folder = papers.folder(
        name, {"epochs": asked.epochs, "channels": LARGE, "steps": [BATCH, STEPS, AT_ONCE], "rate": [RATE, BEGIN, END]}
    )
    rows = show([one_seed(seed, asked.epochs, folder) for seed in asked.seeds])
    papers.keep(papers.RESULTS / f"{name}.json", {"epochs": asked.epochs, "rows": rows})


if __name__ == "__main__":
    main()
