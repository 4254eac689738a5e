"""Operations of keras.ops in graphs that are cut: against entries zeroed by hand, and their literals."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES, Rule
from kpipe.layers.operations.operands import classes
from kpipe.structured import plan_filters, prune_filters
from tests.models import samples

CHANNELS = np.linspace(0.5, 1.5, 6, dtype="float32")
PLACES = np.linspace(-1, 1, 4, dtype="float32")[:, None]


def seeded(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def chain(function, shape=(4,), width=6, names=("after",)):
    """dense "before" -> a function of it and of dense layers by name -> logits."""
    keras.utils.set_random_seed(0)
    x = keras.Input((*shape, 2), name="features")
    dense = {name: L.Dense(5, name=name) for name in names}
    y = function(L.Dense(width, name="before")(x), *dense.values())
    return seeded(keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y))))


def kept(model, small, name):
    """Places of the units of a dense layer that a smaller model still has, told apart by their biases."""
    old, new = (np.asarray(one.get_layer(name).bias) for one in (model, small))
    return [int(np.flatnonzero(old == value)[0]) for value in new]


def zero_rows(model, name, rows):
    kernel = model.get_layer(name).kernel
    value = np.asarray(kernel).copy()
    value[rows] = 0
    kernel.assign(value)


def answers(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def difference(a, b, x):
    return max(np.abs(one - other).max() for one, other in zip(answers(a, x), answers(b, x), strict=True))


def cut(model, tmp_path, ratio=0.5):
    """Cut a model; what comes out must be saved and loaded bit by bit."""
    small = prune_filters(model, plan_filters(model, ratio=ratio))
    small.save(tmp_path / "small.keras")
    x = fed(small)
    assert difference(small, keras.models.load_model(tmp_path / "small.keras"), x) == 0
    return small


def fed(model):
    return keras.tree.pack_sequence_as(model.input, samples(model))


def operation(model, name):
    found = [one for one in model.operations if type(one).__name__ == name and not isinstance(one, keras.Layer)]
    return found[0]


# A function of a tensor of 6 channels; which rows of the kernel "after" a channel ends in; what "after" works on.
LAID_OUT = {
    "operators": (lambda x: (1.0 - x * CHANNELS) / 2 + ops.convert_to_tensor(CHANNELS[None]), lambda c: [c]),
    "places": (lambda x: x * PLACES, lambda c: [c]),
    "flat": (lambda x: ops.reshape(x, (-1, 24)), lambda c: [6 * place + c for place in range(4)]),
    "turned": (lambda x: ops.reshape(ops.swapaxes(x, 1, 2), (-1, 24)), lambda c: [4 * c + i for i in range(4)]),
    "tiled": (lambda x: ops.tile(x, (1, 1, 2)), lambda c: [c, 6 + c]),
    "repeated": (lambda x: ops.repeat(x, 2, axis=-1), lambda c: [2 * c, 2 * c + 1]),
    "joined": (lambda x: ops.concatenate([ops.relu(x), -x], axis=-1), lambda c: [c, 6 + c]),
    "stacked": (lambda x: ops.reshape(ops.stack([x, x], 2), (-1, 4, 12)), lambda c: [c, 6 + c]),
    "turned round": (lambda x: ops.flip(x, -1), lambda c: [5 - c]),
    "new axes": (lambda x: ops.squeeze(ops.expand_dims(x[:, None], -2)), lambda c: [c]),
    "padded": (lambda x: ops.pad(x, [[0, 0], [0, 0], [2, 1]]), lambda c: [2 + c]),
    "mean": (lambda x: ops.mean(x, axis=1), lambda c: [c]),
    "summed": (lambda x: ops.einsum("btc,ct->bc", x, np.ones((6, 4), "float32")), lambda c: [c]),
}


@pytest.mark.parametrize("case", LAID_OUT)
def test_what_is_cut_equals_entries_zeroed_by_hand(case, tmp_path):
    function, entries = LAID_OUT[case]
    model = chain(lambda x, after: after(function(x)))
    small = cut(model, tmp_path)
    gone = sorted(set(range(6)) - set(kept(model, small, "before")))
    assert len(gone) == 3
    zero_rows(model, "after", [row for channel in gone for row in entries(channel)])
    if case == "padded":  # of the entries that are added some go as well: they are zeros
        assert operation(small, "Pad").pad_width != ((0, 0), (0, 0), (2, 1))
    outs = kept(model, small, "after")
    for one in (c for c in range(5) if c not in outs):
        zero_rows(model, "logits", [5 * place + one for place in range(model.get_layer("logits").kernel.shape[0] // 5)])
    assert difference(model, small, samples(model)[0]) < 1e-5


def test_constants_lose_the_entries_of_channels_that_go(tmp_path):
    model = chain(lambda x, after: after(x * CHANNELS + ops.convert_to_tensor(CHANNELS[None] * 2)))
    small = cut(model, tmp_path)
    stay = kept(model, small, "before")
    (product,), (total,) = operation(small, "Multiply")._inbound_nodes, operation(small, "Add")._inbound_nodes
    assert np.array_equal(product.arguments.args[1], CHANNELS[stay])
    assert np.array_equal(total.arguments.args[1], CHANNELS[None, stay] * 2)


@pytest.mark.parametrize(
    "key, parts",
    [
        ((Ellipsis, slice(None, 4)), [range(4), range(4, 6)]),
        ((Ellipsis, slice(-3, None)), [range(3), range(3, 6)]),
        ((slice(None), slice(1, None), slice(1, 4)), [[0, 4, 5], range(1, 4)]),
    ],
    ids=str,
)
def test_slices_of_channels_become_slices_of_those_that_stay(key, parts, tmp_path):
    model = chain(
        lambda x, after, rest: ops.concatenate([after(x[key]), rest(x)], 1),
        names=["after", "rest"],
    )
    small = cut(model, tmp_path)
    stay = kept(model, small, "before")
    assert all(set(part) & set(stay) for part in parts)  # of each part one stays at least
    taken = np.arange(6)[key[-1]]
    assert small.get_layer("after").kernel.shape[0] == len(set(taken) & set(stay))
    new = next(one for one in small.operations if type(one).__name__ == "GetItem")._inbound_nodes[0].arguments.args[1]
    assert [stay[place] for place in range(len(stay))[new[-1]]] == sorted(set(taken.tolist()) & set(stay))


def test_a_channel_that_is_taken_by_its_place_stays(tmp_path):
    model = chain(lambda x, after: after(x * ops.expand_dims(x[..., -2], -1)))
    small = cut(model, tmp_path, 0.7)
    stay = kept(model, small, "before")
    key = operation(small, "GetItem")._inbound_nodes[0].arguments.args[1]
    assert 4 in stay and stay[key[-1]] == 4


@pytest.mark.parametrize("place", [slice(0, 1), slice(2, 3), slice(-1, None)], ids=str)
def test_a_slice_of_one_channel_keeps_it_even_if_it_is_worth_least(place, tmp_path):
    model = chain(lambda x, after: after(x * x[..., place]))
    before, (one,) = model.get_layer("before"), np.arange(6)[place]
    before.kernel.assign(np.asarray(before.kernel) * np.where(np.arange(6) == one, 1e-3, 1.0))
    plan = plan_filters(model, ratio=0.5)
    assert len(plan.groups[0].removed) + len(plan.groups[1].removed) >= 2
    assert one in kept(model, prune_filters(model, plan), "before")


@pytest.mark.parametrize("where", [3, [1, 4], (2,)], ids=str)
def test_a_split_is_made_where_the_parts_end(where, tmp_path):
    bounds = [2, 4] if where == 3 else list(where)
    edges = [0, *bounds, 6]

    def function(x, *dense):
        return ops.concatenate([one(part) for one, part in zip(dense, ops.split(x, where, axis=-1), strict=True)], -1)

    model = chain(function, names=[f"part{i}" for i in range(len(edges) - 1)])
    small = cut(model, tmp_path)
    stay = np.array(kept(model, small, "before"))
    counts = [int(((stay >= a) & (stay < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert min(counts) >= 1 and [small.get_layer(f"part{i}").kernel.shape[0] for i in range(len(counts))] == counts
    assert operation(small, "Split").indices_or_sections == tuple(np.cumsum(counts[:-1]).tolist())


def test_attention_made_of_operations_loses_key_channels_that_are_summed_over(tmp_path):
    """q·k over six channels; the scale is a literal and stays."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 3), name="x")
    q, k, v = (L.Dense(6, name=name)(x) for name in "qkv")
    scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))) / 2.0, axis=-1)
    model = seeded(keras.Model(x, L.Dense(2, name="out")(ops.einsum("bts,bsd->btd", scores, v))))
    traced = trace(model)
    assert sorted(sorted(group.layers) for group in traced.groups) == [["k", "q"], ["v"]]
    assert traced.macs() == 3 * 4 * 3 * 6 + 2 * 4 * 4 * 6 + 4 * 6 * 2
    small = cut(model, tmp_path)
    gone = sorted(set(range(6)) - set(kept(model, small, "q")))
    assert kept(model, small, "q") == kept(model, small, "k")
    dense = model.get_layer("q")
    for weight in dense.weights:
        weight.assign(np.where(np.isin(np.arange(6), gone), 0, np.asarray(weight)))
    zero_rows(model, "out", sorted(set(range(6)) - set(kept(model, small, "v"))))
    assert difference(model, small, samples(model)[0]) < 1e-5
    assert trace(small).macs() == 3 * 4 * 3 * 3 + 2 * 4 * 4 * 3 + 4 * 3 * 2


def test_places_counted_as_samples_count_in_the_macs(tmp_path):
    model = chain(lambda x, after: ops.reshape(after(ops.reshape(x, (-1, 6))), (-1, 4, 5)))
    assert trace(model).macs() == 4 * 2 * 6 + 4 * 6 * 5 + 20 * 3
    small = cut(model, tmp_path)
    assert small.get_layer("after").kernel.shape == (3, 5 // 2)


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: ops.softmax(x), "mixes the channels"),
        (lambda x: ops.roll(x, 1, axis=-1), "mixes the channels"),
        (lambda x: ops.cumsum(x, axis=-1), "mixes the channels"),
        (lambda x: ops.prod(x, axis=-1, keepdims=True) * x, "runs over the channels"),
        (lambda x: x - ops.mean(x), "runs over the batch"),
        (lambda x: ops.flip(x, 0), "turns the batch round"),
        (lambda x: x[..., ::2], "takes channels in steps"),
        (lambda x: ops.take(x, [2, 0, 1], axis=-1), "takes out samples or channels"),
        (lambda x: ops.pad(x, [[0, 0], [0, 0], [1, 1]], mode="reflect"), "pads the channels with one another"),
        (lambda x: ops.sum(ops.multiply(x[..., None], x[..., None, :]), -2), "on different axes"),
        (lambda x: ops.diff(x, axis=-1), "has no rule"),
    ],
)
def test_what_mixes_channels_or_is_not_known_freezes_them(function, reason):
    plan = plan_filters(chain(lambda x, after: after(function(x))), ratio=0.5)
    assert reason in plan.frozen["before"]
    assert [group.name for group in plan.groups] == ["after"]


def nested(name, width):
    inner = keras.Input((width,), name=f"{name}_in")
    left, right = list(ops.split(L.Dense(8, name="wide")(inner), 2, axis=-1) or ())
    return keras.Model(inner, left * ops.sigmoid(right) * np.linspace(1, 2, 4, dtype="float32"), name=name)


def models():
    """Operations in nested, shared, tapped models; in lists and dicts."""
    x, y = keras.Input((5,), name="x"), keras.Input((5,), name="y")
    tower = nested("tower", 5)
    a, b = tower(x), tower(y)
    yield "siamese", keras.Model([x, y], L.Dense(2, name="out")(ops.abs(a - b)))
    deep = keras.Sequential([keras.Input((5,)), L.Dense(6, name="first"), nested("gate", 6), L.Dense(4)], name="deep")
    middle = keras.Model(y, ops.concatenate([deep(y) + 1.0, y[:, 1:3]], -1), name="middle")
    yield "sequential in functional in functional", keras.Model(x, L.Dense(2)(ops.relu(middle(L.Dense(5)(x)))))
    hidden = ops.relu(L.Dense(6, name="hidden")(x) * CHANNELS)
    yield "tap", keras.Model(x, [L.Dense(2)(hidden), ops.mean(hidden, axis=-1), L.Dense(3)(hidden[:, :2])])
    named = {"sum": L.Dense(2)(ops.maximum(hidden, 0.1)), "x": x}
    yield "dict", keras.Model({"x": x}, named)
    shared = L.Dense(6, name="shared")
    merged = ops.where(shared(x) > 0.0, shared(y), ops.cast(CHANNELS, "float32"))
    yield "shared", keras.Model({"x": x, "y": y}, (L.Dense(2)(merged), L.Dense(2)(shared(x + y)[..., 2:])))


@pytest.mark.parametrize("case", ["siamese", "sequential in functional in functional", "tap", "dict", "shared"])
def test_operations_in_models_of_many_shapes(case, tmp_path):
    keras.utils.set_random_seed(0)
    model = seeded(dict(models())[case])
    small = cut(model, tmp_path)
    assert small.count_params() < model.count_params()
    assert [t.name for t in small.inputs] == [t.name for t in model.inputs]
    assert keras.tree.map_structure(lambda t: t.shape, small.output) == keras.tree.map_structure(
        lambda t: t.shape, model.output
    )


def test_a_nested_model_that_takes_a_constant_is_refused():
    x, inner, other = keras.Input((3,)), keras.Input((3,)), keras.Input((3,))
    model = keras.Model([inner, other], inner + other, name="pair")
    with pytest.raises(SurgeryError, match=r"'pair'.*constant"):
        trace(keras.Model(x, model([x, ops.ones((1, 3))])))


def test_a_rule_that_forgets_a_constant_is_caught(monkeypatch):
    (multiply,) = classes("numpy", "Multiply")
    monkeypatch.setitem(RULES, multiply, type(RULES[multiply])(lambda operation, ids, x: Rule(x)))
    model = chain(lambda x, after: after(x * CHANNELS))
    with pytest.raises(SurgeryError, match="cannot be rebuilt"):
        prune_filters(model, plan_filters(model, ratio=0.5))


@pytest.mark.parametrize("scale", [None, 0.5])
def test_sizes_of_heads_stay_where_attention_takes_its_scale_from_them(scale):
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 8))
    heads = [ops.reshape(L.Dense(12, name=name)(x), (-1, 5, 3, 4)) for name in ("query", "key", "value")]
    made = ops.dot_product_attention(*heads, scale=scale)
    model = keras.Model(x, L.Dense(2)(ops.reshape(made, (-1, 5, 12))))
    plan = plan_filters(model, ratio=0.5)
    small = prune_filters(model, plan)
    assert [small.get_layer(name).units for name in ("query", "key", "value")] == ([6, 6, 6] if scale else [12, 12, 6])
    assert scale or "takes its scale from their number" in str(plan)
