"""A net with two kernels, of 192 and 64 entries, and what tells whether its clusters hold."""

import keras
import numpy as np

from kpipe.projections import kernels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(optimizer="adam", sparsity=0.0, policy=None, **options):
    """Make the net, a share of its weights zero."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(16, "relu", name="hidden", dtype=policy),
        keras.layers.Dense(4, name="logits", dtype=policy),
    ]
    model = keras.Sequential([keras.Input((12,)), *layers])
    rng = np.random.default_rng(1)
    for variable in kernels(model):
        variable.assign(variable.numpy() * (rng.random(variable.shape) >= sparsity))
    model.compile(optimizer, LOSS, **options)
    return model


def partition(value):
    """Number the distinct values of a weight in the order in which they come."""
    _, first, places = np.unique(value, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places].reshape(np.shape(value))


class Watch(keras.callbacks.Callback):
    """After every batch: the distinct values, the zeros and the partition of each kernel."""

    def __init__(self):
        super().__init__()
        self.counts, self.zeros, self.partitions = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        values = [variable.numpy() for variable in kernels(self.model)]
        self.counts.append([len(np.unique(value)) for value in values])
        self.zeros.append([value == 0 for value in values])
        self.partitions.append([partition(value) for value in values])

    @property
    def same(self):
        """Whether the clusters were the same ones after every batch."""
        return all(
            (one == other).all()
            for later in self.partitions
            for one, other in zip(self.partitions[0], later, strict=True)
        )


def fit(model, *callbacks, epochs=2, **options):
    watch = Watch()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch
