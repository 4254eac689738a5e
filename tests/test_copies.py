import keras
import numpy as np
import pytest

import kpipe
from kpipe.copies import copy_model
from kpipe.errors import KpipeError


class Scale(keras.layers.Layer):
    """A layer that nobody has registered with Keras."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


def net():
    image = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3, name="first")(image)
    inner = keras.Sequential([keras.Input((4, 4, 4)), Scale(name="scale")], name="inner")
    x = keras.layers.Conv2D(3, 3, name="second")(keras.layers.ReLU()(inner(x)))
    return keras.Model(image, keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(x)))


def test_layer_classes_of_ones_own_need_not_be_registered():
    model, x = net(), np.random.default_rng(0).normal(size=(2, 6, 6, 1))
    np.testing.assert_array_equal(copy_model(model)(x), model(x))
    sparse = kpipe.prune_weights(model, 0.5, layers="second")
    assert int((sparse.get_layer("second").kernel.numpy() == 0).sum()) == round(0.5 * 3 * 3 * 4 * 3)
    assert keras.saving.get_custom_objects().get("Scale") is None, "and the scope is left again"


def test_a_model_without_a_config_is_refused_by_name():
    class Own(keras.Model):
        def __init__(self, units):
            super().__init__(name="own")
            self.dense = keras.layers.Dense(units)

        def call(self, x):
            return self.dense(x)

    model = Own(2)
    model(np.ones((1, 3)))
    with pytest.raises(KpipeError, match=r"'own'.*cannot be copied.*get_config"):
        copy_model(model)
