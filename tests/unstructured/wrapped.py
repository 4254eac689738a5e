"""Wrapped models for tests: layers, models and what the callback does before a step."""

import keras
import numpy as np
from keras import layers as L

from kpipe.schedules import ConstantSparsity
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapping import prune_low_magnitude

HALF = ConstantSparsity(0.5, begin_step=0, frequency=1)


class Unknown(L.Layer):
    """A layer of which kpipe knows nothing."""

    def build(self, shape):
        self.form = self.add_weight(shape=(shape[-1], 3), name="form")

    def call(self, x):
        return keras.ops.matmul(x, self.form)


class Gate(L.Dense):
    """A layer that says itself what is pruned: its bias too."""

    def get_prunable_weights(self):
        return [self.kernel, self.bias]


@keras.saving.register_keras_serializable("tests")
class Mix(L.Layer):
    """Layers inside a layer that has no build: Keras builds them by a call, of one input or of two."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.first, self.more = units, L.Dense(units), [L.Dense(units), L.LayerNormalization()]

    def call(self, x, y=None):
        x = self.first(x)
        for layer in self.more:
            x = layer(x if y is None else x + y)
        return x

    def compute_output_shape(self, shape, *others):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def kept(size, sparsity):
    """How many of `size` units TFMOT keeps."""
    return max(int(np.round(np.float32(size) * np.float32(1 - np.float32(sparsity)))), 1)


def small(*layers, size=6):
    """Make a Sequential model of vectors."""
    return keras.Sequential([keras.Input((size,)), *layers])


def prune(model, schedule=HALF, steps=1, **options):
    """Wrap a model and let the callback prune it; no step is trained."""
    pruned = prune_low_magnitude(model, schedule, **options)
    follow(pruned, steps)
    return pruned


def follow(model, steps=1):
    """Say to the callback that training steps begin."""
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for step in range(steps):
        callback.on_train_batch_begin(step)
    return callback
