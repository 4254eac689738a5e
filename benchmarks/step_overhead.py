"""What weight pruning costs in each train step, and in memory, beside TFMOT.

Three nets on random images, batch 128, Adam: LeNet-5 of Caffe's size (431,080 weights), a convolutional net of 10
million weights, and as the worst case three dense layers of 10 million, of which each is used once a sample. For each
kind of pruning a process of its own lets the frequencies take turns, ten steps each, with a plain `fit` before them and
one after them as the control that says how far the figures can be trusted. What is compared is the CPU time of the
process. The schedule is that of ten epochs of MNIST, 4,690 steps from 0 to 90 %: it rises over the whole run, so that
every update has something to rank. At frequency 100 each window of the first two nets holds one update.

- frequency 100, 10, 1: unstructured, each layer by itself. Bars on LeNet-5 and on the convolutional net: at most 1.02
  of a plain step at 100, 1.15 at 1; memory at most 1.25 of the weights.
- 2:4, global: the pattern and the one ranking over all weights, at the same frequencies.
- RigL: constant sparsity, zeros move at the same frequencies.

Memory is the bytes of the weights and of what pruning keeps beside them from step to step, over those of the weights.
RigL keeps one sum of gradients for each weight. TFMOT, on tf_keras, does unstructured, and 2:4 with one mask for good.

What made the difference, see `mask_update.py`: what is dropped stays dropped, so an update looks only at the few
entries below a sampled bound (`drop_lowest`), in NumPy, where one pass over a weight takes less than a call of the
runtime; a mask that has not changed is not written; between updates the number of steps is not read; and the zeros are
held by one kernel that reads a byte an entry, inside the train step. What is left on the dense net is that pass, bound
by memory: read, mask and write 40 MB in every step, 7 of 95 ms. A kernel fused by XLA takes as long. To mask inside the
optimizer's own last subtraction would take nothing, and would have to know every optimizer from the inside.

    python benchmarks/step_overhead.py                          # about an hour on 2 cores
    python benchmarks/step_overhead.py --quick --only unstructured --net lenet5 --no-tfmot
"""

import argparse
import collections
import concurrent.futures
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "step_overhead.json"
WARM_UP = BLOCK = 10  # steps
BATCH = 128
FREQUENCIES = (100, 10, 1)
KINDS = {"unstructured": ("kpipe", "TFMOT"), "2:4": ("kpipe", "TFMOT"), "global": ("kpipe",), "rigl": ("kpipe",)}
SCHEDULE = 4690  # steps: ten epochs of 60,000 samples
SIZES = {"lenet5": (8, 100), "conv 10M": (3, 100), "dense 10M": (3, 100)}  # rounds, measured steps a window
QUICK = {"lenet5": (2, 30), "conv 10M": (1, 10), "dense 10M": (2, 10)}


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


def convolutional(keras):
    """Build six convolutions and a head: 9.97 million weights, each used 4 to 196 times a sample."""
    layers = keras.layers
    x = image = keras.Input((28, 28, 1))
    for filters, strides in ((64, 2), (256, 2), (512, 2), (512, 1), (512, 1), (850, 2)):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", activation="relu")(x)
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def dense(keras):
    """Build three dense layers: 10.07 million weights."""
    layers = keras.layers
    image = keras.Input((28, 28, 1))
    x = layers.Dense(2800, activation="relu")(layers.Flatten()(image))
    return keras.Model(image, layers.Dense(10)(layers.Dense(2800, activation="relu")(x)))


NETS = {"lenet5": lenet5, "conv 10M": convolutional, "dense 10M": dense}


def compiled(keras, model):
    """Compile alike for both Keras generations."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, jit_compile=False)
    return model


class Baton:
    """Let threads run one at a time, in turn."""

    def __init__(self, runners):
        self.order, self.moved = collections.deque(range(runners)), threading.Condition()

    def wait(self, runner):
        """Wait for the runner's turn."""
        with self.moved:
            self.moved.wait_for(lambda: self.order[0] == runner)

    def pass_on(self):
        """End the turn of the one that runs."""
        with self.moved:
            self.order.rotate(-1)
            self.moved.notify_all()

    def leave(self):
        """End the part of the one that runs."""
        with self.moved:
            self.order.popleft()
            self.moved.notify_all()


def make_stopwatch(keras):
    """Make a callback class that measures the CPU time of each block of steps and hands the baton on after it."""

    class Stopwatch(keras.callbacks.Callback):
        def __init__(self, baton, runner):
            super().__init__()
            self.baton, self.runner, self.blocks, self.steps = baton, runner, [], 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == WARM_UP:
                self.begin = time.process_time()
            elif self.steps > WARM_UP and self.steps % BLOCK == 0:
                self.blocks.append(1000 * (time.process_time() - self.begin) / BLOCK)
                self.baton.pass_on()
                self.baton.wait(self.runner)
                self.begin = time.process_time()

    return Stopwatch


def take_turns(keras, runs, rounds, steps):
    """Fit all runs at once, a block of steps each in turn; give name -> CPU milliseconds a step, one figure a window.

    The speed of a shared machine drifts from minute to minute: what is compared must have run within seconds.
    """
    x, y = data(WARM_UP + rounds * steps)
    baton, stopwatch = Baton(len(runs)), make_stopwatch(keras)
    watches = [stopwatch(baton, runner) for runner in range(len(runs))]

    def fit(runner):
        model, callbacks = list(runs.values())[runner]
        baton.wait(runner)
        try:
            callbacks = [*callbacks, watches[runner]]
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        finally:
            baton.leave()

    with concurrent.futures.ThreadPoolExecutor(len(runs)) as threads:
        for one in [threads.submit(fit, runner) for runner in range(len(runs))]:
            one.result()
    blocks = steps // BLOCK
    return {
        name: [statistics.mean(watch.blocks[start : start + blocks]) for start in range(0, rounds * blocks, blocks)]
        for name, watch in zip(runs, watches, strict=True)
    }


def held_bytes(callback):
    """Count the bytes of all arrays and variables that a callback keeps, those of the model left out."""
    import keras
    import numpy as np
    import tensorflow as tf

    theirs = (
        keras.layers.Layer,
        keras.optimizers.Optimizer,
        keras.Variable,
        type,
        types.ModuleType,
        types.FunctionType,
    )
    seen, waiting, found = set(), list(vars(callback).values()), 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, theirs):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            found += one.nbytes
        elif isinstance(one, tf.Variable):
            found += one.shape.num_elements() * one.dtype.size
        else:
            waiting += gc.get_referents(one)
    return found


def in_training(keras, model, callback):
    """Give the bytes of a model's weights and of what a callback keeps while it trains, over those of the weights."""
    found = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(held_bytes(callback))

    x, y = data(2)
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[callback, Look()])
    return 1 + max(found) / sum(weight.nbytes for weight in model.get_weights())


def measure_kpipe(net, kind, rounds, steps):
    """Measure plain fit and kpipe's callback."""
    import warnings

    import keras

    from kpipe.schedules import ConstantSparsity, PolynomialDecay
    from kpipe.unstructured import Regrowth, WeightPruning

    warnings.filterwarnings("ignore", message="WeightPruning (ended|pruned)")  # each window is a fit of its own

    def pruning(frequency):
        if kind == "rigl":
            return WeightPruning(ConstantSparsity(0.9, 0), regrowth=Regrowth("rigl", 0.3, frequency, SCHEDULE))
        schedule = PolynomialDecay(0.0, 0.5 if kind == "2:4" else 0.9, 0, SCHEDULE, frequency=frequency)
        scope = "global" if kind == "global" else "layer"
        return WeightPruning(schedule, pattern="2:4" if kind == "2:4" else "unstructured", scope=scope)

    def model():
        return compiled(keras, NETS[net](keras))

    runs = {"plain": (model(), [])}
    runs |= {f"{kind}, frequency {frequency}": (model(), [pruning(frequency)]) for frequency in FREQUENCIES}
    memory = dict.fromkeys(list(runs)[1:], in_training(keras, model(), pruning(1)))
    runs["plain again"] = (model(), [])
    return take_turns(keras, runs, rounds, steps), memory


def measure_tfmot(net, kind, rounds, steps):
    """Measure plain fit and TFMOT's wrappers on tf_keras."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparsity = tfmot.sparsity.keras

    def model(frequency=None):
        made = NETS[net](tf_keras)
        if frequency is not None:
            schedule: Any = sparsity.PolynomialDecay(0.0, 0.9, 0, SCHEDULE, frequency=frequency)
            options: dict[str, Any] = {"sparsity_m_by_n": (2, 4)} if kind == "2:4" else {}
            made = sparsity.prune_low_magnitude(made, schedule, **options)
        return compiled(tf_keras, made)

    def size(model):
        return sum(weight.shape.num_elements() * weight.dtype.size for weight in model.weights)

    runs = {"plain": (model(), [])}
    for frequency in FREQUENCIES if kind == "unstructured" else (100,):
        runs[f"{kind}, frequency {frequency}"] = (model(frequency), [sparsity.UpdatePruningStep()])
    memory = {name: size(one) / size(runs["plain"][0]) for name, (one, _) in runs.items() if name != "plain"}
    runs["plain again"] = (model(), [])
    return take_turns(tf_keras, runs, rounds, steps), memory


def in_own_process(library, net, kind, rounds, steps):
    """Run this file again for one library, net and kind, and read its figures."""
    command = [sys.executable, __file__, "--one", library, net, kind, str(rounds), str(steps)]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1" if library == "TFMOT" else "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(windows, memory):
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
            "memory": memory.get(name),
        }
    return rows


def show(net, libraries):
    """Print one table for a net."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"CPU time of one train step, {net}, batch {BATCH}")
    columns = ("library", "run", "ms a step", "over plain", "median", "lowest..highest window", "memory")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right", no_wrap=True)
    for library, kinds in libraries.items():
        for rows in kinds.values():
            for name, row in rows.items():
                spread = f"{row['lowest']:.3f}..{row['highest']:.3f}"
                ratio = "1" if name == "plain" else f"{row['ratio']:.3f}"
                memory = "" if row["memory"] is None else f"{row['memory']:.2f}"
                milliseconds, median = f"{row['milliseconds']:.2f}", f"{row['median_ratio']:.3f}"
                table.add_row(library, name, milliseconds, ratio, median, spread, memory)
            table.add_section()
    Console(width=120).print(table)
    controls = [abs(rows["plain again"]["ratio"] - 1) for kinds in libraries.values() for rows in kinds.values()]
    if max(controls) > 0.01:
        print(f"A control is off by {max(controls):.3f}, over 0.01: quiet the machine or take more rounds.")


def main():
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--only", choices=list(KINDS), help="one kind of pruning")
    parser.add_argument("--rounds", type=int, help="windows of each run")
    parser.add_argument("--steps", type=int, help="measured steps a window")
    parser.add_argument("--quick", action="store_true", help="few and short windows: not more than a look")
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        library, net, kind, rounds, steps = arguments.one
        measure = measure_tfmot if library == "TFMOT" else measure_kpipe
        print(json.dumps(measure(net, kind, int(rounds), int(steps))))
        return
    record = {"cores": os.cpu_count(), "nets": {}}
    for net in NETS if arguments.net == "all" else [arguments.net]:
        rounds, steps = (QUICK if arguments.quick else SIZES)[net]
        rounds, steps = arguments.rounds or rounds, arguments.steps or steps
        results, windows = {"kpipe": {}, "TFMOT": {}}, {"kpipe": {}, "TFMOT": {}}
        for kind, libraries in KINDS.items():
            if arguments.only not in (None, kind):
                continue
            for library in libraries[:1] if arguments.no_tfmot else libraries:
                windows[library][kind], memory = in_own_process(library, net, kind, rounds, steps)
                results[library][kind] = ratios(windows[library][kind], memory)
        show(net, results)
        record["nets"][net] = {"rounds": rounds, "steps": steps, "results": results, "windows": windows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
