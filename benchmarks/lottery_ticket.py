"""The lottery ticket on MNIST: the rewound ticket against the same masks over newly drawn weights.

LeNet-300-100 as in Frankle and Carbin (2019): Gaussian Glorot initialisation, Adam at 1.2e-3, batches of 60, 55,000
images to train on and 5,000 to validate on, layer-wise magnitude, 20 % of the remaining weights a round (10 % in the
output layer), rewound to the very beginning. Every 100 updates the validation loss is computed; "early stop" is its
minimum, and the test accuracy there is what is compared. Where the paper trains for 50,000 updates, a run here takes
--iterations (10,000); re-initialised nets, which learn slower, take half as many again.

    KPIPE_DATA=folder-of-mnist.npz python benchmarks/lottery_ticket.py
    python benchmarks/lottery_ticket.py --quick    # a minute; its figures mean nothing

Each finished training is kept in benchmarks/results/ by its settings: a run that was broken off goes on where it was.
"""

import argparse
import json
import statistics
from pathlib import Path

import papers

LEVELS = {"21.1 %": 7, "13.5 %": 9}
"""Weights left -> the rounds of pruning that lead there."""
BATCH, RATE, EVERY = 60, 1.2e-3, 100
"""Images an update, the rate of Adam, and updates between two looks at the validation loss."""
PER_ROUND = {"output": 0.1, "": 0.2}
"""Which fraction of what is left of each layer a round prunes."""


def make_watch(model, splits):
    """Make a callback that notes the validation loss, where it is lowest, and the test accuracy there."""
    import keras

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.validate = papers.make_judge(model, splits["validation"])
            self.test = papers.make_judge(model, splits["test"])
            self.found = {"validation_loss": [], "curve": [], "stop": 0, "accuracy": 0.0}

        def on_epoch_end(self, epoch, logs=None):
            step, losses = (epoch + 1) * EVERY, self.found["validation_loss"]
            losses.append(self.validate()[0])
            best = losses[-1] == min(losses)
            if best or step % 500 == 0 or step < 500:
                self.found["curve"].append([step, self.test()[1]])
            if best:
                self.found |= {"stop": step, "accuracy": self.found["curve"][-1][1]}

    return Watch()


def train(model, callbacks, splits, seed, iterations, path):
    """Train a net as the paper does; what an earlier run has trained is read from the path."""
    import keras
    import numpy as np

    weights = path.with_suffix(".npz")
    if path.exists() and weights.exists():
        with np.load(weights) as file:
            model.set_weights([file[name] for name in file.files])
        return json.loads(path.read_text())
    (x, y), watch = splits["train"], make_watch(model, splits)
    model.compile(keras.optimizers.Adam(RATE), papers.cross_entropy(), steps_per_execution=EVERY, jit_compile=False)
    model.fit(
        papers.stream(x, y, BATCH, seed),
        epochs=iterations // EVERY,
        steps_per_epoch=EVERY,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, watch],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(weights, *model.get_weights())
    print(f"{path.stem}: stopped at {watch.found['stop']}, {watch.found['accuracy']:.2%}", flush=True)
    return papers.keep(path, watch.found)


def one_seed(seed, iterations, folder):
    """Find the ticket and train its controls; give name -> what was noted."""
    from kpipe.unstructured.rewind import find_ticket

    splits = papers.data("mnist", seed, flat=True)
    found = {}

    def trained(name, model, callbacks, updates):
        found[name] = train(model, callbacks, splits, seed, updates, folder / f"{name}.json")

    def one_round(model, callbacks):
        trained(f"round {len(found)}", model, callbacks, iterations)

    net = papers.lenet_300_100(seed)
    ticket = find_ticket(net, one_round, rounds=max(LEVELS.values()), per_round=PER_ROUND)
    with ticket.hold():
        trained(f"round {max(LEVELS.values())}", ticket.model, [], iterations)
    for rounds in LEVELS.values():
        drawn_anew = ticket.after(rounds).reinitialised(seed=100 + seed)
        with ticket.after(rounds).hold(drawn_anew):
            trained(f"redrawn {rounds}", drawn_anew, [], iterations * 3 // 2)
    found["kept"] = [one.kept for one in ticket.history] + [ticket.kept]
    return found


def rows(seeds):
    """Give a row a net: name, updates until early stop, test accuracy there, and for each its values by seed."""
    nets = {"dense": "round 0"}
    for level, rounds in LEVELS.items():
        nets |= {f"ticket, {level} left": f"round {rounds}", f"redrawn, {level} left": f"redrawn {rounds}"}
    return [
        {
            "net": net,
            "stop": [found[key]["stop"] for found in seeds],
            "accuracy": [100 * found[key]["accuracy"] for found in seeds],
            "ran": 100 * len(seeds[0][key]["validation_loss"]),
            "curves": [found[key]["curve"] for found in seeds],
        }
        for net, key in nets.items()
    ]


def show(table):
    """Print the rows."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        "net", "updates until early stop", "test accuracy there", "updates run", title="Lottery ticket, MNIST"
    )
    for row in table:
        stop, accuracy = papers.spread(row["stop"], 0), papers.spread(row["accuracy"])
        shown.add_row(row["net"], stop, f"{accuracy} %", f"{row['ran']:,}")
    Console(width=110).print(shown)


def plot(table, path):
    """Draw the test accuracy over the updates: mean over the seeds, with bars from the lowest to the highest."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "kpipe", "svg.fonttype": "none"}
    figure, axes = plt.subplots(1, len(LEVELS), figsize=(10, 4), sharey=True)
    for axis, level in zip(axes, LEVELS, strict=True):
        for row in (row for row in table if row["net"] == "dense" or level in row["net"]):
            points = [dict(curve) for curve in row["curves"]]
            steps = sorted(set.intersection(*(set(curve) for curve in points)))
            values = [[100 * curve[step] for curve in points] for step in steps if step % 1000 == 0]
            steps = [step for step in steps if step % 1000 == 0]
            middle = [statistics.mean(each) for each in values]
            below = [mean - min(each) for mean, each in zip(middle, values, strict=True)]
            above = [max(each) - mean for mean, each in zip(middle, values, strict=True)]
            axis.errorbar(steps, middle, yerr=(below, above), label=row["net"], capsize=2, linewidth=1.2)
        axis.set(title=f"{level} of the weights left", xlabel="updates", ylim=(96.5, 98.6))
        axis.legend(loc="lower right")
    axes[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main():
    """Run the seeds, print the table, write JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=10_000, help="updates of a training")
    parser.add_argument("--quick", action="store_true", help="one seed, 200 updates a training")
    parser.add_argument("--picture", type=Path, help="where to draw the curves, such as lottery_ticket.svg")
    asked = parser.parse_args()
    papers.one_thread()
    name = "lottery_ticket"
    if asked.quick:
        asked.seeds, asked.iterations, name = [0], 200, "lottery_ticket_quick"
    said = {"updates": asked.iterations, "batch": BATCH, "rate": RATE, "every": EVERY, "pruned": PER_ROUND}
    folder = papers.folder(name, said)
    table = rows([one_seed(seed, asked.iterations, folder / f"seed {seed}") for seed in asked.seeds])
    papers.keep(papers.RESULTS / f"{name}.json", {"iterations": asked.iterations, "rows": table})
    show(table)
    if asked.picture:
        plot(table, asked.picture)


if __name__ == "__main__":
    main()
