"""Channels cut through gates, concatenations and products, against consumers zeroed by hand, NumPy and widths."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe import measure
from kpipe.graph import trace
from kpipe.structured import plan_filters, prune_filters
from tests.models import samples
from tests.structured.by_hand import after, answer, flat, hold, randomised, same


def squeezed(merge, rank, axis=-1):
    """A gate for each channel, of the map's rank or of a lower one."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.Conv2D(12, 3, padding="same", name="a")(image)
    gate = L.GlobalAveragePooling2D(name="squeeze")(x)
    gate = L.Dense(12, activation="sigmoid", name="expand")(L.Dense(6, activation="relu", name="reduce")(gate))
    gate = L.Reshape((1,) * (rank - 1) + (12,), name="lay")(gate)
    x = L.Conv2D(4, 1, name="b")(merge([gate, x] if rank == 2 else [x, gate]))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def gated(merge, places):
    """A gate for each place: of one channel, so that nothing is tied."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.Conv2D(12, 3, padding="same", name="a")(image)
    gate = L.Conv2D(1, places, activation="sigmoid", name="gate")(x)
    x = L.Conv2D(4, 1, name="b")(merge([x, gate]))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def dense_net():
    """Every layer sees all that came before."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.Conv2D(6, 3, padding="same", name="stem")(image)
    for number, width in enumerate((4, 8, 10)):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Concatenate(axis=(3, -1)[number % 2])([x, L.Conv2D(width, 3, padding="same", name=f"grow{number}")(y)])
    x = L.GlobalAveragePooling2D()(L.BatchNormalization()(x))
    return keras.Model(image, L.Dense(3, name="logits")(x))


def twice(axis):
    """The same map beside itself, on the axis of the channels or of the rows."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.Conv2D(8, 3, padding="same", name="a")(image)
    x = L.Conv2D(4, 1, activation="tanh", name="b")(L.Concatenate(axis=axis)([x, x]))
    return keras.Model(image, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x)))


def stacked():
    """Maps of two convolutions above one another: one channel is the same place in both."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.Concatenate(axis=-3)([L.Conv2D(8, 3, padding="same", name=name)(image) for name in ("a", "above")])
    x = L.Conv2D(4, 1, activation="tanh", name="b")(x)
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten()(x)))


def into(name, offset):
    return (name, "kernel", 2, after(offset))


def logits(offset):
    return ("logits", "kernel", 0, after(offset))


def flattened(places):
    return [("logits", "kernel", 0, flat(places, 4))]


TO_B = ("b", "kernel", 2, same)
SQUEEZE = {"a": [("reduce", "kernel", 0, same), TO_B], "reduce": [("expand", "kernel", 0, same)], "b": flattened(36)}
GATE = {"a": [("gate", "kernel", 2, same), TO_B], "gate": [], "b": flattened(36)}
MERGES = {
    "gate for channels": (lambda: squeezed(L.Multiply(), 3), SQUEEZE),
    "gate of two axes": (lambda: squeezed(L.Add(), 2), SQUEEZE),
    "gate that is a vector": (lambda: squeezed(L.Maximum(), 1), SQUEEZE),
    "gate for places": (lambda: gated(L.Multiply(), 1), GATE),
    "gate for all": (lambda: gated(L.Subtract(), 6), GATE),
    "dense net": (
        dense_net,
        {
            "stem": [*(into(name, 0) for name in ("grow0", "grow1", "grow2")), logits(0)],
            "grow0": [into("grow1", 6), into("grow2", 6), logits(6)],
            "grow1": [into("grow2", 10), logits(10)],
            "grow2": [logits(18)],
        },
    ),
    "beside itself": (
        lambda: twice(-1),
        {"a": [("b", "kernel", 2, lambda c: [c, 8 + c])], "b": [("logits", "kernel", 0, same)]},
    ),
    "above itself": (lambda: twice(1), {"a": [TO_B], "b": [("logits", "kernel", 0, same)]}),
    "above another": (stacked, {"a": [TO_B], "b": flattened(72)}),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges_against_consumers_zeroed_by_hand(name):
    hold(*MERGES[name])


def test_a_dot_sums_over_the_kept_channels_in_numpy():
    """Two sequences, as queries and keys: what is summed over goes, what lies beside comes out."""

    def make(normalize):
        image = keras.Input((5, 3), name="image")
        a, b = L.Conv1D(8, 1, name="a")(image), L.Conv1D(8, 1, use_bias=False, name="b")(image)
        x = L.Dot(-1, normalize=normalize, name="dot")([a, b])
        return keras.Model(image, L.Conv1D(2, 1, name="out")(x))

    for normalize in (False, True):
        model = randomised(lambda normalize=normalize: make(normalize))
        plan = plan_filters(model, ratio=0.5, criterion="random")
        (group,) = plan.groups
        assert group.layers == ("a", "b") and "sums channels up" in plan.frozen["dot"]
        small, x = prune_filters(model, plan), samples(model)[0]
        kept = np.setdiff1d(np.arange(8), group.removed)
        (a, shift), (b,), (out, end) = ([np.asarray(v) for v in model.get_layer(n).weights] for n in ("a", "b", "out"))
        left, right = (x @ a[0] + shift)[..., kept], (x @ b[0])[..., kept]
        if normalize:
            left, right = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (left, right))
        expected = np.einsum("nid,njd->nij", left, right) @ out[0] + end
        assert np.abs(expected - answer(small, [x])).max() < 1e-4 < 1e-1 < np.abs(expected - answer(model, [x])).max()
        # each of the two products (5, d) x (d, 5), beside 3 -> d twice at 5 steps and 5 -> 2 at 5 steps
        counted = [trace(one).macs() for one in (model, small)]
        assert counted == [measure(one).macs for one in (model, small)]
        assert counted == [2 * 5 * 3 * d + 5 * 5 * d + 5 * 5 * 2 for d in (8, 4)]


def test_a_dot_passes_channels_on_another_axis():
    """Weighted sums over steps: (steps, channels) of the second input come out as (rows, channels)."""
    image = keras.Input((5, 3), name="image")
    weights = L.Softmax()(L.Conv1D(4, 1, name="weights")(image))
    x = L.Dot((1, 1), name="dot")([weights, L.Conv1D(8, 1, name="values")(image)])
    model = randomised(lambda: keras.Model(image, L.Conv1D(2, 1, name="out")(x)))
    plan = plan_filters(model, ratio=0.5)
    assert [(group.name, group.kept) for group in plan.groups] == [("values", 4)]
    assert "softmax" in plan.frozen["weights"]
    small = prune_filters(model, plan)
    assert small.get_layer("dot").output.shape == (None, 4, 4) and small.get_layer("out").kernel.shape == (1, 4, 2)


def test_channels_on_both_sides_of_a_dot_stay_on_one():
    image = keras.Input((5, 3), name="image")
    x = L.Dot(1, name="dot")([L.Conv1D(4, 1, name="a")(image), L.Conv1D(8, 1, name="b")(image)])
    model = randomised(lambda: keras.Model(image, L.Conv1D(2, 1, name="out")(x)))
    plan = plan_filters(model, ratio=0.5)
    assert [group.name for group in plan.groups] == ["b"] and "beside" in plan.frozen["a"]
    prune_filters(model, plan)


def widths(model, ratio=0.5):
    small = prune_filters(model, plan_filters(model, ratio=ratio))
    return {layer.name: layer.filters for layer in small.layers if isinstance(layer, L.Conv2D)}, small


def test_cascaded_concatenations_have_the_widths_of_their_parts():
    """5, 10, 15, 30: two parts of ten; with a third; twice."""
    image = keras.Input((4, 4, 3), name="image")
    a, b = (L.Conv2D(10, 3, padding="same", name=name)(image) for name in ("a", "b"))
    two = L.Concatenate(name="two")([a, b])
    three = L.Concatenate(name="three")([two, L.Conv2D(10, 1, name="c")(two)])
    six = L.Concatenate(name="six")([three, three])
    model = randomised(lambda: keras.Model(image, L.Conv2D(2, 1, name="end")(L.BatchNormalization(name="norm")(six))))
    found, small = widths(model)
    assert found == {"a": 5, "b": 5, "c": 5, "end": 2}
    assert [small.get_layer(n).output.shape[-1] for n in ("a", "two", "three", "six")] == [5, 10, 15, 30]
    assert small.get_layer("norm").gamma.shape == (30,)
    assert small.get_layer("c").kernel.shape == (1, 1, 10, 5) and small.get_layer("end").kernel.shape == (1, 1, 30, 2)


def test_several_inputs_and_outputs_with_a_tap_have_the_widths_that_are_left():
    left, right = keras.Input((4, 4, 3), name="left"), keras.Input((4, 4, 2), name="right")
    a, b = L.Conv2D(10, 1, name="a")(left), L.Conv2D(10, 1, name="b")(right)
    tap = L.Conv2D(8, 1, name="tap")(L.Add()([a, b]))
    outputs = [L.Conv2D(1, 1, name="one")(tap), tap, L.Conv2D(3, 1, name="three")(a)]
    found, small = widths(randomised(lambda: keras.Model([left, right], outputs)))
    assert found == {"a": 5, "b": 5, "tap": 8, "one": 1, "three": 3}
    assert [t.shape[-1] for t in small.outputs] == [1, 8, 3]


def test_a_layer_that_the_outputs_do_not_need_is_left_out_of_the_graph():
    image = keras.Input((4, 4, 3), name="image")
    x = L.Conv2D(6, 1, name="a")(image)
    L.Conv2D(5, 1, name="unused")(x)
    found, _ = widths(randomised(lambda: keras.Model(image, L.Conv2D(2, 1, name="end")(x))))
    assert found == {"a": 3, "end": 2}
