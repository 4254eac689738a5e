"""Every registered layer rule: channels cut around it, compared with the masked original, saved and reloaded."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES, LayerFacts, Rule
from kpipe.structured import plan_filters, prune_filters
from tests.contracts.layer_cases import CASES as LAYERS
from tests.contracts.layer_cases import around
from tests.contracts.operation_cases import CASES as OPERATIONS
from tests.contracts.sequence_cases import CASES as SEQUENCES
from tests.contracts.test_weight_roles import exported
from tests.models import samples

CASES = LAYERS | SEQUENCES | OPERATIONS


def seeded(make, seed=0):
    keras.utils.set_random_seed(seed)
    model, rng = make(), np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def keras_rules():
    return {cls for cls, facts in RULES.items() if facts.channels and cls.__module__.startswith("keras.")}


WITHOUT_RULE = {
    # what they compute is not said by their class
    *(L.Layer, L.Wrapper, L.Lambda, L.Pipeline, L.TFSMLayer, L.JaxLayer, L.FlaxLayer, L.TorchModuleWrapper),
    # they take tokens, words, boxes or sound, which have no channels that could be cut
    *(L.CategoryEncoding, L.Discretization, L.HashedCrossing, L.Hashing, L.IntegerLookup, L.StringLookup),
    *(L.TextVectorization, L.MaxNumBoundingBoxes, L.MelSpectrogram, L.STFTSpectrogram),
    # they crop or equalise images as these come in; what comes in has its channels from outside
    *(L.AutoContrast, L.ContrastLimitedAdaptiveHistogramEqualization, L.Equalization, L.RandomCrop, L.Solarization),
}
"""The channels that touch one of these stay, and the plan says so."""


def test_every_layer_of_keras_has_a_rule_or_is_known_to_have_none():
    assert exported() == {cls for cls in exported() if cls in keras_rules()} | WITHOUT_RULE
    assert not WITHOUT_RULE & keras_rules()


def test_every_rule_has_a_case():
    assert keras_rules() == set(CASES)


def each_once():
    """Give every case; of operations that share one rule all but the first belong to the heavy sweeps."""
    seen = set()
    for cls in CASES:
        again = RULES[cls].channels in seen and not issubclass(cls, keras.Layer)
        seen.add(RULES[cls].channels)
        yield pytest.param(cls, marks=pytest.mark.slow if again else [], id=cls.__name__)


@pytest.mark.sweep(18)
@pytest.mark.parametrize("cls", list(each_once()))
def test_channels_are_cut_around_the_layer(cls, tmp_path):
    model = seeded(CASES[cls])
    plan = plan_filters(model, ratio=0.34)
    assert all(0 < len(group.removed) < group.channels for group in plan.groups)
    small = prune_filters(model, plan)  # raises unless it equals the masked original
    assert small.count_params() == plan.after["params"] < model.count_params()
    small.save(tmp_path / "small.keras")
    x = samples(small, 2)
    x = x if len(x) > 1 else x[0]
    again = keras.models.load_model(tmp_path / "small.keras")
    assert np.array_equal(again(x, training=False), small(x, training=False))


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
    (out,) = before.out
    assert out.shape == (5, 1, 1)
    if isinstance(layer, L.Flatten):  # transposed to channels-last first: places outside, channels inside
        assert np.array_equal(traced.layers[-1].out[0], np.tile(out.reshape(-1), 16))


class Scale(L.Layer):
    """Multiply each channel by a learned factor."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1],), name="factor")

    def call(self, x):
        return x * self.factor


def test_a_layer_of_which_only_the_weights_are_known_stays_whole(monkeypatch):
    monkeypatch.setitem(RULES, Scale, LayerFacts(roles={"factor": "gamma"}))
    model = seeded(lambda: around(Scale()))
    with pytest.raises(SurgeryError, match=r"the layer .*Scale\) has no rule"):
        trace(model)
    plan = plan_filters(model, ratio=0.34)
    assert "has no rule" in plan.frozen["before"] and [group.name for group in plan.groups] == ["after"]
    small = prune_filters(model, plan)
    assert small.get_layer("before").filters == 6 and small.get_layer("after").filters == 3


def test_statistics_of_a_renormalised_batch_are_cut_too():
    model = seeded(lambda: around(L.BatchNormalization(renorm=True, name="layer")))
    small = prune_filters(model, plan_filters(model, ratio=0.34))
    assert {tuple(weight.shape) for weight in small.get_layer("layer").weights} == {(4,)}
