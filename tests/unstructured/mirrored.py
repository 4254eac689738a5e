"""Prune on two mirrored devices: `python mirrored.py FOLDER CASE ...` writes what came of it to `found.json`."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kpipe.graph import trace
from kpipe.projections import GradientTap, average_of, kernels
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.structured import FilterPruning
from kpipe.structured.regularise import pull
from kpipe.structured.regularisers import DepGraph
from kpipe.unstructured import UpdatePruningStep, WeightPruning, prune_low_magnitude
from kpipe.unstructured.regrowth import Regrowth

O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 12)).astype("float32"), RNG.integers(0, 4, 64)
SCHEDULE = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=10, frequency=5)


class Watch(keras.callbacks.Callback):
    """After every batch: the zeros of each kernel, alike on both devices?"""

    def __init__(self):
        super().__init__()
        self.zeros, self.alike = [], True

    def on_train_batch_end(self, batch, logs=None):
        both = [[replica.numpy() for replica in variable.value.values] for variable in kernels(self.model)]
        self.alike &= all((one == other).all() for one, other in both)
        self.zeros.append([int((one == 0).sum()) for one, _ in both])


def compiled(strategy, make, wrap=lambda model: model):
    """Make a model under the strategy."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)])
        model = wrap(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make(), loss, jit_compile=False)
    return model


def fit(model, prune):
    """Train 16 steps; give the zeros after each."""
    watch = Watch()
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[prune, watch])
    averages = [(variable, average_of(model.optimizer, variable)) for variable in kernels(model)]
    sparse = all(average is None or not average.numpy()[variable.numpy() == 0].any() for variable, average in averages)
    return {"zeros": watch.zeros, "alike": watch.alike, "averages": sparse}


def mean_gradient(strategy):
    """Compare the tap's mean gradient with that of the loss over all data."""
    model = compiled(strategy, lambda: O.SGD(0.0))
    kernel = kernels(model)[0]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=X, y=Y, y_pred=model(X))
    expected = np.asarray(tape.gradient(loss, kernel.value))
    with GradientTap(model, [kernel]) as tap:
        model.fit(X, Y, batch_size=8, verbose=0)
        error = np.abs(tap.read()[id(kernel)]["grad"] - expected).max()
        return {"count": tap.count, "error": float(error / np.abs(expected).max())}


def filters(strategy, **options):
    """Prune filters and cut them."""
    model, prune = compiled(strategy, lambda: O.Adam(0.01)), FilterPruning(SCHEDULE, **options)
    found = fit(model, prune)
    small = prune.shrink()
    return found | {"units": small.layers[0].units, "error": float(np.abs(small(X) - model(X)).max())}


def pulled(strategy):
    """Compare what a regulariser takes off a kernel in one step with the step by hand: once, not once a device."""
    model, rate = compiled(strategy, lambda: O.SGD(0.5)), 0.5
    hidden, logits = kernels(model)
    before = hidden.numpy()
    norms = np.sqrt((before**2).sum(0) + (logits.numpy() ** 2).sum(1))
    factor = 0.01 * 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=X, y=Y, y_pred=model(X))
    gradient = np.asarray(tape.gradient(loss, hidden.value))
    traced = trace(model)
    pulling = pull(DepGraph(0.01), model, traced, traced.groups, ratio=0.5)
    model.fit(X, Y, batch_size=64, verbose=0)
    pulling.release()
    expected = before - rate * (gradient + factor * before)
    return float(np.abs(hidden.numpy() - expected).max() / np.abs(rate * factor * before).max())


def adam():
    return O.Adam(0.01)


def wrapped(model):
    return prune_low_magnitude(model, SCHEDULE)


MOVES = Regrowth("rigl", 0.4, frequency=3, end_step=16)
CASES = {
    "averages": lambda at: fit(compiled(at, lambda: O.Adam(0.01, use_ema=True)), WeightPruning(SCHEDULE)),
    "scaled": lambda at: fit(compiled(at, lambda: O.LossScaleOptimizer(O.SGD(0.1, 0.9))), WeightPruning(SCHEDULE)),
    "taylor": lambda at: fit(compiled(at, adam), WeightPruning(SCHEDULE, "taylor")),
    "rigl": lambda at: fit(compiled(at, adam), WeightPruning(ConstantSparsity(0.6, 0), regrowth=MOVES)),
    "wrapped": lambda at: fit(compiled(at, adam, wrapped), UpdatePruningStep()),
    "gradient": mean_gradient,
    "filters": filters,
    "filters, pulled": lambda at: filters(at, criterion="taylor", regularizer="depgraph"),
    "pulled": pulled,
}
"""Name -> what is found of it, under a strategy."""


def main(folder, *names):
    """Run the cases of these names."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {name: CASES[name](strategy) for name in names}
    found["replicas"] = strategy.num_replicas_in_sync
    (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
