"""Optimal Brain Damage on MNIST: how far the loss rises when weights are removed and nothing is trained again.

The figures of LeCun, Denker and Solla (1990), on a net of their kind and size: images of 14 x 14 (means of 2 x 2
pixels), two convolutions of 5 x 5 with stride 2 and 8 and 12 channels, dense layers of 20 and 10: 6,640 weights. It is
trained by the mean squared error on 10,000 images until the rate of Adam has decayed to zero. Then 10 to 60 % of the
weights are removed, by one ranking over all of them: by saliency ½ · h · w², by magnitude, at random (mean of five
draws). "predicted" is the sum of the saliencies of what Optimal Brain Damage removes, beside the rise that comes true.

    KPIPE_DATA=folder-of-mnist.npz python benchmarks/optimal_brain_damage.py
    python benchmarks/optimal_brain_damage.py --quick    # a minute; its figures mean nothing

Each net that is done is kept in benchmarks/results/ by its settings: a run that was broken off goes on where it was.
"""

import argparse
import statistics
from typing import Any

import papers

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DRAWS = 5
BATCH, RATE = 50, 2e-3
"""Images an update, and the rate of Adam at the start."""


def data(seed, samples):
    """Give small images and one-hot labels to train on."""
    import numpy as np

    x, y = (tensor.numpy() for tensor in papers.data("mnist", seed)["train"])
    return x[:samples].reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)), np.eye(10, dtype="float32")[y[:samples]]


def trained(seed, x, y, epochs):
    """Train the net."""
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((14, 14, 1))
    inner = layers.Conv2D(8, 5, 2, padding="same", activation="relu", name="conv1")(image)
    inner = layers.Conv2D(12, 5, 2, padding="same", activation="relu", name="conv2")(inner)
    inner = layers.Dense(20, "relu", name="hidden")(layers.Flatten()(inner))
    net: Any = keras.Model(image, layers.Dense(10, name="output")(inner))
    decay: Any = keras.optimizers.schedules.CosineDecay(RATE, epochs * -(-len(x) // BATCH))
    net.compile(keras.optimizers.Adam(decay), "mse", jit_compile=False)
    net.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return net


def one_seed(seed, samples, epochs):
    """Give the loss of a trained net, and its rise by each way to remove weights."""
    import numpy as np

    import kpipe
    from kpipe.saliency import criterion_of, gather
    from kpipe.unstructured import find_targets
    from kpipe.unstructured.masks import judge

    x, y = data(seed, samples)
    net = trained(seed, x, y, epochs)

    def loss(model):
        return float(np.mean(np.square(model.predict(x, batch_size=1000, verbose=0) - y)))

    def rise(share, criterion, draw=0):
        pruned = kpipe.prune_weights(net, share, criterion, scope="global", data=(x, y), loss="mse", seed=draw)
        return loss(pruned) - dense

    dense = loss(net)
    score, facts = criterion_of("obd")
    evidence = gather(net, find_targets(net)[0], facts["needs"], (x, y), "mse")
    saliencies = np.sort(np.concatenate([np.ravel(scores) for scores in judge(score, evidence).values()]))
    found = {"loss": dense, "weights": len(saliencies)}
    return found | {
        f"{share:.0%}": {
            "predicted": float(saliencies[: round(share * len(saliencies))].sum()),
            "obd": rise(share, "obd"),
            "magnitude": rise(share, "magnitude"),
            "random": statistics.mean(rise(share, "random", draw) for draw in range(DRAWS)),
        }
        for share in SHARES
    }


def show(seeds):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    losses = papers.spread((found["loss"] for found in seeds), 4)
    title = f"Rise of the loss, in thousandths, without retraining ({seeds[0]['weights']:,} weights, loss {losses})"
    table = Table("removed", "predicted", "Optimal Brain Damage", "magnitude", "random", title=title)
    for share in SHARES:
        rows = [found[f"{share:.0%}"] for found in seeds]
        cells = [
            papers.spread((1000 * row[name] for row in rows), 3) for name in ("predicted", "obd", "magnitude", "random")
        ]
        table.add_row(f"{share:.0%}", *cells)
    rows = [found[f"{share:.0%}"] for found in seeds for share in SHARES]
    held = all(row["obd"] < row["magnitude"] < row["random"] for row in rows)
    Console(width=120).print(
        table, f"In every net and at every share OBD < magnitude < random: {'yes' if held else 'no'}."
    )


def main():
    """Run the seeds, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one net, 500 images, two epochs")
    asked = parser.parse_args()
    papers.one_thread()
    name, samples, epochs = "optimal_brain_damage", 10_000, 40
    if asked.quick:
        name, samples, epochs, asked.seeds = "optimal_brain_damage_quick", 500, 2, [0]
    said = {"samples": samples, "epochs": epochs, "shares": SHARES, "draws": DRAWS, "batch": BATCH, "rate": RATE}
    folder = papers.folder(name, said)
    seeds = [
        papers.remembered(folder / f"seed {seed}.json", lambda seed=seed: one_seed(seed, samples, epochs))
        for seed in asked.seeds
    ]
    papers.keep(papers.RESULTS / f"{name}.json", seeds)
    show(seeds)


if __name__ == "__main__":
    main()
