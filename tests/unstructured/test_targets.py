"""Which weights are chosen, and what is said of the others."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.copies import copy_model
from kpipe.errors import KpipeError
from kpipe.layers import Layout
from kpipe.unstructured import find_targets
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


def sequential(*layers, shape=(5,)):
    return keras.Sequential([keras.Input(shape), *layers], name="net")


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


@pytest.mark.sweep(1)
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
