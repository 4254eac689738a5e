"""The wrapper as a layer: what it holds, saves, calls and refuses."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.legacy import tfmot
from kpipe.schedules import PolynomialDecay
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapper import PruneLowMagnitude
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers, strip_pruning
from tests.unstructured.wrapped import HALF, Mix, prune, small


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


# ---- built by a call -------------------------------------------------------------------------------------------------


class Attending(keras.Model):
    """A subclassed model of wrapped layers that no shape builds: several inputs, no build, several outputs."""

    def __init__(self):
        super().__init__()
        self.attend = prune_low_magnitude(L.MultiHeadAttention(2, 4), HALF)
        self.mix = prune_low_magnitude(Mix(8), HALF)
        self.remember = prune_low_magnitude(L.LSTM(4, return_state=True), HALF)

    def call(self, x):
        x = self.mix(self.attend(x, x, use_causal_mask=True), y=x)
        return self.remember(x)[0]


@pytest.mark.plain_fit
@pytest.mark.sweep(1)
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_layers_that_only_a_call_builds_are_masked_in_the_first_step(options):
    model, x = Attending(), np.random.default_rng(0).normal(size=(16, 5, 8)).astype("float32")
    model.compile("sgd", "mse", **options)
    model.fit(x, x[:, 0, :4], batch_size=4, verbose=0, callbacks=[UpdatePruningStep()])
    masks = [known for layer in pruned_layers(model) for known in layer.masked]
    assert [known.mask.shape for known in masks] == [(8, 2, 4)] * 3 + [(2, 4, 8)] + [(8, 8)] * 2 + [(8, 16), (4, 16)]
    for known in masks:
        assert 2 * known.dropped == known.mask.numpy().size == 2 * np.count_nonzero(known.weight.numpy() == 0)


@keras.saving.register_keras_serializable("tests")
class Pair(Mix):
    """It takes two inputs, and nothing less."""

    def call(self, x, y):
        return super().call(x, y)


@pytest.mark.filterwarnings(r"ignore:`build\(\)` was called on layer:UserWarning")  # of Keras, without a wrapper too
@pytest.mark.parametrize("sizes", [(6,), (6, 4)], ids=str)
def test_masks_of_layers_that_a_call_builds_are_saved(sizes, tmp_path):
    inputs = [keras.Input((size,)) for size in sizes]
    model = prune(keras.Model(inputs, (Mix(4) if len(sizes) == 1 else Pair(4))(*inputs)))
    assert [known.dropped for known in pruned_layers(model)[0].masked] == [12, 8]
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = [np.random.default_rng(0).normal(size=(4, size)) for size in sizes]
    for net in (loaded, strip_pruning(loaded)):
        np.testing.assert_allclose(net.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    for ours, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_shape_builds_what_is_inside_a_layer_that_takes_one_input():
    wrapped = prune_low_magnitude(Mix(4), HALF)
    wrapped.build((None, 6))
    assert [known.mask.shape for known in wrapped.masked] == [(6, 4), (4, 4)]
