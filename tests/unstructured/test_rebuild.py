"""Models of the same graph, made of other layers."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.copies import copy_layer
from kpipe.errors import KpipeError
from kpipe.unstructured.rebuild import rebuild


class Head(L.Layer):
    """A layer that uses the weights of another: the same table reads words and scores them."""

    def __init__(self, words, **kwargs):
        super().__init__(**kwargs)
        self.words = words

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.words.embeddings))


def test_layers_that_share_a_weight_are_refused_by_name():
    words = L.Embedding(5, 3, name="words")
    hidden = words(x := keras.Input((4,)))
    with pytest.raises(KpipeError, match=r"'words' \(Embedding\) and 'head' \(Head\) of 'tied' hold the same weight"):
        rebuild(keras.Model(x, Head(words, name="head")(hidden), name="tied"), copy_layer)


def test_one_layer_in_two_nested_models_stays_one():
    dense = L.Dense(3)
    one, other = (keras.Sequential([keras.Input((3,)), dense]) for _ in range(2))
    x = keras.Input((3,))
    twin = rebuild(keras.Model(x, [one(x), other(x)]), copy_layer)
    assert len(twin.weights) == 2
    twin.weights[0].assign(np.ones((3, 3)))
    first, second = twin(np.ones((1, 3)))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("base", [keras.Model, keras.Sequential])
def test_a_class_of_ones_own_that_is_lost_is_named(base):
    class Mine(base):
        def __init__(self, units):
            if base is keras.Sequential:
                super().__init__([keras.Input((2,)), L.Dense(units)], name="net")
            else:
                super().__init__(x := keras.Input((2,)), L.Dense(units)(x), name="net")

    with pytest.warns(UserWarning, match="'net' is a Mine; its copy is a (Functional|Sequential), without methods"):
        rebuild(Mine(2), copy_layer)


def test_a_functional_class_that_takes_inputs_and_outputs_is_kept():
    class Trained(keras.Model):
        """Its graph is that of a Functional model; its way to train is its own."""

    x = keras.Input((2,))
    assert type(rebuild(Trained(x, L.Dense(2)(x)), copy_layer)) is Trained
