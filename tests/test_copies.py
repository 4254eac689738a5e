"""Copies compute the same, share nothing with what they were made from, and hold all that it holds."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import kpipe
from kpipe.copies import copy_layer, copy_model
from kpipe.errors import KpipeError
from kpipe.unstructured.rebuild import rebuild
from tests.unstructured.wrapped import Mix


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


# ---- functions -------------------------------------------------------------------------------------------------------


def times(factor):
    """Make functions of one name that do different things."""

    def scaled(x):
        return x * factor

    return scaled


def relu(x):
    """A function with the name of one of Keras's."""
    return -x


class Clip(keras.constraints.Constraint):
    """A constraint that nobody has registered with Keras."""

    def __call__(self, w):
        return keras.ops.clip(w, -1, 1)


TABLE = keras.ops.array([1.0, 2.0, 3.0])
FUNCTIONS = {
    "lambda": lambda: [L.Lambda(lambda x, table=TABLE: x * table * TABLE)],
    "lambdas": lambda: [L.Lambda(lambda x: x + 1), L.Lambda(lambda x: x * 2, output_shape=lambda shape: shape)],
    "namesakes": lambda: [L.Lambda(times(2)), L.Activation(times(3)), L.Dense(3, activation=times(5))],
    "partial": lambda: [L.Lambda(functools.partial(keras.ops.multiply, 3.0), output_shape=(3,))],
    "method": lambda: [L.Lambda(TABLE.__mul__)],
    "of tensorflow": lambda: [L.Lambda(tf.nn.l2_normalize, arguments={"axis": -1})],
    "of Keras and like it": lambda: [L.Dense(3, "relu"), L.Dense(3, relu), L.Dense(3, lambda x: x + 1)],
    "constraint": lambda: [L.Dense(3, kernel_constraint=Clip())],
    "inside": lambda: [L.Reshape((3, 1)), L.TimeDistributed(L.Lambda(lambda x: x - 2)), L.TimeDistributed(Scale())],
}


@pytest.mark.parametrize("copy", [copy_model, lambda model: rebuild(model, copy_layer)], ids=["model", "layers"])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_are_the_very_same(case, copy):
    model = keras.Sequential([keras.Input((3,)), *FUNCTIONS[case]()])
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    twin = copy(model)
    np.testing.assert_array_equal(twin(x), model(x))
    for new, old in zip(twin._flatten_layers(), model._flatten_layers(), strict=True):
        for name in ("function", "activation", "kernel_constraint"):
            ours, theirs = getattr(new, name, None), getattr(old, name, None)
            assert ours is theirs or (name == "kernel_constraint" and type(ours) is type(theirs))
    assert relu.__name__ == "relu" and times(1).__name__ == "scaled", "and are named as before"
    assert all(layer.function.__name__ == "<lambda>" for layer in model.layers if case == "lambda")


def test_functions_bear_their_names_again_when_a_copy_fails():
    class Lost(L.Lambda):
        def __init__(self, function, secret):
            super().__init__(function, name="lost")

    layer = Lost(lambda x: x, None)
    with pytest.raises(KpipeError, match=r"'lost' \(Lost\) cannot be copied.*get_config that gives all the arguments"):
        copy_layer(layer)
    assert layer.function.__name__ == "<lambda>"


def test_two_classes_of_one_name_are_refused():
    def of(factor):
        class Times(L.Layer):
            def call(self, x):
                return x * factor

        return Times()

    with pytest.raises(KpipeError, match=r"two classes are named 'Times'.*register_keras_serializable"):
        copy_model(keras.Sequential([keras.Input((3,)), of(2), of(3)]))


def test_models_inside_that_are_compiled_are_copied_and_left_uncompiled():
    inner = keras.Sequential([keras.Input((3,)), L.Dense(2)], name="inner")
    inner.compile("sgd", loss=lambda y, found: keras.ops.mean(y - found))
    twin = copy_model(keras.Sequential([keras.Input((3,)), inner]))
    assert inner.compiled and not twin.get_layer("inner").compiled


# ---- what is no weight -----------------------------------------------------------------------------------------------

WORDS = np.array(["red green blue", "blue red yellow", "red"])
COLOURS, NUMBERS = np.array([["red"], ["blue"], ["red"]]), np.array([[7], [5], [7]])
ADAPTED = {
    "text": (L.TextVectorization, {"output_sequence_length": 4}, WORDS, ["blue pink"]),
    "text, tf-idf": (L.TextVectorization, {"output_mode": "tf_idf"}, WORDS, ["blue red", "pink"]),
    "text, padded": (
        L.TextVectorization,
        {"output_mode": "tf_idf", "max_tokens": 9, "pad_to_max_tokens": True},
        WORDS,
        ["blue"],
    ),
    "letters": (L.TextVectorization, {"standardize": None, "split": "character", "ngrams": 2}, WORDS, ["blue"]),
    "strings": (L.StringLookup, {"num_oov_indices": 2}, COLOURS, ["blue", "pink"]),
    "strings, one hot": (L.StringLookup, {"output_mode": "one_hot"}, COLOURS, ["blue", "pink"]),
    "strings, back": (L.StringLookup, {"invert": True}, COLOURS, [1, 2]),
    "numbers": (L.IntegerLookup, {"mask_token": 5}, NUMBERS, [5, 7, 9]),
    "numbers, counted": (L.IntegerLookup, {"output_mode": "count"}, NUMBERS, [5, 7, 9]),
    "bins": (L.Discretization, {"num_bins": 3}, np.arange(9.0)[:, None], [0.5, 4.0, 8.5]),
    "bins, one hot": (L.Discretization, {"num_bins": 3, "output_mode": "one_hot"}, np.arange(9.0)[:, None], [0.5, 4.0]),
    "normalization": (L.Normalization, {}, np.array([[1.0], [5.0]]), [5.0, 3.0]),
}


@pytest.mark.parametrize("copy", [copy_model, lambda model: rebuild(model, copy_layer)], ids=["model", "layers"])
@pytest.mark.parametrize("case", ADAPTED)
def test_what_was_adapted_to_data_is_copied(case, copy):
    kind, options, data, asked = ADAPTED[case]
    layer = kind(**options)
    layer.adapt(data)
    asked = (
        keras.ops.convert_to_tensor(np.array(asked)[:, None])
        if kind is L.Normalization
        else tf.constant(asked)[:, None]
    )
    model = keras.Sequential([keras.Input((1,), dtype=asked.dtype.name), layer])
    expected = model(asked).numpy()
    np.testing.assert_array_equal(copy(model)(asked), expected)
    assert (expected != expected[0]).any() or len(expected) == 1, "the question tells one answer from another"


def test_a_vocabulary_that_was_set_later_is_copied():
    layer = L.StringLookup(vocabulary=["red", "blue"])
    layer.set_vocabulary(["blue", "red"])
    assert copy_layer(layer)(["blue", "red"]).numpy().tolist() == [1, 2]
    assert copy_layer(L.StringLookup())._layers == []  # and one that was never adapted is no fault


class Counted(L.Layer):
    """A layer that saves in its own way: a file, and an entry that is no variable."""

    words, seen = (), 0

    def call(self, x):
        return x * len(self.words) + self.seen

    def save_own_variables(self, store):
        store["seen"] = np.array(self.seen)

    def load_own_variables(self, store):
        self.seen = int(store["seen"])

    def save_assets(self, folder):
        Path(folder, "words.txt").write_text(" ".join(self.words), encoding="utf-8")

    def load_assets(self, folder):
        self.words = Path(folder, "words.txt").read_text(encoding="utf-8").split()


def test_what_layers_of_ones_own_save_is_copied():
    layer = Counted()
    layer.words, layer.seen = ["red", "blue"], 3
    twin = copy_model(keras.Sequential([keras.Input((1,)), layer]))
    assert twin(np.ones((1, 1))).numpy().tolist() == [[5.0]]


# ---- what is shared, and what is built late --------------------------------------------------------------------------


class Head(L.Layer):
    """Score by the table of an embedding; `raw` is a configuration that gives the very layer."""

    def __init__(self, words, raw=False, **kwargs):
        super().__init__(**kwargs)
        self.words, self.raw = words, raw

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.words.embeddings))

    def get_config(self):
        words = self.words if self.raw else keras.saving.serialize_keras_object(self.words)
        return {**super().get_config(), "words": words, "raw": self.raw}

    @classmethod
    def from_config(cls, config):
        words = config["words"]
        return cls(**config | {"words": words if config["raw"] else keras.saving.deserialize_keras_object(words)})


def test_a_layer_inside_another_is_the_one_of_the_model_in_the_copy_too():
    words = L.Embedding(5, 3)
    model = keras.Model(x := keras.Input((4,)), Head(words)(words(x)))
    twin = copy_model(model)
    assert len(twin.weights) == 1 and twin.weights[0] is not model.weights[0]
    np.testing.assert_array_equal(twin(np.arange(4)[None]), model(np.arange(4)[None]))


def test_a_configuration_that_gives_a_layer_itself_is_refused():
    words = L.Embedding(5, 3, name="words")
    words.build((None, 4))
    with pytest.raises(KpipeError, match=r"'head' \(Head\) cannot be copied: Its get_config gives words.* in person"):
        copy_layer(Head(words, raw=True, name="head"))


def test_single_weights_stay_frozen():
    layer = L.Dense(2)
    layer.build((None, 3))
    layer.kernel.trainable = False
    assert [weight.trainable for weight in copy_layer(layer).weights] == [False, True]


@pytest.mark.parametrize("copy", [copy_model, lambda model: rebuild(model, copy_layer)], ids=["model", "layers"])
def test_layers_that_keras_builds_by_a_call_are_copied(copy):
    a, b = keras.Input((6,)), keras.Input((4,))
    model = keras.Model([a, b], Mix(4, name="mix")(a, y=b))
    x = [np.random.default_rng(0).normal(size=(2, size)).astype("float32") for size in (6, 4)]
    np.testing.assert_array_equal(copy(model)(x), model(x))
