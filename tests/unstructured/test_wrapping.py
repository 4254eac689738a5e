"""Which layers of models and lists are wrapped, and how they are stripped again."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.copies import check_built
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.layers import KERNEL_ROLES, weights_within
from kpipe.legacy import tfmot
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapper import PruneLowMagnitude
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers, strip_pruning
from tests.models import ZOO, build, samples
from tests.unstructured.wrapped import HALF, Gate, Mix, Unknown, follow, kept, prune, small


def inputs(model, count=8):
    """Draw inputs the way the model takes them."""
    drawn = samples(model, count)
    return drawn[0] if len(drawn) == 1 else drawn


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ZOO)
def test_a_wrapped_model_computes_the_same_and_strips_to_exact_zeros(name):
    model = build(name)
    x, before = inputs(model), [weight.copy() for weight in model.get_weights()]
    pruned = prune_low_magnitude(model, HALF)
    for ours, theirs in zip(*(keras.tree.flatten(net.predict(x, verbose=0)) for net in (pruned, model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    follow(pruned, 1)
    plain = strip_pruning(pruned)
    assert not pruned_layers(plain)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    found = [weight for weight in weights_within(plain) if weight.role in KERNEL_ROLES]
    for weight in found:
        values = weight.variable.numpy()
        zeros = 0 if weight.role == "depthwise_kernel" else values.size - kept(values.size, 0.5)
        assert (values == 0).sum() == zeros, weight.path
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_only_layers_with_kernels_are_wrapped_and_their_names_say_so():
    model = small(L.Dense(4, name="a"), L.BatchNormalization(name="n"), L.Dropout(0.1, name="d"), L.ReLU(name="r"))
    names = [layer.name for layer in prune_low_magnitude(model).layers]
    assert names == ["prune_low_magnitude_a", "n", "d", "r"]


def test_wrapping_again_keeps_what_is_wrapped():
    once = prune(small(L.Dense(4, name="a"), L.Dense(2, name="b")))
    twice = prune_low_magnitude(once, ConstantSparsity(0.9, 0))
    assert [layer.name for layer in twice.layers] == ["prune_low_magnitude_a", "prune_low_magnitude_b"]
    assert [layer.pruning_schedule for layer in twice.layers] == [HALF, HALF]
    np.testing.assert_array_equal(twice.layers[0].masked[0].mask.numpy(), once.layers[0].masked[0].mask.numpy())


def test_a_layer_in_two_places_is_wrapped_once():
    x, dense = keras.Input((4,)), L.Dense(4)
    pruned = prune_low_magnitude(keras.Model(x, dense(dense(x))))
    assert len(pruned_layers(pruned)) == 1


def test_the_new_model_is_not_compiled_and_has_the_given_ones_names():
    x = keras.Input((4,), name="features")
    model = keras.Model({"features": x}, {"score": L.Dense(2)(x)}, name="net")
    model.compile("adam", "mse")
    pruned = prune_low_magnitude(model)
    assert not pruned.compiled and pruned.name == "net" and pruned.inputs[0].name == "features"
    assert set(pruned.predict({"features": np.ones((2, 4))}, verbose=0)) == {"score"}


def test_a_list_and_a_single_layer_are_wrapped_themselves():
    dense, flat = L.Dense(3), L.Flatten()
    listed = prune_low_magnitude([dense, flat])
    assert listed[0].layer is dense and listed[1] is flat
    single = prune_low_magnitude(L.Dense(3), HALF, block_size=(2, 1))
    assert isinstance(single, PruneLowMagnitude) and single.block_size == (2, 1)


def test_an_unbuilt_model_is_wrapped_and_stays_unbuilt():
    pruned = prune_low_magnitude(keras.Sequential([L.Dense(4), L.ReLU(), L.MultiHeadAttention(1, 2)]))
    assert not pruned.built and [isinstance(layer, PruneLowMagnitude) for layer in pruned.layers] == [True, False, True]


def test_unknown_and_frozen_layers_are_left_alone_and_named():
    frozen = L.Dense(4, name="cold", trainable=False)
    model = small(L.Dense(4, name="a"), frozen, Unknown(name="odd"))
    with pytest.warns(UserWarning, match=r"(?s)cold \(Dense\): it is frozen.*odd \(Unknown\): .*register_weights"):
        pruned = prune_low_magnitude(model)
    assert [layer.name for layer in pruned.layers] == ["prune_low_magnitude_a", "cold", "odd"]
    assert not pruned.layers[1].trainable


def test_kernels_that_are_stored_otherwise_are_named():
    adapted, packed = L.Dense(4, name="lora"), L.Dense(4, name="int8")
    model = small(adapted, packed, L.Dense(4, name="a"))
    adapted.enable_lora(2)
    packed.quantize("int8")
    reasons = r"(?s)lora \(Dense\): LoRA is enabled.*int8 \(Dense\): it is quantized to int8"
    with pytest.warns(UserWarning, match=reasons):
        prune_low_magnitude(list(model.layers))


def test_nothing_to_wrap_is_said():
    with pytest.warns(NoEffectWarning, match="wrapped nothing"):
        prune_low_magnitude(small(L.ReLU()))
    with pytest.warns(NoEffectWarning, match="wrapped nothing"):
        assert isinstance(prune_low_magnitude(L.Dropout(0.5)), L.Dropout)


def test_a_layer_says_itself_what_is_pruned():
    gate = prune_low_magnitude(Gate(4))
    gate.build((None, 6))
    assert [tuple(mask.shape) for _, mask, _ in gate.pruning_vars] == [(6, 4), (4,)]


def test_a_policy_chooses_the_layers_of_models_and_lists():
    class NotTheLast(tfmot.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.name != "last"

        def ensure_model_supports_pruning(self, model):
            if len(model.layers) < 2:
                raise KpipeError("too few")

    layers = [L.Dense(4, name="a"), L.Dense(2, name="last")]
    of_model = prune_low_magnitude(small(*layers), pruning_policy=NotTheLast()).layers
    for found in (of_model, prune_low_magnitude(layers, pruning_policy=NotTheLast())):
        assert [layer.name for layer in found] == ["prune_low_magnitude_a", "last"]
    with pytest.raises(KpipeError, match="too few"):
        prune_low_magnitude(small(L.Dense(2)), pruning_policy=NotTheLast())


FAMILIES = {
    "attention": ((5, 8), lambda x: L.MultiHeadAttention(2, 4)(x, x), 4),
    "grouped attention": ((5, 8), lambda x: L.GroupQueryAttention(4, 4, 2)(x, x), 4),
    "lstm": ((5, 4), lambda x: L.LSTM(6)(x), 2),
    "both ways": ((5, 4), lambda x: L.Bidirectional(L.GRU(3))(x), 4),
    "cells": ((5, 4), lambda x: L.RNN([L.LSTMCell(4), L.SimpleRNNCell(3)])(x), 4),
    "states": ((5, 4), lambda x: L.Concatenate()(L.LSTM(4, return_state=True)(x)), 2),
    "distributed": ((3, 6, 6, 2), lambda x: L.TimeDistributed(L.Conv2D(4, 3))(x), 1),
    "einsum": ((5, 8), lambda x: L.EinsumDense("abc,cd->abd", (5, 6), bias_axes="d")(x), 1),
    "convolutions": ((9, 9, 2), lambda x: L.Conv2DTranspose(3, 3)(L.SeparableConv2D(4, 3)(x)), 2),
    "masked words": ((7,), lambda x: L.LSTM(4)(L.Embedding(5, 8, mask_zero=True)(x)), 3),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_layers_compute_save_and_strip(family, tmp_path):
    shape, make, count = FAMILIES[family]
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    model, rng = keras.Model(x, make(x)), np.random.default_rng(0)
    data = rng.integers(0, 5, (4, *shape)) if family == "masked words" else rng.normal(size=(4, *shape))
    pruned = prune(model)
    masks = [known for layer in pruned_layers(pruned) for known in layer.masked]
    assert len(masks) == count
    for known in masks:
        values = known.weight.numpy()
        assert (values == 0).sum() == known.dropped == values.size - kept(values.size, 0.5)
    pruned.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    plain = strip_pruning(loaded)
    for net in (loaded, plain):
        np.testing.assert_allclose(net.predict(data, verbose=0), pruned.predict(data, verbose=0), atol=1e-6)


def test_layers_that_were_adapted_and_layers_of_ones_own_are_copied():
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(0).normal(5.0, 3.0, (64, 6)))
    model = small(norm, Gate(4), L.Dense(2))
    x = np.random.default_rng(1).normal(size=(4, 6))
    plain = strip_pruning(prune_low_magnitude(model))
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_frozen_parts_stay_frozen():
    inner = small(L.Dense(5, name="a"), L.BatchNormalization(name="n"))
    inner.layers[1].trainable = False
    model = keras.Sequential([keras.Input((6,)), inner, L.Dense(2, name="b")])
    plain = strip_pruning(prune_low_magnitude(model))
    flags = [layer.trainable for layer in plain._flatten_layers()]
    assert flags == [layer.trainable for layer in model._flatten_layers()] and not all(flags)


# ---- wrapped inside another layer ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Holding(L.Layer):
    """A layer that is given another."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"inner": keras.saving.deserialize_keras_object(config["inner"])})


@pytest.mark.sweep(1)
@pytest.mark.parametrize("outer", [L.TimeDistributed, Holding, lambda layer: Holding(L.TimeDistributed(layer))])
@pytest.mark.parametrize("inner", [lambda: L.Dense(4), lambda: L.LSTM(3, return_sequences=True), lambda: Mix(4)])
def test_wrappers_inside_other_layers_come_out_too(outer, inner, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((3, 5, 6) if outer is not Holding else (5, 6))
    model = keras.Model(x, outer(prune_low_magnitude(inner(), HALF))(x))
    assert prune_low_magnitude(model).count_params() == model.count_params()  # it is wrapped already
    follow(model)
    (wrapper,) = pruned_layers(model)
    wrapper.masked[0].weight.assign(np.ones(wrapper.masked[0].weight.shape))  # by hand: only the mask knows what goes
    plain, data = strip_pruning(model), inputs(model)
    kernel = plain.layers[-1].weights[0].numpy()
    np.testing.assert_array_equal(kernel, wrapper.masked[0].mask.numpy())
    wrapper.project()
    np.testing.assert_array_equal(plain.predict(data, verbose=0), model.predict(data, verbose=0))
    assert "PruneLowMagnitude" not in plain.to_json() and "PruneLowMagnitude" in model.to_json()


def test_a_layer_that_makes_its_own_wrappers_is_refused_by_name():
    class Own(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = prune_low_magnitude(L.Dense(4), HALF)

        def call(self, x):
            return self.inner(x)

    with pytest.raises(KpipeError, match=r"'own' \(Own\) makes a PruneLowMagnitude in its own __init__"):
        strip_pruning(small(Own(name="own")))


# ---- refusals --------------------------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    """A model whose graph cannot be read."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: prune_low_magnitude(Subclassed()), "subclassed model.* Or wrap the layers that it holds one by one"),
        (lambda: prune_low_magnitude("net"), "received str"),
        (lambda: prune_low_magnitude([L.Dense(2), "dense"]), "The list holds str"),
        (lambda: prune_low_magnitude(Unknown()), "knows no kernel of Unknown"),
        (lambda: prune_low_magnitude(small(L.Dense(2)), pruning_shedule=HALF), "received pruning_shedule"),
        (lambda: prune_low_magnitude(L.Dense(2), 0.5), "pruning_schedule is 0.5"),
        (lambda: prune_low_magnitude(L.Dense(2), block_pooling_type="MIN"), "block_pooling_type is 'MIN'"),
        (lambda: prune_low_magnitude(L.Dense(2), block_size=4), "block_size is 4"),
        (lambda: prune_low_magnitude(L.Dense(2), block_size=(0, 1)), "The block is 0 by 1"),
        (lambda: prune_low_magnitude(L.Dense(2), sparsity_m_by_n=(4, 2)), r"1 <= m < n"),
        (lambda: prune_low_magnitude(L.Dense(2), sparsity_m_by_n=(2, 4), block_size=(2, 1)), "expected one of them"),
        (lambda: PruneLowMagnitude("dense"), "expected a Keras layer"),
        (lambda: PruneLowMagnitude(L.TimeDistributed(PruneLowMagnitude(L.Dense(2)))), "is wrapped already"),
        (lambda: strip_pruning(L.Dense(2)), "strip_pruning received Dense"),
        (lambda: strip_pruning(Subclassed()), r"subclassed model.*keras.Model\(x, model.call\(x\)\)\.$"),
        (lambda: prune_low_magnitude(L.MultiHeadAttention(1, 2)).build((1, 2, 3)), "Call it once"),
    ],
    ids=range(16),
)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(KpipeError, match=text):
        call()


def test_strip_of_a_plain_model_is_a_copy_and_says_so():
    model = small(L.Dense(2))
    with pytest.warns(NoEffectWarning, match="found no wrapper"):
        plain = strip_pruning(model)
    np.testing.assert_array_equal(plain.get_weights()[0], model.get_weights()[0])


def test_a_subclassed_model_of_wrapped_layers_is_stripped_as_a_graph():
    class Listed(keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = [prune_low_magnitude(L.Dense(4), HALF), L.ReLU(), prune_low_magnitude(L.Dense(2), HALF)]

        def call(self, x):
            for step in self.steps:
                x = step(x)
            return x

    model, x = Listed(), np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    model(x)
    follow(model)
    plain = strip_pruning(keras.Model(given := keras.Input((6,)), model.call(given)))
    np.testing.assert_array_equal(plain(x), model(x))
    assert [int((weight == 0).sum()) for weight in plain.get_weights()[::2]] == [12, 4]


def of_keras2(name, bases=()):
    """Make an object of a class that says it is of tf_keras; importing that would change tf.keras for other tests."""
    return type(name, bases, {"__module__": "tf_keras.src.engine.training"})()


@pytest.mark.parametrize(
    "call",
    [
        lambda: prune_low_magnitude(of_keras2("Sequential")),
        lambda: prune_low_magnitude([L.Dense(2), of_keras2("Dense")]),
        lambda: prune_low_magnitude(type("Mine", (type(of_keras2("Model")),), {})()),
        lambda: PruneLowMagnitude(of_keras2("Dense")),
        lambda: strip_pruning(of_keras2("Sequential")),
        lambda: UpdatePruningStep().set_model(of_keras2("Sequential")),
        lambda: tfmot.PruneForLatencyOnXNNPack().ensure_model_supports_pruning(of_keras2("Sequential")),
        lambda: check_built(of_keras2("Sequential")),
    ],
    ids=range(8),
)
def test_what_is_of_keras_2_is_told_from_what_is_no_layer(call):
    with pytest.raises(KpipeError, match=r"of tf_keras, which is Keras 2.* Remove TF_USE_LEGACY_KERAS"):
        call()
