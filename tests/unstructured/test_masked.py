"""Masks of wrapped layers: which entries go, and what a mask takes."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.schedules import ConstantSparsity
from tests.unstructured.wrapped import kept, prune, small


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
