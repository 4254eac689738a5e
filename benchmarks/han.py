"""How many weights LeNet-300-100 and LeNet-5 can lose on MNIST at the error of their dense selves.

Han et al. (2015) kept a twelfth. Here a dense net is trained for half of the epochs; in the other half a gradual
schedule sets the lowest magnitudes of the whole net to zero (one ranking over all kernels) while the half-way net
teaches (its softened answers count for half of the loss), and what is left is trained on. The reference is a dense net
trained for all the epochs at once, and for comparison a dense net that is taught like the sparse ones. All with Adam,
a cosine decay from 1e-3 to 0, and batches of 128. 55,000 images train; the settings were chosen on 5,000 images that
are neither trained nor tested on; the test error is that of the last epoch, without any stopping or choosing.

    KPIPE_DATA=folder-of-mnist.npz python benchmarks/han.py
    python benchmarks/han.py --quick    # a minute; its figures mean nothing

Each finished training is kept in benchmarks/results/, so a run that was broken off goes on where it was.
"""

import argparse
import statistics

import papers

EPOCHS = {"lenet_300_100": 40, "lenet_5": 14}
FACTORS = {"lenet_300_100": [12, 25, 40], "lenet_5": [12, 25, 50, 100]}
PAPER = {"lenet_300_100": "1.64 % → 1.59 % at 12x", "lenet_5": "0.80 % → 0.77 % at 12x"}
ALLOWED = 0.05
"""How many points of error above the reference count as the same."""
BATCH = 128


def adam(epochs, samples):
    """Make Adam with a rate that falls to zero over the epochs."""
    import keras

    steps = epochs * -(-samples // BATCH)
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))


def error(model, split):
    """Give the error in percent."""
    return 100 * (1 - papers.make_judge(model, split)()[1])


def fit(model, splits, epochs):
    """Train a dense net by its labels alone."""
    x, y = splits["train"]
    model.compile(adam(epochs, len(x)), papers.cross_entropy(), jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def pruned(half, splits, epochs, factor, alpha):
    """Prune a dense net to a fraction of its weights while its former self teaches; factor 1 only teaches."""
    import kpipe
    from kpipe.callbacks import WeightPruning
    from kpipe.schedules import PolynomialDecay

    steps = epochs * -(-len(splits["train"][0]) // BATCH)
    schedule = PolynomialDecay(0.0, 1 - 1 / factor, 0, steps * 6 // 10, frequency=max(1, steps // 100))
    return kpipe.distill(
        teacher=half,
        student=half,
        data=splits["train"],
        temperature=3.0,
        alpha=alpha,
        epochs=epochs,
        optimizer=adam(epochs, len(splits["train"][0])),
        callbacks=[WeightPruning(schedule, scope="global")] if factor > 1 else [],
        batch_size=BATCH,
        verbose=0,
    )


def weights_left(model):
    """Count the weights that are not zero, and all of them, in the kernels."""
    kernels = [weight.numpy() for weight in model.trainable_weights if len(weight.shape) > 1]
    return sum(int((kernel != 0).sum()) for kernel in kernels), sum(kernel.size for kernel in kernels)


def one_seed(net, seed, epochs, folder, factors, alpha=0.5, final=True):
    """Train reference, control and sparse nets of a seed; give name -> errors and weights left."""
    splits, found, made = papers.data("mnist", seed, flat=net == "lenet_300_100"), {}, {}

    def half():
        if not made:
            made["half"] = fit(getattr(papers, net)(seed), splits, epochs // 2)
        return made["half"]

    def measured(model):
        left, size = weights_left(model)
        shown = {"validation": error(model, splits["validation"]), "left": left, "size": size}
        return shown | ({"test": error(model, splits["test"])} if final else {})

    def look(name, make):
        found[name] = papers.remembered(folder / f"seed {seed}" / f"{name}.json", lambda: measured(make()))
        print(net, seed, name, found[name], flush=True)

    look("reference", lambda: fit(getattr(papers, net)(seed), splits, epochs))
    for factor in factors:
        look(f"{factor}x", lambda factor=factor: pruned(half(), splits, epochs - epochs // 2, factor, alpha))
    look("dense, taught", lambda: pruned(half(), splits, epochs - epochs // 2, 1, alpha))
    return found


def show(net, seeds):
    """Print a table of one net; give its rows and the highest factor at the error of the reference."""
    from rich.console import Console
    from rich.table import Table

    rows, bar = {}, statistics.mean(found["reference"]["test"] for found in seeds) + ALLOWED
    table = Table("net", "weights", "times fewer", "test error %", "of the reference %", title=f"{net}, MNIST")
    for name in seeds[0]:
        tests = [found[name]["test"] for found in seeds]
        left, size = seeds[0][name]["left"], seeds[0][name]["size"]
        rows[name] = {"left": left, "factor": size / left, "test": tests, "same": statistics.mean(tests) <= bar}
        difference = papers.spread(found[name]["test"] - found["reference"]["test"] for found in seeds)
        table.add_row(name, f"{left:,}", f"{size / left:.1f}", papers.spread(tests), difference)
    reached = max((row["factor"] for row in rows.values() if row["same"]), default=1.0)
    Console(width=110).print(table, f"{reached:.0f}x fewer weights at the reference's error + {ALLOWED}. {PAPER[net]}.")
    return {"rows": rows, "factor": reached}


def main():
    """Run the nets and seeds, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100, one seed, two epochs")
    asked = parser.parse_args()
    papers.one_thread()
    name, epochs = "han", EPOCHS
    if asked.quick:
        name, epochs, asked.nets, asked.seeds = "han_quick", {"lenet_300_100": 2}, ["lenet_300_100"], [0]
    result = {}
    for net in asked.nets:
        folder = papers.RESULTS / name / net
        result[net] = show(net, [one_seed(net, seed, epochs[net], folder, FACTORS[net]) for seed in asked.seeds])
    papers.keep(papers.RESULTS / f"{name}.json", result)


if __name__ == "__main__":
    main()
