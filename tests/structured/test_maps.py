"""Channels of vectors and maps cut through layers of every kind, against consumers zeroed by hand."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.structured import plan_filters, prune_filters
from tests.models import samples
from tests.structured.by_hand import answer, chain, flat, hold, randomised, same

FLAT = [("logits", "kernel", 0, flat(36, 4))]
CHAINS = {
    # name: model, group -> what sums over its channels
    "transposed, strides": (
        lambda: chain(L.Conv2DTranspose(8, 3, strides=2, padding="same", output_padding=1, name="up")),
        {
            "a": [("up", "kernel", 3, same)],
            "up": [("b", "kernel", 2, same)],
            "b": [("logits", "kernel", 0, flat(144, 4))],
        },
    ),
    "transposed, steps": (
        lambda: chain(L.Conv1DTranspose(5, 2, activation="relu", name="up"), shape=(6, 2), rank=1),
        {
            "a": [("up", "kernel", 2, same)],
            "up": [("b", "kernel", 1, same)],
            "b": [("logits", "kernel", 0, flat(7, 4))],
        },
    ),
    "transposed, volume": (
        lambda: chain(L.Conv3DTranspose(5, 2, use_bias=False, name="up"), shape=(2, 2, 2, 2), rank=3),
        {
            "a": [("up", "kernel", 4, same)],
            "up": [("b", "kernel", 3, same)],
            "b": [("logits", "kernel", 0, flat(27, 4))],
        },
    ),
    "groups": (
        lambda: chain(L.Conv2D(9, 3, padding="same", groups=3, name="g"), channels=12),
        {
            "a": [("g", "kernel", 2, same)],
            "g": [("b", "kernel", 2, lambda c: [c, 3 + c, 6 + c])],
            "b": FLAT,
        },
    ),
    "groups, volume": (
        lambda: chain(L.Conv3D(4, 1, groups=2, name="g"), shape=(2, 2, 2, 2), rank=3, channels=8),
        {
            "a": [("g", "kernel", 3, same)],
            "g": [("b", "kernel", 3, lambda c: [c, 2 + c])],
            "b": [("logits", "kernel", 0, flat(8, 4))],
        },
    ),
    "groups, each channel": (
        lambda: chain(L.Conv2D(12, 3, padding="same", groups=6, name="g")),
        {"a": [("b", "kernel", 2, lambda c: [2 * c, 2 * c + 1])], "b": FLAT},
    ),
    "groups, shuffled": (
        lambda: chain(
            L.Conv2D(8, 1, groups=2, name="g"),
            L.Reshape((6, 6, 2, 4)),
            L.Permute((1, 2, 4, 3)),
            L.Reshape((6, 6, 8)),
            L.DepthwiseConv2D(3, padding="same"),
        ),
        {"a": [("g", "kernel", 2, same)], "g": [("b", "kernel", 2, lambda c: [2 * c, 2 * c + 1])], "b": FLAT},
    ),
    "depthwise": (
        lambda: chain(L.DepthwiseConv2D(3, padding="same", depth_multiplier=3, activation="gelu")),
        {"a": [("b", "kernel", 2, lambda c: [3 * c, 3 * c + 1, 3 * c + 2])], "b": FLAT},
    ),
    "depthwise, steps": (
        lambda: chain(L.DepthwiseConv1D(3, padding="same", depth_multiplier=2), shape=(6, 2), rank=1),
        {
            "a": [("b", "kernel", 1, lambda c: [2 * c, 2 * c + 1])],
            "b": [("logits", "kernel", 0, flat(6, 4))],
        },
    ),
    "separable": (
        lambda: chain(L.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, name="s")),
        {
            "a": [("s", "pointwise_kernel", 2, lambda c: [2 * c, 2 * c + 1])],
            "s": [("b", "kernel", 2, same)],
            "b": FLAT,
        },
    ),
    "dense on maps": (
        lambda: chain(L.Dense(8, activation="relu", name="d")),
        {"a": [("d", "kernel", 0, same)], "d": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "spectral": (
        lambda: chain(L.SpectralNormalization(L.Conv2D(8, 3, padding="same", name="inner"), name="s")),
        {"a": [("s", "kernel", 2, same)], "s": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "spectral, transposed": (
        lambda: chain(L.SpectralNormalization(L.Conv2DTranspose(8, 3, padding="same"), name="s")),
        {"a": [("s", "kernel", 3, same)], "s": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "prelu": (lambda: chain(L.PReLU(), L.BatchNormalization()), {"a": [("b", "kernel", 2, same)], "b": FLAT}),
    "prelu, shared": (lambda: chain(L.PReLU(shared_axes=[1, 2])), {"a": [("b", "kernel", 2, same)], "b": FLAT}),
    "prelu, all but rows": (lambda: chain(L.PReLU(shared_axes=[2, 3])), {"a": [("b", "kernel", 2, same)], "b": FLAT}),
    "rescaling": (
        lambda: chain(L.Rescaling(np.arange(1.0, 7.0), offset=[0.5, 1, 2, 3, 4, 5]), L.Activation("sigmoid")),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "rescaling, rows": (
        lambda: chain(L.Rescaling(np.arange(1.0, 37.0).reshape(6, 6, 1))),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "normalization": (
        lambda: chain(L.Normalization(mean=[1.0, 2, 3, 4, 5, 6], variance=[6.0, 5, 4, 3, 2, 1])),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "normalization, rows and channels": (
        lambda: chain(L.Normalization((1, 3), mean=np.ones((6, 6)), variance=np.arange(1.0, 37.0).reshape(6, 6))),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "resized": (
        lambda: chain(L.Resizing(8, 8, interpolation="bilinear"), L.CenterCrop(6, 6), L.AdaptiveAveragePooling2D(6)),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
    "permuted": (
        lambda: chain(L.Permute((3, 1, 2)), L.PReLU(), L.Permute((2, 3, 1))),
        {"a": [("b", "kernel", 2, same)], "b": FLAT},
    ),
}


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", CHAINS)
def test_chains_against_consumers_zeroed_by_hand(name):
    hold(*CHAINS[name])


# Keras on TensorFlow adds the bias of as many channels-first maps as they are wide along the width: 7 is no number of
# channels here.
FIRST = {
    # name: layers between a and b with channels first, group -> consumers
    "plain": ([], {"a": [("b", "kernel", 2, same)]}),
    "groups": (
        [lambda **c: L.Conv2D(9, 3, padding="same", groups=3, name="g", **c)],
        {"a": [("g", "kernel", 2, same)], "g": [("b", "kernel", 2, lambda c: [c, 3 + c, 6 + c])]},
    ),
    "transposed": (
        [lambda **c: L.Conv2DTranspose(5, 3, padding="same", name="t", **c)],
        {"a": [("t", "kernel", 3, same)], "t": [("b", "kernel", 2, same)]},
    ),
    "depthwise": (
        [lambda **c: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, **c)],
        {"a": [("b", "kernel", 2, lambda c: [2 * c, 2 * c + 1])]},
    ),
    "separable": (
        [lambda **c: L.SeparableConv2D(5, 3, padding="same", name="s", **c)],
        {"a": [("s", "pointwise_kernel", 2, same)], "s": [("b", "kernel", 2, same)]},
    ),
    "pooled": (
        [
            lambda **c: L.BatchNormalization(axis=1),
            lambda **c: L.PReLU(shared_axes=[2, 3]),
            lambda **c: L.GroupNormalization(-1, axis=1),
            lambda **c: L.LayerNormalization(axis=[2, 3]),
            lambda **c: L.MaxPooling2D(2, 1, padding="same", **c),
            lambda **c: L.AveragePooling2D(2, 1, padding="same", **c),
            lambda **c: L.ZeroPadding2D(1, **c),
            lambda **c: L.Cropping2D(1, **c),
            lambda **c: L.UpSampling2D(2, **c),
            lambda **c: L.AdaptiveMaxPooling2D(6, **c),
            lambda **c: L.Resizing(4, 4, **c),
            lambda **c: L.CenterCrop(6, 7, **c),
            lambda **c: L.SpatialDropout2D(0.2, **c),
        ],
        {"a": [("b", "kernel", 2, same)]},
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_channels_first_against_consumers_zeroed_by_hand(name):
    layers, consumers = FIRST[name]

    def make():
        between = [layer(data_format="channels_first") for layer in layers]
        return chain(*between, shape=(2, 6, 7), channels=12, data_format="channels_first")

    hold(make, consumers | {"b": [("logits", "kernel", 0, flat(42, 4))]})


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks_with_channels_first(rank):
    norm = L.LayerNormalization(axis=1)
    model = randomised(lambda: chain(norm, shape=(2, *(5,) * rank), rank=rank, data_format="channels_first"))
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer(norm.name).gamma.shape == (3,) and small.get_layer("a").filters == 3


def test_adapted_statistics_are_used_by_the_smaller_model():
    """A Normalization computes with constants that it makes of its weights."""
    for place in ("input", "inside"):
        normalization = L.Normalization(name="normalization")
        image = keras.Input((6, 6, 2), name="image")
        x = image if place == "inside" else normalization(image)
        x = L.Conv2D(6, 3, name="a")(x)
        x = normalization(x) if place == "inside" else x
        model = randomised(lambda x=x, image=image: keras.Model(image, L.Conv2D(3, 1, name="end")(x)))
        normalization.finalize_state()
        plan = plan_filters(model, ratio=0.5, criterion="random")
        small, images = prune_filters(model, plan), samples(model)
        count = 3 if place == "inside" else 2
        assert small.get_layer("normalization").adapt_mean.shape == (count,)
        kernel = np.asarray(model.get_layer("end").kernel).copy()
        kernel[:, :, list(plan.groups[0].removed)] = 0
        model.get_layer("end").kernel.assign(kernel)
        assert np.abs(answer(model, images) - answer(small, images)).max() < 1e-5


def test_images_are_not_varied_where_the_smaller_model_is_compared():
    image = keras.Input((6, 6, 2), name="image")
    x = L.Conv2D(6, 3, name="a")(L.RandomRotation(0.5, name="vary")(L.RandomFlip(name="flip")(image)))
    model = randomised(lambda: keras.Model(image, L.Conv2D(3, 1, name="end")(x)))
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer("a").filters == 3


def test_masks_of_steps_pass_beside_the_channels():
    """The mean over the steps that count, in NumPy."""
    steps = keras.Input((4, 2), name="steps")
    x = L.BatchNormalization(name="norm")(L.Dense(6, name="a")(L.Masking()(steps)))
    model = randomised(lambda: keras.Model(steps, L.Dense(2, name="end")(L.GlobalAveragePooling1D()(x))))
    plan = plan_filters(model, ratio=0.5, criterion="random")
    small, (x,) = prune_filters(model, plan), samples(model)
    x[:, 2:] = 0
    kept = np.setdiff1d(np.arange(6), plan.groups[0].removed)
    a, norm, end = ([np.asarray(v) for v in model.get_layer(n).weights] for n in ("a", "norm", "end"))
    hidden = (x @ a[0] + a[1] - norm[2]) / np.sqrt(norm[3] + 1e-3) * norm[0] + norm[1]
    expected = hidden[:, :2].mean(1)[:, kept] @ end[0][kept] + end[1]
    assert np.abs(expected - np.asarray(small(x))).max() < 1e-5


def test_a_reshape_to_an_open_size_keeps_channels_on_the_last_axis():
    image = keras.Input((None, None, 2), name="image")
    x = L.Reshape((-1, 8), name="rows")(L.Conv2D(8, 3, padding="same", name="a")(image))
    x = L.Reshape((-1, 2), name="frozen")(L.Conv1D(2, 1, name="b")(x))
    model = randomised(lambda: keras.Model(image, x))
    small = prune_filters(model, plan_filters(model, ratio=0.5))
    assert small.get_layer("rows").target_shape == (-1, 4)
    assert small(np.ones((1, 4, 6, 2), "float32")).shape == (1, 24, 2)
    x = L.Reshape((-1, 4))(L.Conv2D(8, 3, padding="same", name="a")(image))  # two places of each: which, is not known
    plan = plan_filters(keras.Model(image, L.Conv1D(2, 1, name="b")(x)), ratio=0.0)
    assert "open size" in plan.frozen["a"] and not plan.groups
