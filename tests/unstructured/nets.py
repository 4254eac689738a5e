"""Nets that several tests prune, a training that is none, and one that is."""

import keras
import numpy as np


def lenet_300_100():
    """Build the net of the paper."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((784,))
    for units, name in ((300, "fc1"), (100, "fc2")):
        x = keras.layers.Dense(units, "relu", name=name)(x)
    return keras.Model(image, keras.layers.Dense(10, name="output")(x))


def small():
    """Build a net with two kernels, of 120 and 200 entries, and a norm between them."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(20, "relu", name="a"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(10, name="b"),
        ],
        name="net",
    )


class Twins(keras.layers.Layer):
    """Hold two kernels of one name, which Keras gives one path."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.ones = [self.add_weight(shape=(shape[-1], self.units), name="kernel") for _ in range(2)]

    def call(self, x):
        return x @ self.ones[0] + x @ self.ones[1]

    def get_prunable_weights(self):
        return self.ones

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def shift(model, callbacks=()):
    """Stand in for a training: change every weight, by other amounts."""
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])


X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


def fit(model, callbacks=(), optimizer="adam", run_eagerly=True, **options):
    """Train for 6 updates; eagerly where the compiled step is not what is tried, which saves tracing it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False, run_eagerly=run_eagerly, **options)
    return model.fit(X, Y, batch_size=8, verbose=0, callbacks=list(callbacks))
