"""Layers of one's own: those that kpipe does not know, and the two ways to join."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.layers import RULES, Layout, register_weights, weights
from kpipe.projections import kernels
from kpipe.unstructured import find_targets


def chosen(model, *args, **kwargs):
    return [target.path for target in find_targets(model, *args, **kwargs)[0]]


def reasons(model, *args, **kwargs):
    return {row.path: row.reason for row in find_targets(model, *args, **kwargs)[1]}


def sequential(*layers, shape=(5,)):
    return keras.Sequential([keras.Input(shape), *layers], name="net")


class Unknown(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")
        self.offset = self.add_weight(shape=(4,), name="offset")

    def call(self, x):
        return x @ self.w + self.offset


def test_an_unknown_layer_is_named_with_what_to_do():
    model = sequential(Unknown(name="mine"), L.Dense(2, name="d"))
    assert chosen(model) == ["d/kernel"]
    said = reasons(model)["mine/w"]
    assert "kpipe knows no role of this weight of Unknown" in said
    assert "register_weights(Unknown, roles={...: 'kernel'})" in said and "get_prunable_weights()" in said
    with pytest.raises(KpipeError, match=r"no weight to prune .*mine/w: kpipe knows no role"):
        find_targets(sequential(Unknown(name="mine")))


@pytest.fixture
def registry(monkeypatch):
    """Forget what a test registers."""
    for cls in list(RULES):
        monkeypatch.setitem(RULES, cls, RULES[cls])
    yield RULES
    for cls in [cls for cls in RULES if not cls.__module__.startswith("keras")]:
        del RULES[cls]


def test_a_layer_joins_by_one_call(registry):
    register_weights(Unknown, roles={"w": "kernel", "offset": "bias"})
    model = sequential(type("Sub", (Unknown,), {})(name="mine"), L.Dense(2, name="d"))
    assert chosen(model) == ["mine/w", "d/kernel"]
    assert "'bias'" in reasons(model)["mine/offset"]
    assert [variable.name for variable in kernels(model)] == ["w", "kernel"]


class Several(L.Layer):
    """Kernels in a list, of which a setting says how many are shared."""

    def __init__(self, gated=True, **kwargs):
        super().__init__(**kwargs)
        self.gated = gated

    def build(self, shape):
        self.hops = [self.add_weight(shape=(shape[-1], shape[-1]), name=f"hop{i}") for i in range(2)]
        self.gate = self.add_weight(shape=(3, shape[-1], 2), name="gate")

    def call(self, x):
        for hop in self.hops:
            x = x @ hop
        return x


@pytest.mark.parametrize(("gated", "expected"), [(True, ["s/hop0", "s/hop1", "s/gate"]), (False, ["s/hop0", "s/hop1"])])
def test_roles_may_be_a_function_and_an_attribute_a_list(registry, gated, expected):
    register_weights(
        Several,
        roles=lambda layer: {"hops": "kernel", "gate": "kernel" if layer.gated else "gamma"},
        layouts={"gate": Layout((1,), (0, 2))},
    )
    model = sequential(Several(gated, name="s"))
    targets, _ = find_targets(model)
    assert [target.path for target in targets] == expected
    assert [weight.name for weight in weights(model.layers[0])][:2] == ["hops/0", "hops/1"]
    if gated:
        assert targets[-1].layout.turned_shape(targets[-1].variable.shape) == (5, 6)


def test_what_cannot_be_registered_is_refused(registry):
    with pytest.raises(KpipeError, match="expected layer classes"):
        register_weights(Unknown(), roles={"w": "kernel"})
    with pytest.raises(KpipeError, match="unknown role 'weights'"):
        register_weights(Unknown, roles={"w": "weights"})
    register_weights(Unknown, roles={"w": "kernel"}, layouts={"w": Layout((2,), (0,))})
    with pytest.raises(
        KpipeError, match=r"Weight 'w' of layer 'mine' \(Unknown\): Layout.* does not fit a kernel of 2"
    ):
        find_targets(sequential(Unknown(name="mine")))
    register_weights(Unknown, roles=lambda layer: {"w": "weights"})
    with pytest.raises(KpipeError, match=r"Layer 'mine' \(Unknown\): unknown roles \{'w': 'weights'\}"):
        find_targets(sequential(Unknown(name="mine")))


def test_weights_that_are_no_floats_are_left_out(registry):
    class Table(L.Layer):
        def build(self, shape):
            self.codes = self.add_weight(shape=(3, 4), dtype="int32", trainable=False, name="codes")

        def call(self, x):
            return x

    register_weights(Table, roles={"codes": "kernel"})
    assert reasons(sequential(Table(name="t"), L.Dense(2)))["t/codes"].startswith("its type is int32")


class Block(L.Layer):
    """Two dense layers inside a layer of one's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Dense(4, name="first"), L.Dense(3, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))

    def call(self, x):
        return self.second(self.first(x))


def listing(*names):
    """Give a method that lists the attributes of these names."""

    def get_prunable_weights(self):
        found = []
        for name in names:
            value = self
            for part in name.split("."):
                value = getattr(value, part)
            found.append(value)
        return found

    return get_prunable_weights


def with_list(cls, *names):
    return type(f"Listed{cls.__name__}", (cls,), {"get_prunable_weights": listing(*names)})


@pytest.mark.parametrize(
    ("layer", "expected", "left_out"),
    [
        (with_list(Unknown, "w")(name="a"), ["w"], ["offset"]),
        (with_list(L.Dense, "kernel", "bias")(4, name="a"), ["kernel", "bias"], []),
        (with_list(L.Dense)(4, name="a"), [], ["kernel", "bias"]),
        (
            with_list(L.SimpleRNN)(4, name="a"),
            [],
            ["simple_rnn_cell/kernel", "simple_rnn_cell/recurrent_kernel", "simple_rnn_cell/bias"],
        ),
        (with_list(Block, "second.kernel")(name="a"), ["second/kernel"], ["first/kernel", "first/bias", "second/bias"]),
        (with_list(Block, "first.bias")(name="a"), ["first/bias"], ["first/kernel", "second/kernel", "second/bias"]),
    ],
    ids=["unknown", "bias", "nothing", "recurrent", "inside", "bias-inside"],
)
def test_what_a_layer_lists_and_nothing_else_is_pruned(layer, expected, left_out):
    model = sequential(layer, L.Flatten(), L.Dense(2, name="d"), shape=(3, 5))
    targets, skipped = find_targets(model)
    assert [target.path for target in targets] == [*(f"a/{end}" for end in expected), "d/kernel"]
    assert {target.role for target in targets} == {"kernel"}
    said = {row.path: row.reason for row in skipped if "get_prunable_weights() of 'a' leaves it out" in row.reason}
    assert list(said) == [f"a/{end}" for end in left_out]


def test_a_depthwise_layer_may_list_its_kernel():
    (target, *_), _ = find_targets(sequential(with_list(L.DepthwiseConv1D, "kernel")(3, name="a"), shape=(6, 5)))
    assert (target.path, target.role, target.layout.turned_shape(target.variable.shape)) == (
        "a/kernel",
        "kernel",
        (3, 1, 5),
    )


def test_a_cell_may_list_its_weights():
    listed = with_list(L.GRUCell, "recurrent_kernel")
    cells = L.StackedRNNCells([listed(4, name="a"), L.LSTMCell(3, name="b")], name="cells")
    with keras.saving.custom_object_scope({listed.__name__: listed}):  # the backward layer is a copy
        both = L.Bidirectional(L.RNN(listed(4, name="c"), return_sequences=True, name="rnn"), name="two")
    model = sequential(both, L.RNN(cells, name="stack"), shape=(3, 5))
    assert chosen(model) == [
        "two/forward_rnn/c/recurrent_kernel",
        "two/backward_rnn/c/recurrent_kernel",
        "stack/cells/a/recurrent_kernel",
        "stack/cells/b/kernel",
        "stack/cells/b/recurrent_kernel",
    ]


@pytest.mark.parametrize(
    "found", [None, 3, ["kernel"], [np.zeros((2, 2))], [keras.Variable(np.zeros((2, 2)), name="other")]]
)
def test_a_list_of_anything_else_is_refused(found):
    layer = type("Odd", (L.Dense,), {"get_prunable_weights": lambda self: found})(2, name="odd")
    with pytest.raises(KpipeError, match=r"get_prunable_weights\(\) of layer 'odd' \(Odd\) gave"):
        find_targets(sequential(layer))


class Subclassed(keras.Model):
    """A model of one's own with a weight of its own, and a layer that no call has come to."""

    def __init__(self):
        super().__init__(name="sub")
        self.body, self.never = L.Dense(4, name="body"), L.Dense(3, name="never")
        self.wait = L.MultiHeadAttention(2, 2, name="wait")
        self.scale = self.add_weight(shape=(4,), name="scale")

    def call(self, x):
        return self.body(x) * self.scale


@pytest.mark.filterwarnings("ignore:`build..` was called on layer 'sub'")  # Keras has seen the layers that wait
def test_a_subclassed_model_is_reported_whole():
    model = Subclassed()
    model(np.zeros((1, 5)))
    targets, skipped = find_targets(model)
    assert [target.path for target in targets] == ["body/kernel"]
    said = {row.path: (row.shape, row.reason) for row in skipped}
    waiting = "it has no weights yet: call the model on data first"
    assert said["never"] == said["wait"] == ((), waiting)
    assert said["scale"][0] == (4,) and "knows no role of this weight of Subclassed" in said["scale"][1]
    listed = with_list(Subclassed, "scale")()
    listed(np.zeros((1, 5)))
    assert chosen(listed) == ["scale"]
    with pytest.raises(KpipeError, match=r"no weight to prune \(body: it has no weights yet: call the model on data"):
        find_targets(Subclassed())
