"""Trainings of wrapped models for tests: what is zero after each step, and what should be."""

import keras
import numpy as np
from keras import layers as L
from keras import optimizers as O

from kpipe.schedules import PolynomialDecay
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers

RAMP = PolynomialDecay(0.0, 0.8, begin_step=2, end_step=9, frequency=3)  # updates at 2, 5, 8 and 9
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 6)).astype("float32"), RNG.normal(size=(96, 4)).astype("float32")


class Watch(keras.callbacks.Callback):
    """Note the zeros of every masked weight after each batch, and that no entry that was zero comes back."""

    def __init__(self):
        super().__init__()
        self.zeros, self.gone = [], {}

    def on_train_batch_end(self, batch, logs=None):
        row = []
        for known in (known for layer in pruned_layers(self.model) for known in layer.masked):
            zero = known.weight.numpy() == 0
            assert zero[self.gone.get(known.weight.path, np.zeros_like(zero))].all(), known.weight.path
            assert not known.weight.numpy()[~known.mask.numpy()].any()
            self.gone[known.weight.path] = zero
            row.append(int(zero.sum()))
        self.zeros.append(row)


def network(schedule=RAMP, optimizer="sgd", policy="float32", seed=0, **compiled):
    keras.utils.set_random_seed(seed)
    layers = [L.Dense(16, "relu", dtype=policy), L.Dense(4, dtype=policy)]
    model = prune_low_magnitude(keras.Sequential([keras.Input((6,)), *layers]), schedule)
    model.compile(O.get(optimizer), "mse", **compiled)
    return model


def fit(model, epochs=1, batch=8, callbacks=()):
    watch = Watch()
    given = [UpdatePruningStep(), watch, *callbacks]
    model.fit(X, Y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0, callbacks=given)
    return watch.zeros


def asked(schedule, steps, sizes=(96, 64)):
    """Count by the formula of TFMOT what is dropped after each training step, from 1 on."""
    rows, sparsity = [], 0.0
    for step in range(1, steps + 1):
        due, now = schedule(step)
        sparsity = now if due else sparsity
        rows.append([size - max(int(np.round(size * np.float32(1 - np.float32(sparsity)))), 1) for size in sizes])
    return rows
