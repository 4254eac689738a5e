"""Which weights are chosen, and what is said of the others."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.copies import copy_model
from kpipe.errors import KpipeError
from kpipe.layers import RULES, Layout, register_weights, weights
from kpipe.projections import kernels
from kpipe.unstructured import Skipped, Target, find_targets
from tests.models import ZOO, build


def chosen(model, *args, **kwargs):
    return [target.path for target in find_targets(model, *args, **kwargs)[0]]


def reasons(model, *args, **kwargs):
    return {row.path: row.reason for row in find_targets(model, *args, **kwargs)[1]}


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


def mixed():
    """Attention, a recurrent layer, a block and a nested model: (4, 6) -> 2."""
    x = keras.Input((4, 6))
    inner = keras.Sequential([keras.Input((4, 3)), L.Conv1D(3, 2, name="conv")], name="inner")
    y = L.MultiHeadAttention(2, 3, name="attend")(x, x)
    y = inner(Block(name="block")(y))
    y = L.Bidirectional(L.LSTM(3, name="lstm"), name="read")(y)
    return keras.Model(x, L.Dense(2, name="head")(y))


ATTEND = [f"attend/{part}/kernel" for part in ("query", "key", "value", "attention_output")]
BLOCK = ["block/first/kernel", "block/second/kernel"]
READ = [f"read/{way}_lstm/lstm_cell/{kind}kernel" for way in ("forward", "backward") for kind in ("", "recurrent_")]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [*ATTEND, *BLOCK, "inner/conv/kernel", *READ, "head/kernel"]),
        ("attend|head", [*ATTEND, "head/kernel"]),
        (r"recurrent_kernel$", [READ[1], READ[3]]),
        (r"^(?!head)", [*ATTEND, *BLOCK, "inner/conv/kernel", *READ]),
        (L.Dense, [*BLOCK, "head/kernel"]),
        (L.MultiHeadAttention, ATTEND),
        (L.EinsumDense, ATTEND),
        (L.LSTM, READ),
        (L.LSTMCell, READ),
        (L.Bidirectional, READ),
        ((Block, L.Conv1D), [*BLOCK, "inner/conv/kernel"]),
        ([Block], BLOCK),
        (keras.Sequential, ["inner/conv/kernel"]),
        (lambda layer: isinstance(layer, L.Dense), [*BLOCK, "head/kernel"]),
        (lambda layer: layer.name == "attend", ATTEND),
        (
            lambda layer: layer.name not in ("attend", "forward_lstm"),
            [*BLOCK, "inner/conv/kernel", *READ[2:], "head/kernel"],
        ),
    ],
)
def test_layers_are_chosen_by_path_class_and_function(layers, expected):
    assert chosen(mixed(), layers) == expected


@pytest.mark.parametrize("layers", [3, (), (L.Dense, 3), int, ("conv", "head"), {"conv": 1}])
def test_what_is_no_filter_is_refused(layers):
    with pytest.raises(KpipeError, match="expected None, a regular expression on paths"):
        find_targets(build("dense"), layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("hiden1", "matches no prunable weight of 'dense'. Its prunable weights: .*Did you mean 'hidden1/kernel'"),
        (L.Conv2D, "matches no prunable weight of 'dense'. Its prunable weights: hidden1/kernel"),
        (lambda layer: False, "matches no prunable weight"),
        ("(", "no regular expression"),
    ],
)
def test_a_filter_that_chooses_nothing_says_what_there_is(layers, message):
    with pytest.raises(KpipeError, match=message):
        find_targets(build("dense"), layers)


@pytest.mark.parametrize("name", ZOO)
def test_the_same_is_chosen_in_a_copy(name):
    model = build(name)
    assert chosen(copy_model(model)) == chosen(model)


def test_depthwise_kernels_are_left_out_and_taken_when_asked_for():
    model = build("depthwise")
    left_out = reasons(model)
    assert left_out["dw/kernel"] == left_out["sep/depthwise_kernel"]
    assert left_out["dw/kernel"].startswith("its role is 'depthwise_kernel', which roles=('kernel'")
    paths = chosen(model, roles=("kernel", "depthwise_kernel"))
    assert {"dw/kernel", "sep/depthwise_kernel"} == set(paths) - set(chosen(model))
    assert set(chosen(model, roles=["depthwise_kernel"])) == {"dw/kernel", "sep/depthwise_kernel"}
    assert chosen(model, roles="depthwise_kernel") == chosen(model, roles=["depthwise_kernel"])


def test_biases_and_norms_are_taken_only_when_asked_for():
    model = build("conv_bn")
    assert {path.split("/")[1] for path in chosen(model)} == {"kernel"}
    assert reasons(model)["bn1/gamma"] == "its role is 'gamma', only kernels are pruned"
    assert {path.split("/")[1] for path in chosen(model, roles=("kernel", "bias", "gamma"))} == {
        "kernel",
        "bias",
        "gamma",
    }
    assert reasons(model, roles=("kernel", "bias"))["bn1/beta"].startswith("its role is 'beta', which roles=('kernel'")


@pytest.mark.parametrize(
    ("roles", "message"),
    [(("kernels",), "Did you mean 'kernel'"), (("statistic",), "roles holds 'statistic'"), ((), "roles is empty")],
)
def test_roles_that_there_are_not_are_refused(roles, message):
    with pytest.raises(KpipeError, match=message):
        find_targets(build("conv_bn"), roles=roles)


def test_a_target_knows_its_layer_and_its_axes():
    targets = {target.path: target for target in find_targets(mixed())[0]}
    cell = targets[READ[0]]
    assert isinstance(cell.layer, L.LSTMCell) and cell.layer.kernel is cell.variable
    assert targets[READ[1]].role == "recurrent_kernel"
    assert targets["attend/attention_output/kernel"].layout == Layout((0, 1), (2,))


class Unknown(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")
        self.offset = self.add_weight(shape=(4,), name="offset")

    def call(self, x):
        return x @ self.w + self.offset


def sequential(*layers, shape=(5,)):
    return keras.Sequential([keras.Input(shape), *layers], name="net")


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
    register_weights(Unknown, roles=lambda layer: {"w": "weights"})
    with pytest.raises(KpipeError, match=r"Layer 'mine' \(Unknown\): unknown roles \{'w': 'weights'\}"):
        find_targets(sequential(Unknown(name="mine")))


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


@pytest.mark.parametrize(
    ("make", "shape", "kernels"),
    [
        (lambda: L.Dense(4, name="a"), (5,), ["a/kernel"]),
        (lambda: L.EinsumDense("ab,bc->ac", 4, name="a"), (5,), ["a/kernel"]),
        (lambda: L.Conv2D(4, 2, name="a"), (3, 3, 5), ["a/kernel"]),
        (lambda: L.Embedding(6, 4, name="a"), (5,), ["a/embeddings"]),
    ],
    ids=["dense", "einsum", "conv", "embedding"],
)
def test_adapters_are_left_out_until_they_are_merged(make, shape, kernels, tmp_path):
    def net():
        return sequential(make(), L.Flatten(), L.Dense(2, name="d"), shape=shape)

    model = net()
    model.layers[0].enable_lora(2)
    for weight in model.layers[0].trainable_weights:
        weight.assign(np.ones(weight.shape))
    assert chosen(model) == ["d/kernel"]
    said = [path for path, reason in reasons(model).items() if reason.startswith("LoRA is enabled")]
    assert len(said) == 3 and said[0] == kernels[0] and all("/lora_" in path for path in said[1:])
    model.save_weights(tmp_path / "merged.weights.h5")
    plain = net()
    plain.load_weights(tmp_path / "merged.weights.h5")
    x = np.ones((2, *shape), "float32")
    assert np.allclose(plain(x), model(x), atol=1e-4)
    assert chosen(plain) == [*kernels, "d/kernel"]


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: L.Dense(4, name="a"), ["kernel"]),
        (lambda: L.EinsumDense("ab,bc->ac", 4, name="a"), ["kernel"]),
        (lambda: L.Embedding(6, 4, name="a"), ["embeddings"]),
        (lambda: L.ReversibleEmbedding(6, 4, tie_weights=False, name="a"), ["embeddings", "reverse_embeddings"]),
    ],
    ids=["dense", "einsum", "embedding", "reversible"],
)
def test_integer_kernels_are_left_out(make, names, mode):
    model = sequential(make(), L.Flatten(), L.Dense(2, name="d"))
    model.layers[0].quantize(mode)
    assert chosen(model) == ["d/kernel"]
    said = reasons(model)
    for name in names:
        assert said[f"a/{name}"] == f"its layer is quantized to {mode}: prune before model.quantize({mode!r})"
    model.layers[-1].quantize(mode)
    with pytest.raises(KpipeError, match=f"has no weight to prune .a/{names[0]}: its layer is quantized to {mode}"):
        find_targets(model)


def test_a_layer_in_float8_is_pruned():
    model = sequential(L.Dense(4, name="a"))
    model.layers[0].quantize("float8")
    assert chosen(model) == ["a/kernel"]
    assert reasons(model)["a/kernel_scale"] == "it is a scale of float8 training"


def test_weights_that_are_no_floats_are_left_out(registry):
    class Table(L.Layer):
        def build(self, shape):
            self.codes = self.add_weight(shape=(3, 4), dtype="int32", trainable=False, name="codes")

        def call(self, x):
            return x

    register_weights(Table, roles={"codes": "kernel"})
    assert reasons(sequential(Table(name="t"), L.Dense(2)))["t/codes"].startswith("its type is int32")


def test_frozen_layers_are_named():
    model = build("nested")
    model.get_layer("block").trainable = False
    frozen = [path for path, reason in reasons(model).items() if reason == "frozen: trainable is False"]
    assert frozen == ["block/conv/kernel"]
    model.get_layer("block").trainable = True
    assert set(chosen(model)) >= set(frozen)
    model.trainable = False
    with pytest.raises(KpipeError, match="frozen: trainable is False"):
        find_targets(model)
    assert reasons(sequential(L.Dense(3, trainable=False, name="a"), L.Dense(2)))["a/kernel"].startswith("frozen")


def test_a_shared_layer_and_a_shared_variable_are_chosen_once():
    assert sorted(chosen(build("siamese"))) == sorted(set(chosen(build("siamese"))))

    class Tied(L.Layer):
        """Hold the table of another layer."""

        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)
            self.table = table

        def build(self, shape):
            self.kernel = self.table.embeddings

        def call(self, x):
            return x @ keras.ops.transpose(self.kernel)

    tokens, table = keras.Input((4,), dtype="int32"), L.Embedding(6, 3, name="table")
    tied = Tied(table, name="tied")
    model = keras.Model(tokens, tied(table(tokens)))
    (target,), skipped = find_targets(model)
    assert (target.path, target.role, target.layer) == ("table/embeddings", "embedding", table)
    assert skipped == []


class Twice(L.Layer):
    """Two layers of one name, and two weights without a name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [L.Dense(5, use_bias=False, name="part") for _ in range(2)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)
        self.a, self.b = self.add_weight(shape=(5, 5)), self.add_weight(shape=(5, 5))

    def call(self, x):
        return self.parts[1](self.parts[0](x)) @ self.a @ self.b


def test_equal_paths_are_told_apart():
    model = sequential(Twice(name="t"))
    assert chosen(model) == ["t/part/kernel", "t/part#2/kernel"]
    assert chosen(model, "part#2/kernel$") == ["t/part#2/kernel"]
    assert list(reasons(model)) == ["t/variable", "t/variable#2"]


def test_paths_are_the_same_however_a_model_is_made(tmp_path):
    """Keras names the weights of a Sequential model with the model's name in front or without, as it is made."""
    inner = keras.Sequential([keras.Input((5,)), L.Dense(3, name="d")], name="inner")
    model = sequential(inner, L.Dense(2, name="head"))
    expected = ["inner/d/kernel", "head/kernel"]
    model.save(tmp_path / "model.keras")
    made = [
        model,
        copy_model(model),
        keras.models.clone_model(model),
        keras.models.load_model(tmp_path / "model.keras"),
    ]
    assert len({tuple(variable.path for variable in one.variables) for one in made}) > 1
    for one in made:
        assert chosen(one) == chosen(one, "^inner|^head") == expected
        assert chosen(one, one.layers[-1].kernel.path) == ["head/kernel"]


def test_layers_that_only_draw_random_numbers_are_not_named():
    model = sequential(
        L.Dropout(0.5), L.GaussianNoise(0.1), L.LSTM(3, dropout=0.5, recurrent_dropout=0.5), shape=(3, 5)
    )
    assert {path.split("/")[-1] for path in reasons(model)} == {"bias"}


def test_subclasses_of_composite_layers_are_known():
    attention = type("Mine", (L.MultiHeadAttention,), {})(2, 3, name="mine")
    memory = type("Memory", (L.LSTM,), {})(3, name="memory")
    x = keras.Input((4, 5))
    model = keras.Model(x, memory(attention(x, x)))
    assert len(chosen(model)) == 6
    assert chosen(model, lambda layer: layer.name == "memory") == chosen(model, type(memory))
    assert len(chosen(model, L.LSTM)) == 2 and len(chosen(model, type(attention))) == 4


def test_rows_are_plain_values():
    target = Target("d/kernel", "kernel", keras.Variable([[0.0, 1.0]]))
    assert target.layout == Layout((-2,), (-1,)) and target.layer is None
    assert Skipped("d/bias", (2,), "why") == Skipped("d/bias", (2,), "why")
