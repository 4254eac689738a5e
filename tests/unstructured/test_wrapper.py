"""The wrapper, and models wrapped and stripped."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.copies import copy_layer
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.layers import KERNEL_ROLES, weights_within
from kpipe.legacy import tfmot
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapper import PruneLowMagnitude
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers, strip_pruning
from tests.models import ZOO, build, samples

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


def kept(size, sparsity):
    """How many of `size` units TFMOT keeps."""
    return max(int(np.round(np.float32(size) * np.float32(1 - np.float32(sparsity)))), 1)


def inputs(model, count=8):
    """Draw inputs the way the model takes them."""
    drawn = samples(model, count)
    return drawn[0] if len(drawn) == 1 else drawn


def prune(model, schedule=HALF, steps=1, **options):
    """Wrap a model and let the callback prune it; no step is trained."""
    pruned = prune_low_magnitude(model, schedule, **options)
    follow(pruned, steps)
    return pruned


def follow(model, steps):
    """Say to the callback that training steps begin."""
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for step in range(steps):
        callback.on_train_batch_begin(step)
    return callback


def small(*layers, size=6):
    return keras.Sequential([keras.Input((size,)), *layers])


# ---- what is wrapped -------------------------------------------------------------------------------------------------


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


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_masks_take_one_byte_an_entry_and_are_saved():
    pruned = prune(small(L.Dense(32), L.Dense(16), size=64))
    weights = sum(known.weight.numpy().nbytes for layer in pruned.layers for known in layer.masked)
    masks = sum(known.mask.numpy().nbytes for layer in pruned.layers for known in layer.masked)
    assert masks == weights / 4
    assert {variable.name for variable in pruned.layers[0].variables} >= {"mask", "threshold", "pruning_step"}
    assert not any(variable.name == "mask" for variable in pruned.trainable_variables)


@pytest.mark.parametrize(
    ("options", "units"),
    [({}, (1, 1)), ({"block_size": (2, 2)}, (2, 2)), ({"block_size": (3, 1), "block_pooling_type": "MAX"}, (3, 1))],
    ids=["entries", "blocks", "blocks by maximum"],
)
def test_the_lowest_units_go(options, units):
    pruned = prune(small(L.Dense(8, use_bias=False), size=12), ConstantSparsity(0.4, 0, frequency=1), **options)
    ((weight, mask, threshold),) = pruned.layers[0].pruning_vars
    rows, columns = units
    keep = mask.numpy().reshape(12 // rows, rows, 8 // columns, columns)
    whole = keep.all(axis=(1, 3))
    assert (whole == keep.any(axis=(1, 3))).all() and whole.sum() == kept(whole.size, 0.4)
    magnitude = np.abs(weight.numpy())
    assert float(threshold) == magnitude[mask.numpy()].min() and not magnitude[~mask.numpy()].any()


def test_blocks_are_those_of_lowest_mean():
    values = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model = small(L.Dense(4, use_bias=False))
    model.set_weights([values])
    mask = prune(model, block_size=(2, 2)).layers[0].masked[0].mask.numpy()
    means = np.abs(values).reshape(3, 2, 2, 2).mean(axis=(1, 3))
    expected = np.ones(6, bool)
    expected[np.argsort(means, axis=None)[:3]] = False
    np.testing.assert_array_equal(mask, np.kron(expected.reshape(3, 2), np.ones((2, 2), bool)).astype(bool))


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (3, 3, 8, 6), (2, 2, 2, 8, 6)], ids=str)
def test_m_zeros_in_each_n_whatever_the_rank_and_the_sparsity(shape):
    layer = L.Dense(6) if len(shape) == 2 else getattr(L, f"Conv{len(shape) - 2}D")(6, shape[:-2])
    model = keras.Sequential([keras.Input((*[5] * (len(shape) - 2), shape[-2])), layer])
    known = prune(model, ConstantSparsity(0.1, 0, frequency=1), sparsity_m_by_n=(2, 4)).layers[0].masked[0]
    magnitude, keep = np.abs(model.layers[0].kernel.numpy()), known.mask.numpy()
    for first in range(0, shape[-2], 4):
        group = np.moveaxis(magnitude, -2, -1)[..., first : first + 4]
        expected = group >= np.sort(group, axis=-1)[..., -2:-1]
        np.testing.assert_array_equal(np.moveaxis(keep, -2, -1)[..., first : first + 4], expected)


def test_one_weight_stays_whatever_the_sparsity():
    pruned = prune(small(L.Dense(2)), ConstantSparsity(0.99, 0, frequency=1))
    assert np.count_nonzero(pruned.layers[0].layer.kernel.numpy()) == 1


def test_a_call_changes_nothing_and_weights_set_by_hand_are_masked_by_strip():
    pruned = prune(small(L.Dense(8)))
    layer = pruned.layers[0]
    layer.layer.kernel.assign(np.ones((6, 8)))
    pruned.predict(np.ones((2, 6)), verbose=0)
    assert (layer.layer.kernel.numpy() == 1).all()
    plain = strip_pruning(pruned)
    np.testing.assert_array_equal(plain.layers[0].kernel.numpy(), layer.masked[0].mask.numpy())
    assert (layer.layer.kernel.numpy() == 1).all() and plain.layers[0].kernel.constraint is None


def test_weights_of_a_wrapper_are_those_of_its_layer():
    pruned = prune(small(L.Dense(8)))
    weights = [np.ones((6, 8)), np.zeros(8)]
    pruned.layers[0].set_weights(weights)
    kernel, bias = pruned.layers[0].get_weights()
    np.testing.assert_array_equal(kernel, pruned.layers[0].masked[0].mask.numpy())
    np.testing.assert_array_equal(bias, weights[1])


# ---- files -----------------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "entries": {"pruning_schedule": PolynomialDecay(0.1, 0.7, 2, 9, 2, 3)},
    "blocks": {"block_size": (3, 2), "block_pooling_type": "MAX"},
    "m by n": {"sparsity_m_by_n": (1, 2)},
    "epochs": {"pruning_schedule": PolynomialDecay.over_epochs(final_sparsity=0.5, end=2)},
    "tfmot": {"pruning_schedule": tfmot.PolynomialDecay(0.1, 0.7, 2, 9, 2, 3)},
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_all_arguments_are_in_the_file(case, tmp_path):
    given = {"pruning_schedule": HALF, "block_size": (1, 1), "block_pooling_type": "AVG", "sparsity_m_by_n": None}
    given |= ARGUMENTS[case]
    prune_low_magnitude(small(L.Dense(4), size=6), **given).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    (layer,) = pruned_layers(loaded)
    assert {name: getattr(layer, name) for name in given} == given
    again = PruneLowMagnitude.from_config(layer.get_config())
    assert {name: getattr(again, name) for name in given} == given


def test_weights_alone_are_saved_with_their_masks(tmp_path):
    pruned = prune(small(L.Dense(8), L.Dense(3)))
    pruned.save_weights(tmp_path / "m.weights.h5")
    fresh = prune_low_magnitude(small(L.Dense(8), L.Dense(3)))
    fresh.load_weights(tmp_path / "m.weights.h5")
    for ours, theirs in zip(fresh.variables, pruned.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


# ---- copies ----------------------------------------------------------------------------------------------------------


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


def test_a_layer_that_cannot_be_copied_is_named():
    class Lost(L.Dense):
        def __init__(self, units, secret):
            super().__init__(units, name="lost")

    with pytest.raises(KpipeError, match=r"'lost' \(Lost\) cannot be copied"):
        copy_layer(Lost(2, object()))


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
        (lambda: prune_low_magnitude(Subclassed()), "subclassed model"),
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
        (lambda: strip_pruning(L.Dense(2)), "strip_pruning received Dense"),
        (lambda: strip_pruning(Subclassed()), "subclassed model"),
        (lambda: prune_low_magnitude(L.MultiHeadAttention(1, 2)).build((1, 2, 3)), "Call it once"),
    ],
    ids=range(15),
)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(KpipeError, match=text):
        call()


def test_strip_of_a_plain_model_is_a_copy_and_says_so():
    model = small(L.Dense(2))
    with pytest.warns(NoEffectWarning, match="found no wrapper"):
        plain = strip_pruning(model)
    np.testing.assert_array_equal(plain.get_weights()[0], model.get_weights()[0])
