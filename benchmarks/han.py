"""How many weights LeNet-300-100 and LeNet-5 can lose on MNIST at the error of their dense selves.

Han et al. (2015) kept a twelfth. Here a dense net is trained for the first quarter of the epochs. In the others a
gradual schedule sets the lowest magnitudes of the whole net to zero, by one ranking over all kernels, and what is left
is trained on. LeNet-5 then learns from smoothed labels (0.91 for the right class, 0.01 for each other). LeNet-300-100
is taught by the recorded answers of a dense LeNet-5: nine tenths of the loss are its softened answers, one tenth the
labels; the teacher's own training is not counted. The reference is a dense net trained by the plain labels for as many
epochs in all; "dense, same lesson" is a dense net that had the same epochs and lesson as the sparse ones, for smoothing
and a teacher are a help of their own. All with Adam, a cosine decay to 0 and batches of 128, on 55,000 images. The
settings of LeNet-300-100 were chosen on the 5,000 images to validate on, at 25x; those of LeNet-5 among 21, in a search
that showed errors on the test images beside those to validate on. The test error is that of the last epoch, without any
stopping or choosing.

    KPIPE_DATA=folder-of-mnist.npz python benchmarks/han.py
    python benchmarks/han.py --quick    # two minutes; its figures mean nothing

Each finished training is kept in benchmarks/results/ by its settings: a run that was broken off goes on where it was.
"""

import argparse
import itertools
import statistics
from typing import Any

import papers

EPOCHS = {"lenet_300_100": (8, 24), "lenet_5": (5, 15)}
"""Net -> epochs of the dense training that the sparse nets start from, and of the pruning one."""
TEACHER = "lenet_5"
SETTINGS = {
    "lenet_300_100": {"rate": 2e-3, "temperature": 4.0, "alpha": 0.1, "rise": 0.5},
    "lenet_5": {"rate": 1e-3, "smoothing": 0.1, "rise": 0.5},
}
"""Net -> the rate of Adam at the start of the pruning epochs, the share of them over which the sparsity rises, and what
is learnt in them: how the teacher's answers are softened and the share of the labels in the loss, or how labels are
smoothed."""
FACTORS = {"lenet_300_100": [12, 25, 40, 60, 100], "lenet_5": [12, 25, 50]}
PAPER = {"lenet_300_100": "1.64 % → 1.59 % at 12x", "lenet_5": "0.80 % → 0.77 % at 12x"}
ALLOWED = 0.05
"""How many points of error above the reference count as the same."""
BATCH, STEPS, AT_ONCE = 128, 429, 39
"""Images an update, updates an epoch, and updates between two looks of Python's."""


def error(model, split):
    """Give the error in percent, free of the rounding of 32 bits."""
    return round(100 * (1 - papers.make_judge(model, split)()[1]), 4)


def fit(model, x, y, epochs, rate, loss, callbacks=(), seed=0):
    """Train with a rate that falls to zero."""
    import keras

    decay: Any = keras.optimizers.schedules.CosineDecay(rate, epochs * STEPS)
    model.compile(keras.optimizers.Adam(decay), loss, steps_per_execution=AT_ONCE, jit_compile=False)
    data = papers.stream(x, y, BATCH, seed)
    model.fit(data, epochs=epochs, steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def lesson(labels, recorded, settings):
    """Give what the pruning epochs teach, an array a sample, and the loss on it."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kpipe.distill import SoftAnswers

    if "smoothing" in settings:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings["smoothing"])
        return np.eye(10, dtype="float32")[labels], loss
    soft, hard, alpha = SoftAnswers(settings["temperature"]), papers.cross_entropy(), settings["alpha"]

    def taught(both, logits):  # the answers, and the labels beside them
        answers = tf.reduce_mean(soft.compute_loss(both[:, :-1], logits))
        return alpha * hard(both[:, -1:], logits) + (1 - alpha) * answers

    return np.concatenate([np.load(recorded), labels[:, None]], axis=1).astype("float32"), taught


def pruned(dense, splits, epochs, factor, recorded, settings, seed):
    """Prune a copy of a dense net to a fraction of its weights while it learns; factor 1 only teaches."""
    from kpipe.callbacks import WeightPruning
    from kpipe.copies import copy_model
    from kpipe.schedules import PolynomialDecay

    (x, y), rise = splits["train"], int(epochs * STEPS * settings["rise"])
    targets, loss = lesson(y.numpy(), recorded, settings)
    schedule = PolynomialDecay(0.0, 1 - 1 / factor, 0, rise, frequency=AT_ONCE)
    callbacks = [WeightPruning(schedule, scope="global")] if factor > 1 else []
    return fit(copy_model(dense), x, targets, epochs, settings["rate"], loss, callbacks, seed + 1)


def weights_left(model):
    """Count the weights that are not zero, and all of them, in the kernels."""
    kernels = [weight.numpy() for weight in model.trainable_weights if len(weight.shape) > 1]
    return sum(int((kernel != 0).sum()) for kernel in kernels), sum(kernel.size for kernel in kernels)


def place(net, seed, name, epochs):
    """Name the folder for what a net is trained to from a seed."""
    said = {"net": net, "epochs": epochs[net], "teacher's epochs": epochs[TEACHER], **SETTINGS[net]}
    return papers.folder(name, said | {"batch": BATCH, "steps": STEPS, "at once": AT_ONCE}) / net / f"seed {seed}"


def one_seed(net, seed, name, epochs, factors, final=True):
    """Train reference, control and sparse nets of a seed; give name -> errors and weights left."""
    import numpy as np

    splits, found, made = papers.data("mnist", seed, flat=net == "lenet_300_100"), {}, {}
    here, recorded = place(net, seed, name, epochs), place(TEACHER, seed, name, epochs) / "answers.npy"
    images, labels = splits["train"]

    def measured(model):
        left, size = weights_left(model)
        shown = {"validation": error(model, splits["validation"]), "left": left, "size": size}
        return shown | ({"test": error(model, splits["test"])} if final else {})

    def look(what, make):
        found[what] = papers.remembered(here / f"{what}.json", lambda: measured(make()))
        print(net, seed, what, found[what], flush=True)

    def reference():
        model = fit(getattr(papers, net)(seed), images, labels, sum(epochs[net]), 1e-3, papers.cross_entropy())
        if net == TEACHER:
            recorded.parent.mkdir(parents=True, exist_ok=True)
            np.save(recorded, model.predict(images, batch_size=1000, verbose=0))
        return model

    def taught(factor):
        if not made:
            begin = getattr(papers, net)(seed)
            made["begun"] = fit(begin, images, labels, epochs[net][0], 1e-3, papers.cross_entropy())
        return pruned(made["begun"], splits, epochs[net][1], factor, recorded, SETTINGS[net], seed)

    look("reference", reference)
    if not recorded.exists():
        one_seed(TEACHER, seed, name, epochs, [], final)
    for factor in factors:
        look(f"{factor}x", lambda factor=factor: taught(factor))
    if factors:
        look("dense, same lesson", lambda: taught(1))
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
        rows[name] = {"left": left, "factor": size / left, "test": tests, "same": statistics.mean(tests) <= bar + 1e-6}
        difference = papers.spread(found[name]["test"] - found["reference"]["test"] for found in seeds)
        table.add_row(name, f"{left:,}", f"{size / left:.1f}", papers.spread(tests), difference)
    held = list(itertools.takewhile(lambda factor: rows[f"{factor}x"]["same"], FACTORS[net]))
    reached = max(held, default=1)
    Console(width=110).print(table, f"{reached}x fewer weights at the reference's error + {ALLOWED}. {PAPER[net]}.")
    return {"rows": rows, "factor": reached}


def main():
    """Run the nets and seeds, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100, one seed, one epoch of each training")
    asked = parser.parse_args()
    papers.one_thread()
    name, epochs = "han", EPOCHS
    if asked.quick:
        name, epochs, asked.nets, asked.seeds = "han_quick", dict.fromkeys(EPOCHS, (1, 1)), ["lenet_300_100"], [0]
    result = {}
    for net in asked.nets:
        result[net] = show(net, [one_seed(net, seed, name, epochs, FACTORS[net]) for seed in asked.seeds])
    papers.keep(papers.RESULTS / f"{name}.json", result)


if __name__ == "__main__":
    main()
