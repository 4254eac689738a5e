"""What the rules for vectors and maps leave alone, what catches a wrong one, and the multiplications they count."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe import measure
from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES, Compressed, Rule
from kpipe.structured import plan_filters, prune_filters
from tests.structured.by_hand import chain, randomised


def on_other_axis(layer):
    """Channels along the rows, then a layer that takes them from the last axis."""
    return lambda: chain(L.Permute((3, 1, 2)), layer, L.Permute((2, 3, 1)))


def crossed():
    """Two maps whose channels lie on different axes."""
    image = keras.Input((6, 6, 2), name="image")
    a, b = (L.Conv2D(6, 3, padding="same", name=name)(image) for name in ("a", "beside"))
    x = L.Conv2D(4, 1, name="b")(L.Add(name="add")([L.Permute((3, 1, 2))(a), b]))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten()(x)))


STAYS = {
    "axes from both ends": (lambda: chain(L.LayerNormalization([1, -1])), "from both ends"),
    "scale elsewhere": (lambda: chain(L.RMSNormalization(1)), "does not lie on its axes"),
    "softmax": (lambda: chain(L.Softmax([2, 3])), "sums over them"),
    "masking": (lambda: steps_masked(), "to mask a step"),
    "dense": (on_other_axis(L.Dense(5)), "along the axis on which they lie"),
    "pooling": (on_other_axis(L.MaxPooling2D(1)), "along the axis on which they lie"),
    "convolution": (on_other_axis(L.Conv2D(5, 1)), "along the axis on which they lie"),
    "crossed": (crossed, "on another axis"),
    "rescaling": (lambda: chain(L.Rescaling(np.ones((1, 6, 6, 6)))), "scale of shape"),
}


def steps_masked():
    steps = keras.Input((4, 2), name="steps")
    return keras.Model(steps, L.Dense(2, name="b")(L.Masking()(L.Dense(6, name="a")(steps))))


@pytest.mark.parametrize("name", STAYS)
def test_what_is_not_clear_stays_with_its_reason(name):
    make, reason = STAYS[name]
    model = randomised(make)
    plan = plan_filters(model, ratio=0.0)
    assert reason in plan.frozen["a"] and "a" not in {group.name for group in plan.groups}
    if plan.groups:
        prune_filters(model, plan_filters(model, ratio=0.5))  # what is beside it goes all the same


def test_a_list_that_keras_lays_along_another_axis_freezes_the_channels(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    assert "scale of shape" in trace(chain(L.Rescaling([1.0, 2, 3, 4, 5, 6]))).frozen["a"]


# --- a wrong rule is caught -------------------------------------------------------------------------------------------


def without(*names):
    """Make of a rule one that leaves some of what it says out."""

    def change(found):
        return Rule(**{name: value for name, value in vars(found).items() if name not in names})

    return change


def unsliced(found):
    """Forget the weights that are no kernels."""
    axes = {name: on for name, on in found.axes.items() if "kernel" in name}
    return Rule(**{**vars(found), "axes": axes})


def backwards(found):
    """Cut a list from its end."""
    lists = {
        name: Compressed(v.array, {axis: on[::-1] for axis, on in v.axes.items()}) for name, v in found.config.items()
    }
    return Rule(found.out, config=lists)


def turned(found):
    """Take a transposed kernel for a plain one."""
    out, x = found.axes["kernel"][-2], found.axes["kernel"][-1]
    return Rule(**{**vars(found), "axes": {**found.axes, "kernel": {-2: x, -1: out}}})


WRONG = {
    "no reference": (L.LayerNormalization, lambda: chain(L.LayerNormalization()), without("reference")),
    "gamma whole": (L.LayerNormalization, lambda: chain(L.LayerNormalization([1, 2, 3])), unsliced),
    "square, no reference": (L.RMSNormalization, lambda: chain(L.RMSNormalization()), without("reference")),
    "unit, no reference": (L.UnitNormalization, lambda: chain(L.UnitNormalization()), without("reference")),
    "groups stay": (L.GroupNormalization, lambda: chain(L.GroupNormalization(-1)), without("config")),
    "alpha whole": (L.PReLU, lambda: chain(L.PReLU()), unsliced),
    "vector whole": (L.SpectralNormalization, lambda: chain(L.SpectralNormalization(L.Conv2D(4, 1))), unsliced),
    "list backwards": (L.Rescaling, lambda: chain(L.Rescaling([1.0, 2, 3, 4, 5, 6])), backwards),
    "kernel turned": (L.Conv2DTranspose, lambda: chain(L.Conv2DTranspose(6, 1)), turned),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name, monkeypatch):
    cls, make, change = WRONG[name]
    facts = RULES[cls]

    def wrong(layer, ids, *inputs):
        return change(facts.channels(layer, ids, *inputs))

    model = randomised(make)
    plan = plan_filters(model, ratio=0.5, criterion="random")
    prune_filters(model, plan)
    monkeypatch.setitem(RULES, cls, type(facts)(wrong, facts.roles, facts.quantization, facts.layouts))
    with pytest.raises(SurgeryError, match=r"cannot be rebuilt|differs by|would have shape"):
        prune_filters(model, plan)


def test_a_group_norm_that_ties_nothing_is_caught(monkeypatch):
    facts, calls = RULES[L.GroupNormalization], []

    def untied(layer, ids, x):
        found = facts.channels(layer, _Loose(ids, calls), x)
        return found

    class _Loose:
        def __init__(self, ids, calls):
            self.ids, self.calls = ids, calls

        def __getattr__(self, name):
            return getattr(self.ids, name)

        def tie_blocks(self, x, blocks):
            self.calls.append(blocks)
            return x

    model = randomised(lambda: chain(L.GroupNormalization(2)))
    monkeypatch.setitem(RULES, L.GroupNormalization, type(facts)(untied, facts.roles))
    plan = plan_filters(model, ratio=0.34, criterion="random")
    assert calls == [2] and plan.groups[0].kept == 4
    gone = plan.groups[0].removed
    assert sum(place < 3 for place in gone) != 1  # not one of each group
    with pytest.raises(SurgeryError, match="differs by"):
        prune_filters(model, plan)


# --- multiply-accumulates ---------------------------------------------------------------------------------------------

MACS = {
    # a: 36 places, 3x3x2 -> 6; the layer; b: 1x1 -> 4 at all places that come in; logits: 4 of each place -> 3
    "transposed": (lambda: chain(L.Conv2DTranspose(8, 3, strides=2)), 36 * 9 * 6 * 8, 8, 169),
    "transposed, dilated": (lambda: chain(L.Conv2DTranspose(5, 2, dilation_rate=2)), 36 * 4 * 6 * 5, 5, 64),
    "groups": (lambda: chain(L.Conv2D(9, 3, groups=3)), 16 * 9 * 2 * 9, 9, 16),
    "each channel": (lambda: chain(L.Conv2D(12, 3, groups=6)), 16 * 9 * 1 * 12, 12, 16),
    "depthwise": (lambda: chain(L.DepthwiseConv2D(3, depth_multiplier=3)), 16 * 9 * 18, 18, 16),
    "separable": (lambda: chain(L.SeparableConv2D(5, 3, depth_multiplier=2)), 16 * (9 * 12 + 12 * 5), 5, 16),
    "dense": (lambda: chain(L.Dense(7)), 36 * 6 * 7, 7, 36),
    "spectral": (lambda: chain(L.SpectralNormalization(L.Conv2D(5, 3))), 16 * 9 * 6 * 5, 5, 16),
    "norms": (lambda: chain(L.LayerNormalization([1, 2, 3]), L.GroupNormalization(2), L.PReLU()), 0, 6, 36),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_are_those_of_the_formula(name):
    make, between, channels, places = MACS[name]
    expected = 36 * 9 * 2 * 6 + between + places * channels * 4 + places * 4 * 3
    model = make()
    assert trace(model).macs() == measure(model).macs == expected
    small = prune_filters(model, plan := plan_filters(model, ratio=0.5))
    assert plan.after["macs"] == measure(small).macs == trace(small).macs() < expected
