"""CPU time of a train step with weight pruning, against a plain `fit`, beside TFMOT's.

LeNet-5 of Caffe's size (431,080 weights), batch 128, Adam, random images. In one process four runs take turns, one
window of steps after the other: plain, pruning at frequency 100, pruning at frequency 1, and plain once more as the
control that says how far the figures can be trusted. The schedule rises over the whole run, so that every update has
something to rank. TFMOT does the same on tf_keras in a process of its own, beside its own plain fit.

    python benchmarks/step_overhead.py            # 8 rounds of 100 steps: about ten minutes on 2 cores
    python benchmarks/step_overhead.py --rounds 2 --no-tfmot
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "step_overhead.json"
WARM_UP = 10
BATCH = 128


def data(steps):
    """Give random images and labels for `steps` batches."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((BATCH * steps, 28, 28, 1), dtype="float32"), rng.integers(0, 10, BATCH * steps)


def lenet5(keras):
    """Build LeNet-5 with keras or tf_keras: 431,080 weights."""
    layers = keras.layers
    image = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(20, 5, activation="relu")(image))
    x = layers.MaxPooling2D()(layers.Conv2D(50, 5, activation="relu")(x))
    x = layers.Dense(500, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10)(x))


def compiled(keras, model):
    """Compile alike for both Keras generations."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, jit_compile=False)
    return model


def make_stopwatch(keras):
    """Make a callback class that measures the process's CPU time over the steps after the warm-up."""

    class Stopwatch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            self.end = time.process_time()
            if self.steps == WARM_UP:
                self.begin = self.end

        def milliseconds(self):
            return 1000 * (self.end - self.begin) / (self.steps - WARM_UP)

    return Stopwatch


def take_turns(keras, runs, rounds, steps):
    """Fit every run for one window a round; give name -> CPU milliseconds a step, one figure a window."""
    x, y = data(WARM_UP + steps)
    stopwatch, found = make_stopwatch(keras)(), {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (model, callbacks) in runs.items():
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*callbacks, stopwatch])
            if number:  # the first round compiles and fills caches
                found[name].append(stopwatch.milliseconds())
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def measure_kpipe(rounds, steps):
    """Measure plain fit and kpipe's callback."""
    import warnings

    import keras

    from kpipe.schedules import PolynomialDecay
    from kpipe.unstructured import WeightPruning

    warnings.filterwarnings("ignore", message="WeightPruning ended at step")  # each window is a fit of its own
    end = (rounds + 1) * (WARM_UP + steps)

    def pruning(frequency):
        return [WeightPruning(PolynomialDecay(0.0, 0.9, 0, end, frequency=frequency))]

    runs = {
        "plain": (compiled(keras, lenet5(keras)), []),
        "frequency 100": (compiled(keras, lenet5(keras)), pruning(100)),
        "frequency 1": (compiled(keras, lenet5(keras)), pruning(1)),
        "plain again": (compiled(keras, lenet5(keras)), []),
    }
    return take_turns(keras, runs, rounds, steps)


def measure_tfmot(rounds, steps):
    """Measure plain fit and TFMOT's wrappers on tf_keras."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparsity, end = tfmot.sparsity.keras, (rounds + 1) * (WARM_UP + steps)

    def pruned(frequency):
        schedule = sparsity.PolynomialDecay(0.0, 0.9, 0, end, frequency=frequency)
        return compiled(tf_keras, sparsity.prune_low_magnitude(lenet5(tf_keras), schedule))

    runs = {
        "plain": (compiled(tf_keras, lenet5(tf_keras)), []),
        "frequency 100": (pruned(100), [sparsity.UpdatePruningStep()]),
        "frequency 1": (pruned(1), [sparsity.UpdatePruningStep()]),
        "plain again": (compiled(tf_keras, lenet5(tf_keras)), []),
    }
    return take_turns(tf_keras, runs, rounds, steps)


def in_own_process(rounds, steps):
    """Run this file again for TFMOT, with legacy Keras, and read its figures."""
    command = [sys.executable, __file__, "--only-tfmot", "--rounds", str(rounds), "--steps", str(steps)]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(windows):
    """Divide each window by the mean of the two plain windows of its round; give mean and spread a run.

    The control is not divided by itself: "plain again" is plain's second window over its first.
    """
    plain = [(a + b) / 2 for a, b in zip(windows["plain"], windows["plain again"], strict=True)]
    rows = {}
    for name, found in windows.items():
        base = windows["plain"] if name == "plain again" else plain
        each = [one / reference for one, reference in zip(found, base, strict=True)]
        rows[name] = {
            "milliseconds": statistics.mean(found),
            "ratio": sum(found) / sum(base),
            "median_ratio": statistics.median(each),
            "lowest": min(each),
            "highest": max(each),
        }
    return rows


def show(results):
    """Print one table for all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="CPU time of one train step, LeNet-5 (431,080 weights), batch 128")
    for column in ("library", "run", "ms a step", "over plain", "median", "lowest..highest window"):
        table.add_column(column, justify="left" if column in ("library", "run") else "right")
    for library, rows in results.items():
        for name, row in rows.items():
            spread = f"{row['lowest']:.3f}..{row['highest']:.3f}"
            ratio = "1" if name == "plain" else f"{row['ratio']:.3f}"
            table.add_row(library, name, f"{row['milliseconds']:.2f}", ratio, f"{row['median_ratio']:.3f}", spread)
    Console().print(table)
    control = results["kpipe"]["plain again"]["ratio"]
    if abs(control - 1) > 0.01:
        print(f"The control is off by {abs(control - 1):.3f}, more than 0.01: quiet the machine or take more rounds.")


def main():
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="windows of each run")
    parser.add_argument("--steps", type=int, default=100, help="measured steps a window")
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    parser.add_argument("--only-tfmot", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_tfmot:
        print(json.dumps(measure_tfmot(arguments.rounds, arguments.steps)))
        return
    windows = {"kpipe": measure_kpipe(arguments.rounds, arguments.steps)}
    if not arguments.no_tfmot:
        windows["TFMOT on tf_keras"] = in_own_process(arguments.rounds, arguments.steps)
    results = {library: ratios(found) for library, found in windows.items()}
    show(results)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"rounds": arguments.rounds, "steps": arguments.steps, "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({**record, "results": results, "windows": windows}, indent=1) + "\n")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
