"""Every registered layer rule: channels cut around it, compared with the masked original, saved and reloaded."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES, Rule
from kpipe.structured import plan_filters, prune_filters
from tests.models import samples


def convolution(rank):
    return [L.Conv1D, L.Conv2D, L.Conv3D][rank - 1]


def around(layer, rank=2, channels=6, size=4):
    """conv -> the layer -> conv -> logits on maps of one rank."""
    image = keras.Input((size,) * rank + (2,), name="image")
    x = convolution(rank)(channels, 3, padding="same", name="before")(image)
    x = convolution(rank)(5, 1, name="after")(layer(x))
    x = L.Flatten(name="flat")(x)
    return keras.Model(image, L.Dense(3, name="logits")(x))


def merged(layer):
    image = keras.Input((4, 4, 2), name="image")
    x = layer([L.Conv2D(6, 3, padding="same", name="left")(image), L.Conv2D(6, 1, name="right")(image)])
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def ending(layer, rank=2):
    """conv -> a layer that ends the map -> logits."""
    image = keras.Input((4,) * rank + (2,), name="image")
    x = layer(convolution(rank)(6, 3, padding="same", name="before")(image))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def first_of(rank, cls, *args, **kwargs):
    return lambda: around(cls(*args, **kwargs, name="layer"), rank)


CASES = {
    L.InputLayer: lambda: around(L.Identity()),
    L.Dense: first_of(2, L.Dense, 7),
    L.BatchNormalization: first_of(2, L.BatchNormalization),
    L.Dropout: first_of(2, L.Dropout, 0.3),
    L.SpatialDropout1D: first_of(1, L.SpatialDropout1D, 0.3),
    L.SpatialDropout2D: first_of(2, L.SpatialDropout2D, 0.3),
    L.SpatialDropout3D: first_of(3, L.SpatialDropout3D, 0.3),
    L.GaussianDropout: first_of(2, L.GaussianDropout, 0.3),
    L.AlphaDropout: first_of(2, L.AlphaDropout, 0.3),
    L.GaussianNoise: first_of(2, L.GaussianNoise, 0.3),
    L.ActivityRegularization: first_of(2, L.ActivityRegularization, 0.01),
    L.Identity: first_of(2, L.Identity),
    L.LeakyReLU: first_of(2, L.LeakyReLU, negative_slope=0.2),
    L.ELU: first_of(2, L.ELU),
    L.ReLU: first_of(2, L.ReLU, 6.0),
    L.Rescaling: first_of(2, L.Rescaling, 0.5, offset=0.1),
    L.Activation: first_of(2, L.Activation, "sigmoid"),
    L.Softmax: first_of(2, L.Softmax, axis=1),
    L.Conv1D: first_of(1, L.Conv1D, 7, 3),
    L.Conv2D: first_of(2, L.Conv2D, 9, 3, groups=3),
    L.Conv3D: first_of(3, L.Conv3D, 7, 3),
    L.DepthwiseConv1D: first_of(1, L.DepthwiseConv1D, 3, depth_multiplier=2),
    L.DepthwiseConv2D: first_of(2, L.DepthwiseConv2D, 3, depth_multiplier=2),
    L.SeparableConv1D: first_of(1, L.SeparableConv1D, 7, 3, depth_multiplier=2),
    L.SeparableConv2D: first_of(2, L.SeparableConv2D, 7, 3, depth_multiplier=2),
    L.MaxPooling1D: first_of(1, L.MaxPooling1D, 2),
    L.MaxPooling2D: first_of(2, L.MaxPooling2D, 2),
    L.MaxPooling3D: first_of(3, L.MaxPooling3D, 2),
    L.AveragePooling1D: first_of(1, L.AveragePooling1D, 2),
    L.AveragePooling2D: first_of(2, L.AveragePooling2D, 2),
    L.AveragePooling3D: first_of(3, L.AveragePooling3D, 2),
    L.ZeroPadding1D: first_of(1, L.ZeroPadding1D, 1),
    L.ZeroPadding2D: first_of(2, L.ZeroPadding2D, 1),
    L.ZeroPadding3D: first_of(3, L.ZeroPadding3D, 1),
    L.Cropping1D: first_of(1, L.Cropping1D, 1),
    L.Cropping2D: first_of(2, L.Cropping2D, 1),
    L.Cropping3D: first_of(3, L.Cropping3D, 1),
    L.UpSampling1D: first_of(1, L.UpSampling1D, 2),
    L.UpSampling2D: first_of(2, L.UpSampling2D, 2, interpolation="bilinear"),
    L.UpSampling3D: first_of(3, L.UpSampling3D, 2),
    L.GlobalMaxPooling1D: lambda: ending(L.GlobalMaxPooling1D(), 1),
    L.GlobalMaxPooling2D: lambda: ending(L.GlobalMaxPooling2D(keepdims=True)),
    L.GlobalMaxPooling3D: lambda: ending(L.GlobalMaxPooling3D(), 3),
    L.GlobalAveragePooling1D: lambda: ending(L.GlobalAveragePooling1D(), 1),
    L.GlobalAveragePooling2D: lambda: ending(L.GlobalAveragePooling2D(keepdims=True)),
    L.GlobalAveragePooling3D: lambda: ending(L.GlobalAveragePooling3D(), 3),
    L.Flatten: lambda: ending(L.Flatten()),
    L.Reshape: lambda: ending(L.Reshape((2, 8, 6))),
    L.Permute: lambda: ending(L.Permute((3, 1, 2))),
    L.Add: lambda: merged(L.Add()),
    L.Subtract: lambda: merged(L.Subtract()),
    L.Multiply: lambda: merged(L.Multiply()),
    L.Average: lambda: merged(L.Average()),
    L.Maximum: lambda: merged(L.Maximum()),
    L.Minimum: lambda: merged(L.Minimum()),
    L.Concatenate: lambda: merged(L.Concatenate()),
}


def seeded(make):
    keras.utils.set_random_seed(0)
    model, rng = make(), np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def keras_rules():
    return {cls for cls, facts in RULES.items() if facts.channels and cls.__module__.startswith("keras.")}


def test_every_rule_has_a_case():
    assert keras_rules() == set(CASES)


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_channels_are_cut_around_the_layer(cls, tmp_path):
    model = seeded(CASES[cls])
    plan = plan_filters(model, ratio=0.34)
    assert all(0 < len(group.removed) < group.channels for group in plan.groups)
    small = prune_filters(model, plan)  # raises unless it equals the masked original
    assert small.count_params() == plan.after["params"] < model.count_params()
    small.save(tmp_path / "small.keras")
    x = samples(small, 2)[0]
    assert np.array_equal(keras.models.load_model(tmp_path / "small.keras")(x), small(x))


def test_a_rule_that_forgets_to_tie_is_caught(monkeypatch):
    facts = RULES[L.Add]
    monkeypatch.setitem(RULES, L.Add, type(facts)(lambda layer, ids, a, b: Rule(a), facts.roles, facts.quantization))
    model = seeded(CASES[L.Add])
    with pytest.raises(SurgeryError, match=r"cannot be rebuilt|differs by"):
        prune_filters(model, plan_filters(model, ratio=0.34, criterion="random"))


# Written by hand: the entries of a flattened 4x4 map of 6 channels that one channel of a group ends in.
ENTRIES = {
    L.Reshape: {"before": lambda c: [place * 6 + c for place in range(16)]},
    L.Permute: {"before": lambda c: [c * 16 + place for place in range(16)]},
    L.GlobalAveragePooling2D: {"before": lambda c: [c]},
    L.Multiply: {"left": lambda c: [place * 6 + c for place in range(16)]},
    L.Concatenate: {
        "left": lambda c: [place * 12 + c for place in range(16)],
        "right": lambda c: [place * 12 + 6 + c for place in range(16)],
    },
}


@pytest.mark.parametrize("cls", ENTRIES, ids=lambda cls: cls.__name__)
def test_shapes_and_merges_against_entries_zeroed_by_hand(cls):
    model = seeded(CASES[cls])
    plan = plan_filters(model, ratio=0.34)
    small = prune_filters(model, plan, check=False)
    kernel = model.get_layer("logits").kernel
    value = np.asarray(kernel).copy()
    for group in plan.groups:
        for channel in group.removed:
            value[ENTRIES[cls][group.name](channel)] = 0
    x = samples(model, 4)[0]
    assert np.abs(np.asarray(model(x)) - small(x)).max() > 1e-3
    kernel.assign(value)
    assert np.abs(np.asarray(model(x)) - small(x)).max() < 1e-5


@pytest.mark.parametrize("softmax", [L.Softmax(), L.Activation("softmax")], ids=["layer", "activation"])
def test_a_softmax_over_channels_freezes_them(softmax):
    traced = trace(seeded(lambda: around(softmax)))
    assert "before" not in {group.name for group in traced.groups} and "before" in traced.frozen


def test_a_rescaling_for_each_channel_freezes_them():
    traced = trace(seeded(lambda: around(L.Rescaling([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]))))
    assert "before" not in {group.name for group in traced.groups} and "before" in traced.frozen


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(4, 3, data_format="channels_first"),
        L.Flatten(data_format="channels_first"),
        L.BatchNormalization(axis=1),
    ],
    ids=["conv", "flatten", "norm"],
)
def test_channels_first_ids_lie_on_the_first_axis(layer):
    """The CPU cannot run such maps, but their ids can be followed."""
    image = keras.Input((2, 6, 6), name="image")
    with keras.device("cpu"):
        x = L.Conv2D(5, 3, data_format="channels_first", name="before")(image)
        traced = trace(keras.Model(image, layer(x)))
    before = next(found for found in traced.layers if found.path == "before")
    assert before.out.shape == (5, 1, 1)
    if isinstance(layer, L.Flatten):  # transposed to channels-last first: places outside, channels inside
        assert np.array_equal(traced.layers[-1].out, np.tile(before.out.reshape(-1), 16))


@pytest.mark.parametrize(
    "layer", [L.Conv2DTranspose(4, 3), L.LayerNormalization(), L.PReLU(), L.EinsumDense("abcd,de->abce", (4, 4, 5))]
)
def test_a_layer_of_which_only_the_weights_are_known_stays_whole(layer):
    model = seeded(lambda: around(layer))
    with pytest.raises(SurgeryError, match=rf"The layer .*{type(layer).__name__}\) has no rule"):
        prune_filters(model, plan_filters(model, ratio=0.34))
    traced = trace(model, unknown="freeze")
    assert "before" in traced.frozen and "has no rule" in traced.frozen["before"]


def test_statistics_of_a_renormalised_batch_are_cut_too():
    model = seeded(lambda: around(L.BatchNormalization(renorm=True, name="layer")))
    small = prune_filters(model, plan_filters(model, ratio=0.34))
    assert {tuple(weight.shape) for weight in small.get_layer("layer").weights} == {(4,)}
