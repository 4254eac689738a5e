"""Channels cut through norms, against the same norms over the kept channels in NumPy."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.structured import plan_filters, prune_filters
from tests.models import samples
from tests.structured.by_hand import answer, randomised


def standard(x, axes, epsilon, mean=None, variance=None):
    mean = x.mean(axes, keepdims=True) if mean is None else mean
    variance = x.var(axes, keepdims=True) if variance is None else variance
    return (x - mean) / np.sqrt(variance + epsilon)


def grouped(x, groups, epsilon=1e-3):
    """Group norm of (batch, h, w, channels): statistics over both places and the channels of a group."""
    parts = x.reshape(*x.shape[:3], groups, -1)
    return standard(parts, (1, 2, 4), epsilon).reshape(x.shape)


def rows_grouped(x, groups, epsilon=1e-3):
    """Group norm along h: statistics over the rows of a group, w and the channels."""
    parts = x.reshape(len(x), groups, -1, *x.shape[2:])
    return standard(parts, (2, 3, 4), epsilon).reshape(x.shape)


def by_variance(x):
    return x / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


def by_square(x, axes):
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-6)


ROW = np.s_[:, None, None]
NORMS = {
    # name: layer, (kept map, its weights w cut where `along` says) -> map, axis of the weights with the channels
    "layer": (lambda: L.LayerNormalization(), lambda x, w: standard(x, -1, 1e-3) * w[0] + w[1], 0),
    "layer, map": (
        lambda: L.LayerNormalization(axis=[3, 1, 2]),
        lambda x, w: standard(x, (1, 2, 3), 1e-3) * w[0] + w[1],
        2,
    ),
    "layer, row": (lambda: L.LayerNormalization([-1, -2]), lambda x, w: standard(x, (2, 3), 1e-3) * w[0] + w[1], 1),
    "layer, places": (
        lambda: L.LayerNormalization([1, 2]),
        lambda x, w: standard(x, (1, 2), 1e-3) * w[0][..., None] + w[1][..., None],
        None,
    ),
    "layer, bare": (lambda: L.LayerNormalization(center=False, scale=False), lambda x, w: standard(x, -1, 1e-3), 0),
    "layer, by variance": (lambda: L.LayerNormalization(rms_scaling=True), lambda x, w: by_variance(x) * w[0], 0),
    "rms": (lambda: L.RMSNormalization(), lambda x, w: by_square(x, -1) * w[0], 0),
    "rms, map": (lambda: L.RMSNormalization([1, 2, 3]), lambda x, w: by_square(x, (1, 2, 3)) * w[0], 2),
    "group": (lambda: L.GroupNormalization(3), lambda x, w: grouped(x, 3) * w[0] + w[1], 0),
    "group, one": (lambda: L.GroupNormalization(1, center=False), lambda x, w: grouped(x, 1) * w[0], 0),
    "group, instance": (lambda: L.GroupNormalization(-1), lambda x, w: grouped(x, x.shape[-1]) * w[0] + w[1], 0),
    "group, as many": (lambda: L.GroupNormalization(12), lambda x, w: grouped(x, x.shape[-1]) * w[0] + w[1], 0),
    "group, rows": (
        lambda: L.GroupNormalization(2, axis=1),
        lambda x, w: rows_grouped(x, 2) * w[0][ROW] + w[1][ROW],
        None,
    ),
    "unit": (lambda: L.UnitNormalization(), lambda x, w: x / np.linalg.norm(x, axis=-1, keepdims=True), None),
    "unit, map": (
        lambda: L.UnitNormalization([2, 3]),
        lambda x, w: x / np.sqrt((x**2).sum((2, 3), keepdims=True)),
        None,
    ),
    "unit, rows": (lambda: L.UnitNormalization(1), lambda x, w: x / np.linalg.norm(x, axis=1, keepdims=True), None),
    "batch": (lambda: L.BatchNormalization(), lambda x, w: standard(x, 0, 1e-3, *w[2:]) * w[0] + w[1], 0),
    "batch, rows": (
        lambda: L.BatchNormalization(axis=1),
        lambda x, w: standard(x, 0, 1e-3, w[2][ROW], w[3][ROW]) * w[0][ROW] + w[1][ROW],
        None,
    ),
}


def normed(layer):
    """Convolutions of one place only, so that NumPy needs no more than products of matrices."""
    image = keras.Input((4, 5, 3), name="image")
    x = L.Conv2D(12, 1, name="a")(image)
    return keras.Model(image, L.Conv2D(2, 1, name="b")(layer(x)))


@pytest.mark.sweep(6)
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
@pytest.mark.parametrize("name", NORMS)
def test_norms_over_the_kept_channels_in_numpy(name):
    make, compute, along = NORMS[name]
    model = randomised(lambda: normed(make()))
    plan = plan_filters(model, ratio=0.34, criterion="random")
    small, x = prune_filters(model, plan), samples(model)[0]
    (group,) = plan.groups
    places = np.arange(12) % group.channels  # the same place goes from every group of a group norm
    kept = np.flatnonzero(~np.isin(places, group.removed))
    assert len(kept) == (9 if name == "group" else 8)

    first, *weights, last = ([np.asarray(v).astype("float64") for v in layer.weights] for layer in model.layers[1:])
    w = [v if along is None else v.take(kept, along) for v in (weights[0] if weights else [])]
    hidden = (x.astype("float64") @ first[0][0, 0] + first[1])[..., kept]
    expected = compute(hidden, w) @ last[0][0, 0][kept] + last[1]
    assert np.abs(expected - answer(small, [x])).max() < 1e-4
    assert np.abs(answer(model, [x]) - answer(small, [x])).max() > 1e-2
    zeroed = np.where(np.isin(np.arange(12), kept), np.asarray(model.layers[-1].kernel)[0, 0].T, 0).T[None, None]
    model.layers[-1].kernel.assign(zeroed)
    over_channels = name not in (
        "layer, places",
        "unit, rows",
        "batch",
        "batch, rows",
        "group, instance",
        "group, as many",
    )
    assert (np.abs(expected - answer(model, [x])).max() > 1e-2) == over_channels  # zeroing alone leaves old statistics


def test_an_instance_norm_has_as_many_groups_as_channels_are_left():
    model = randomised(lambda: normed(L.GroupNormalization(-1, name="norm")))
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer("norm").groups == 6


def test_a_group_norm_keeps_its_groups_and_loses_the_same_place_of_each():
    model = randomised(lambda: normed(L.GroupNormalization(3, name="norm")))
    plan = plan_filters(model, ratio=0.5, criterion="random")
    (group,) = plan.groups
    assert (group.channels, group.kept) == (4, 2)
    small = prune_filters(model, plan)
    kept = np.setdiff1d(np.arange(4), group.removed)
    assert small.get_layer("norm").groups == 3
    kernel = np.asarray(model.get_layer("a").kernel)
    assert np.array_equal(small.get_layer("a").kernel, kernel[..., np.concatenate([kept, kept + 4, kept + 8])])


def test_a_mask_of_steps_passes_a_norm_in_the_check():
    def make():
        tokens = keras.Input((6,), dtype="int32", name="tokens")
        x = L.Embedding(2, 8, mask_zero=True, name="embedding")(tokens)  # half of random tokens are masked
        x = L.LayerNormalization(name="norm")(x)
        x = L.MultiHeadAttention(2, 4, name="attention")(x, x)
        return keras.Model(tokens, L.Dense(3, name="logits")(L.GlobalAveragePooling1D(name="mean")(x)))

    model = randomised(make)
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer("embedding").output_dim == 4
