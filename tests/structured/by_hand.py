"""Models of one chain, and the comparison of a cut with the original whose consumers are zeroed by hand."""

import keras
import numpy as np
from keras import layers as L

from kpipe.structured import plan_filters, prune_filters
from tests.models import samples


def randomised(make, seed=0):
    """A model of which no weight is neutral: norms and slopes too."""
    keras.utils.set_random_seed(seed)
    model, rng = make(), np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance", "scale", "variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.dtype == "float32":
            variable.assign(rng.normal(0.0, 0.4, variable.shape))
    return model


def answer(model, inputs):
    fed = inputs if len(inputs) > 1 else inputs[0]
    return np.asarray(model(fed, training=False))


def same(c):
    return [c]


def after(offset):
    return lambda c: [offset + c]


def flat(places, channels):
    """Entries of a flattened map, channels last."""
    return lambda c: [place * channels + c for place in range(places)]


def hold(make, consumers, ratio=0.5):
    """Cut a model and compare it with the original whose consumers are zeroed by the given table.

    `consumers` maps a group to (layer, weight, axis, channel -> entries) of what sums over its channels.
    """
    model = randomised(make)
    plan = plan_filters(model, ratio=ratio, criterion="random")
    assert {group.name for group in plan.groups} == set(consumers)
    small, inputs = prune_filters(model, plan), samples(model)
    untouched = answer(model, inputs)
    for group in plan.groups:
        assert group.kept == max(1, group.channels - int(ratio * group.channels + 0.5))
        for name, weight, axis, entries in consumers[group.name]:
            variable = getattr(model.get_layer(name), weight)
            value = np.moveaxis(np.asarray(variable).copy(), axis, 0)
            for channel in group.removed:
                value[entries(channel)] = 0
            variable.assign(np.moveaxis(value, 0, axis))
    expected, got = answer(model, inputs), answer(small, inputs)
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(expected - got).max() < 1e-5 * scale
    assert np.abs(untouched - got).max() > 1e-3  # the comparison can fail
    return small


def chain(*between, shape=(6, 6, 2), rank=2, channels=6, data_format=None):
    """conv a -> the given layers -> conv b -> logits."""
    conv = [L.Conv1D, L.Conv2D, L.Conv3D][rank - 1]
    x = image = keras.Input(shape, name="image")
    x = conv(channels, 3, padding="same", data_format=data_format, name="a")(x)
    for layer in between:
        x = layer(x)
    x = conv(4, 1, activation="relu", data_format=data_format, name="b")(x)
    x = L.Flatten(data_format=data_format, name="flat")(x)
    return keras.Model(image, L.Dense(3, name="logits")(x))
