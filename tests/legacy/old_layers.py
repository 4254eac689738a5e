"""Classes and functions of one's own, written for Keras 2 and Keras 3 alike."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="Old")
class Scale(keras.layers.Layer):
    """Multiply each feature by a weight."""

    def __init__(self, start=1.0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape):
        start = keras.initializers.Constant(self.start)
        self.factor = self.add_weight(name="factor", shape=(input_shape[-1],), initializer=start)

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "start": self.start}


class Shift(keras.layers.Layer):
    """Add 1; in Keras 3 it adds something else when told so."""

    by = 1.0

    def call(self, inputs):
        return inputs + self.by


@keras.saving.register_keras_serializable(package="Old")
class Clip(keras.constraints.Constraint):
    """Keep weights below a bound."""

    def __init__(self, bound=9.0):
        self.bound = bound

    def __call__(self, w):
        return tf.minimum(w, self.bound)

    def get_config(self):
        return {"bound": self.bound}


@keras.saving.register_keras_serializable(package="Old")
def bent(x):
    return tf.abs(x) - 1.0


def distance(pair):
    return tf.abs(pair[0] - pair[1])


def squash(x):
    return tf.nn.sigmoid(x) * 2.0


def double(x, times=2.0):
    return x * times
