"""Train clusters on two mirrored devices: `python mirrored_clusters.py FOLDER` writes `found.json` there."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kpipe.cluster import WeightClustering
from kpipe.projections import average_of, kernels

O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 12)).astype("float32"), RNG.normal(size=(64, 4)).astype("float32")
CLUSTERS = 6


class Watch(keras.callbacks.Callback):
    """After every batch: the most distinct values, and whether both devices have the same."""

    def __init__(self):
        super().__init__()
        self.most, self.alike = 0, True

    def on_train_batch_end(self, batch, logs=None):
        both = [[replica.numpy() for replica in variable.value.values] for variable in kernels(self.model)]
        self.alike &= all((one == other).all() for one, other in both)
        self.most = max(self.most, *(len(np.unique(one)) for one, _ in both))


def compiled(optimizer, units=(16, 4)):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), *(keras.layers.Dense(one, use_bias=False) for one in units)])
    model.compile(optimizer(), "mse", jit_compile=False)
    return model


def held(optimizer):
    """Train first without clusters, then with."""
    model, watch = compiled(optimizer), Watch()
    model.fit(X, Y, batch_size=16, verbose=0)
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=[WeightClustering(CLUSTERS), watch])
    averages = [average_of(model.optimizer, variable) for variable in kernels(model)]
    few = all(average is None or len(np.unique(average.numpy())) <= CLUSTERS for average in averages)
    return {"most": watch.most, "alike": watch.alike, "averages": few}


def away_from_by_hand():
    """Give how far one step of plain SGD on the common values is from the step in NumPy over all data."""
    model = compiled(lambda: O.SGD(0.05), units=(4,))
    numbers = RNG.permutation(np.arange(48) % 4).reshape(12, 4)
    values = np.array([0.0, -0.7, 0.4, 0.9])
    kernel = values[numbers]
    kernels(model)[0].assign(kernel)
    model.fit(X, Y, batch_size=64, verbose=0, callbacks=[WeightClustering(4)])
    gradient = 2 * X.T @ (X @ kernel - Y) / Y.size
    expected = values - [0.05 * gradient[numbers == n].sum() if n else 0 for n in range(4)]
    return float(np.abs(kernels(model)[0].numpy() - expected[numbers]).max())


def main(folder):
    """Run every case."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        found = {
            "adam": held(lambda: O.Adam(0.01)),
            "averages": held(lambda: O.Adam(0.01, use_ema=True)),
            "scaled": held(lambda: O.LossScaleOptimizer(O.SGD(0.001, 0.9))),
            "by hand": away_from_by_hand(),
            "replicas": strategy.num_replicas_in_sync,
        }
    (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
