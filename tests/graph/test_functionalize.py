"""Subclassed models become graphs over the same layers."""

import threading
import warnings

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.distill import distill
from kpipe.errors import SurgeryError
from kpipe.graph import functionalize, sites, trace
from kpipe.structured import plan_filters, prune_filters


class Residual(L.Layer):
    """Layers and operations in a layer: written out."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.wide, self.narrow = L.BatchNormalization(name="norm"), L.Dense(9, name="wide"), None
        self.units, self.drop = units, L.Dropout(0.5)

    def build(self, shape):
        self.narrow = L.Dense(self.units, name="narrow")

    def call(self, x, training=None):
        y = self.drop(ops.gelu(self.wide(self.norm(x, training=training))), training=training)
        return x + self.narrow(y)


class Net(keras.Model):
    """Blocks with layers of the same names, one of them called twice."""

    def __init__(self, blocks=2, **kwargs):
        super().__init__(**kwargs)
        self.stem, self.blocks = L.Dense(6, name="stem"), [Residual(6, name=f"block{i}") for i in range(blocks)]
        self.head = L.Dense(3, name="head")

    def call(self, x, training=None):
        x = ops.relu(self.stem(x))
        for block in [*self.blocks, self.blocks[0]]:
            x = block(x, training=training)
        return self.head(x[..., :4])


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def built(cls, shape=(2, 5), **kwargs):
    keras.utils.set_random_seed(0)
    model = cls(**kwargs)
    model(np.zeros(shape, "float32"))
    return randomised(model)


def drawn(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def test_a_graph_answers_alike_over_the_same_layers():
    model = built(Net, name="net")
    graph = functionalize(model)
    x = drawn(4, 5)
    assert np.allclose(graph(x), model(x), atol=1e-6) and graph.name == "net"
    assert {id(v) for v in graph.weights} == {id(v) for v in model.weights}
    paths = [site.path for site in sites(graph).sites if isinstance(site.operation, L.Dense)]
    assert paths == ["stem", *["block0/wide", "block0/narrow", "block1/wide", "block1/narrow"], *paths[1:3], "head"]
    model.stem.kernel.assign(model.stem.kernel * 2)
    assert np.allclose(graph(x), model(x), atol=1e-6)
    keras.utils.set_random_seed(3)
    assert not np.allclose(graph(x, training=True), graph(x))  # dropout and batch norm are told


def test_layers_keep_no_nodes_of_calls_that_were_tried():
    model = built(Net)
    functionalize(model)
    assert [len(layer._inbound_nodes) for layer in (model.stem, model.head, model.blocks[0].wide)] == [1, 1, 1]
    assert not model._inbound_nodes and not model.blocks[0]._inbound_nodes


class Scaling(L.Layer):
    """Be called in two ways: one graph cannot do both."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(4, name="inner")

    def call(self, x, scale=1.0):
        return self.inner(x) * scale


class Holding(keras.Model):
    """Hold such a block between two layers."""

    def __init__(self):
        super().__init__(name="holding")
        self.first, self.block = L.Dense(4, name="first"), Scaling(name="block")
        self.wide, self.last = L.Dense(6, name="wide"), L.Dense(2, name="last")

    def call(self, x):
        return self.last(self.wide(self.block(self.block(self.first(x), scale=2.0), scale=3.0)))


def nodes_of(model):
    return {one.name: len(one._inbound_nodes) for one in model._flatten_layers()}


def test_attempts_before_the_graph_that_is_given_leave_no_nodes():
    model = Holding()
    graph = functionalize(model, (None, 3))
    assert nodes_of(model) == {"holding": 0, "first": 1, "block": 2, "wide": 1, "last": 1, "inner": 0}
    x = drawn(5, 3)
    inside = keras.Model(graph.input, graph.get_layer("first").output)  # of the graph, not of an attempt
    assert np.allclose(inside(x), model.first(x))
    small = prune_filters(graph, plan_filters(graph, ratio=0.5))
    taught = distill(graph, small, (x, np.zeros(5, int)), features=["first", "wide"], verbose=0)
    assert taught.get_layer("wide").units == 3
    assert taught.output_shape == (None, 2)


def test_a_model_with_a_graph_that_is_refused_keeps_it():
    x = keras.Input((5,), name="x")
    model = keras.Model(x, ops.relu(L.Dense(3, name="b")(Branching(name="block")(L.Dense(4, name="a")(x)))))
    before = nodes_of(model)
    calls = [len(operation._inbound_nodes) for operation in model.operations]
    graph = functionalize(model)
    assert "block" in [layer.name for layer in graph.layers]  # it stays one layer
    assert nodes_of(model) == {name: count + (name in ("a", "b", "block")) for name, count in before.items()}
    assert [len(operation._inbound_nodes) - 1 for operation in model.operations[1:]] == calls[1:]


def test_channels_of_a_subclassed_model_can_be_cut(tmp_path):
    graph = functionalize(built(Net))
    plan = plan_filters(graph, ratio=0.5)
    assert {"block0/wide", "block1/wide"} <= {group.name for group in plan.groups}
    small = prune_filters(graph, plan)
    small.save(tmp_path / "small.keras")
    x = drawn(3, 5)
    assert np.array_equal(keras.models.load_model(tmp_path / "small.keras")(x), small(x))
    assert small.get_layer("block1").get_layer("wide").units == 4 and graph.get_layer("stem").units == 6


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.b = L.Dense(3), L.Dense(3)

    def call(self, left, right):
        return {"sum": self.a(left) + self.b(right), "left": left}


class Named(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.numbers = L.Embedding(7, 4), L.Dense(4)

    def call(self, inputs):
        return ops.mean(self.words(inputs["words"]), axis=1) * self.numbers(inputs["numbers"])


def test_several_inputs_and_outputs_keep_their_structure():
    graph = functionalize(Unbuilt(), [(None, 2), keras.KerasTensor((None, 5))])
    out = graph([drawn(4, 2), drawn(4, 5)])
    assert sorted(out) == ["left", "sum"] and out["sum"].shape == (4, 3)

    example = {"words": np.ones((2, 3), "int32"), "numbers": np.ones((2, 5), "float32")}
    model = Named()
    graph = functionalize(model, example)
    assert {tensor.name: (tensor.shape, tensor.dtype) for tensor in graph.inputs} == {
        "words": ((None, 3), "int32"),
        "numbers": ((None, 5), "float32"),
    }
    assert np.allclose(graph(example), model(example))


def test_models_with_a_graph_come_back():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(x))
    assert functionalize(model) is model
    late = keras.Sequential([L.Dense(3), L.Dense(2)])
    assert functionalize(late, (None, 4)) is late and late.output_shape == (None, 2)


def test_blocks_in_a_graph_are_written_out():
    x = keras.Input((6,), name="x")
    inner = keras.Sequential([keras.Input((6,)), Residual(6, name="block")], name="inner")
    model = randomised(keras.Model(x, L.Dense(2, name="out")(inner(x))))
    graph = functionalize(model)
    assert {"inner/block/wide", "out"} <= {site.path for site in sites(graph).sites}
    assert np.allclose(graph(drawn(3, 6)), model(drawn(3, 6)), atol=1e-6)


class Attention(L.Layer):
    """As it is written by hand: the batch is what `ops.shape` says."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.parts, self.out = heads, [L.Dense(8, name=name) for name in "qkv"], L.Dense(8, name="out")

    def call(self, x):
        batch = ops.shape(x)[0]
        q, k, v = (ops.reshape(part(x), (batch, -1, self.heads, 8 // self.heads)) for part in self.parts)
        scores = ops.softmax(ops.einsum("bthd,bshd->bhts", q, k) / 2.0)
        return self.out(ops.reshape(ops.einsum("bhts,bshd->bthd", scores, v), (batch, ops.shape(x)[1], 8)))


class Words(L.Layer):
    """Embeddings of the positions are called on a constant; Keras keeps no name of it, for lack of `**kwargs`."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.words, self.places = L.Embedding(9, width), L.Embedding(6, width)

    def call(self, x):
        return self.words(x) + self.places(ops.arange(6))


class Transformer(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.attention, self.head = Words(8), Attention(2, name="attention"), L.Dense(3, name="head")
        self.norm, self.feed = L.LayerNormalization(), keras.Sequential([L.Dense(12, "gelu"), L.Dense(8)], name="feed")

    def call(self, x, training=None):
        x = self.words(x)
        x = x + self.attention(self.norm(x))
        return self.head(ops.mean(x + self.feed(x), axis=1))


def test_a_transformer_of_layers_of_ones_own_can_be_cut():
    graph = functionalize(Transformer(), keras.KerasTensor((None, 6), "int32"))
    whole = keras.Model(graph.input, L.Dense(3)(L.Dense(4)(Words(8)(graph.input))))
    assert "kpipe.functionalize writes it out" in str(plan_filters(whole, ratio=0.5).frozen)
    plan = plan_filters(graph, ratio=0.5)
    assert len(plan.groups) == 4 and {"attention/v"} < {group.name for group in plan.groups}
    small = prune_filters(graph, plan)
    assert small.count_params() < graph.count_params()
    assert [layer.units for layer in small.get_layer("attention").layers if isinstance(layer, L.Dense)] == [4, 4, 4, 4]
    assert [layer.output_dim for layer in small.get_layer("words").layers if isinstance(layer, L.Embedding)] == [4, 4]


class Masked(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.memory, self.head = L.Embedding(7, 4, mask_zero=True), L.LSTM(6), L.Dense(2)

    def call(self, x):
        return self.head(self.memory(self.words(x)))


def test_masks_come_along():
    model = Masked()
    graph = functionalize(model, np.zeros((1, 5), "int32"))
    x = np.array([[1, 2, 0, 0, 0], [3, 0, 4, 0, 0]])
    assert np.allclose(graph(x), model(x), atol=1e-6)


class Counting(L.Layer):
    """Its answer depends on how often values went through it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = [0]

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            self.seen[0] += 1
        return x * (1.0 + self.seen[0])


def test_a_layer_whose_graph_answers_otherwise_stays_one_layer():
    inside = Counting(name="inside")
    with pytest.raises(
        SurgeryError, match="does not answer as it does"
    ):  # nor does the whole: it is not the same twice
        functionalize(Outer(inside), (None, 4))


class Scaled(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.dense = L.Dense(4, name="dense")

    def call(self, x):
        return self.dense(x * self.scale)


class Positions(L.Layer):
    """As in many a transformer: embeddings of 0, 1, 2 are called on a constant."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words, self.places = L.Dense(4), L.Embedding(5, 4)

    def call(self, x):
        return self.words(x) + self.places(ops.arange(5))


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layer"])
def test_layers_that_are_called_on_constants_are_in_the_graph(whole, tmp_path):
    """The embeddings of the positions are cut with the tokens', trained, saved and loaded."""
    keras.utils.set_random_seed(0)
    model = Whole(Positions()) if whole else Outer(Positions(name="inside"))
    x = drawn(4, 5, 4)
    expected = model(x)
    graph = functionalize(model, (None, 5, 4))
    assert {id(variable) for variable in graph.weights} == {id(variable) for variable in model.weights}
    np.testing.assert_allclose(graph(x), expected, atol=1e-6)
    graph.save(tmp_path / "graph.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "graph.keras")(x), graph(x))

    graph.compile("sgd", "mse")
    before = [np.asarray(one) for one in graph.trainable_weights]
    graph.fit(x, np.ones((4, *graph.output_shape[1:])), verbose=0)
    assert all(np.any(old != np.asarray(new)) for old, new in zip(before, graph.trainable_weights, strict=True))
    np.testing.assert_allclose(graph(x), model(x), atol=1e-6)  # both hold the same variables
    if whole:  # what comes out of the model stays
        return
    plan = plan_filters(graph, ratio=0.5)
    (group,) = plan.groups
    assert len(group.removed) == 2
    small = prune_filters(graph, plan)
    kept = np.setdiff1d(np.arange(4), group.removed)
    for layer in (one for one in small._flatten_layers() if isinstance(one, L.Embedding)):
        np.testing.assert_array_equal(layer.embeddings, np.asarray(model.inside.places.embeddings)[:, kept])


class Computed(keras.Model):
    """It calls a layer on what it makes of the weights of another."""

    def __init__(self, made_of):
        super().__init__(name="computed")
        self.made_of, self.table, self.head = made_of, L.Embedding(5, 4), L.Dense(4)
        self.dense = L.Dense(4, name="dense")

    def build(self, _):
        self.table.build(None)

    def call(self, x):
        return self.head(x) + self.dense(self.made_of(self.table.embeddings)) + self.table(ops.arange(5))


@pytest.mark.parametrize(
    "made_of, message",
    [(lambda rows: rows, r"lack weights of \['dense'\]"), (lambda rows: 2.0 * rows, "would not follow its weights")],
)
def test_what_is_made_of_weights_is_no_constant(made_of, message):
    with pytest.raises(SurgeryError, match=message):
        functionalize(Computed(made_of), (None, 5, 4))


class Table(L.Layer):
    def build(self, _):
        self.places = self.add_weight(shape=(5,), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        return x


class Looking(keras.Model):
    """It looks up the whole numbers that another layer holds."""

    def __init__(self):
        super().__init__(name="looking")
        self.table, self.embedding = Table(), L.Embedding(5, 4)

    def call(self, x):
        return self.table(x) + self.embedding(self.table.places + 0)


@pytest.mark.parametrize("places", [range(5), [3] * 5])
def test_whole_numbers_that_are_weights_are_no_constant(places):
    model = Looking()
    model(np.ones((1, 5, 4)))
    model.table.places.assign(list(places))
    with pytest.raises(SurgeryError, match="would not follow its weights"):
        functionalize(model, (None, 5, 4))


class Half(L.Layer):
    """It is built, and has no weights."""

    def build(self, _):
        self.factor = 0.5

    def call(self, x):
        return self.factor * x


class Called(keras.Model):
    """Layers that are called on constants in several ways."""

    def __init__(self):
        super().__init__(name="called")
        self.first, self.second = L.Embedding(5, 4, name="first"), L.Dense(4, name="second")
        self.half, self.drop = Half(), L.Dropout(0.5)
        self.first_constant = L.Dense(4, name="first_constant")

    def call(self, x, training=None):
        x = x + self.first(np.arange(5)) + self.first(np.arange(5)[::-1].copy())  # twice
        x = x + self.second(np.linspace(0, 1, 15, dtype="float32").reshape(5, 3))  # floats
        x = self.drop(self.first_constant(x) * self.half(np.ones((1, 4), "float32")), training=training)
        return x + ops.vectorized_map(self.second, x[:, :, :3])


class Lazy(Called):
    """Its layers are built by the first call, of several that make a graph."""

    def build(self, _):
        self.built = True


@pytest.mark.parametrize("cls, count", [(Called, 3), (Lazy, 4)])
def test_constants_of_all_kinds(cls, count):
    keras.utils.set_random_seed(0)
    model, x = cls(), drawn(3, 5, 4)
    if cls is Lazy:
        model.build((None, 5, 4))
    graph = functionalize(model, (None, 5, 4))
    np.testing.assert_allclose(graph(x), model(x), atol=1e-5)
    constants = [layer for layer in graph.layers if type(layer).__name__ == "Constant"]
    assert len(constants) == count and all(len(one._inbound_nodes) == 1 for one in constants)


def test_calls_of_others_are_left_alone():
    """Another thread, another model, and what is called after an error."""
    own, other, heard = keras.Layer.__call__, L.Dense(2), []

    class Asking(keras.Model):
        def __init__(self):
            super().__init__(name="asking")
            self.places = L.Embedding(5, 4)

        def call(self, x):
            thread = threading.Thread(target=lambda: heard.append(other(np.ones((1, 3)))))
            thread.start()
            thread.join()
            return x + self.places(np.arange(5))

    functionalize(Asking(), (None, 5, 4))
    assert heard and not any(isinstance(one, keras.KerasTensor) for one in heard)
    with pytest.raises(SurgeryError):
        functionalize(Whole(Branching()), (None, 5, 4))
    assert keras.Layer.__call__ is own


def test_a_constant_is_no_user_of_what_it_is_called_on():
    """The norm before it is folded, and masks end in it without a warning."""
    model = Outer(Positions(name="inside"))
    graph = functionalize(model, (None, 5, 4))
    flow = sites(graph)
    fed = [site for site in flow.sites if site.is_input][-1]  # of the layer
    assert [site.operation.name for site in flow.consumers(fed)] == [model.inside.words.name]
    tokens = keras.Input((5,), dtype="int32")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masked = functionalize(keras.Model(tokens, Outer(Positions())(L.Embedding(9, 4, mask_zero=True)(tokens))))
        masked(np.ones((1, 5), "int32"))
    assert any("does not support masking" in str(one.message) for one in said)  # the control: there is a mask
    assert not any("of type Constant" in str(one.message) for one in said)


def test_what_constants_cost_is_not_counted_for_each_sample():
    class Rows(keras.Model):
        def __init__(self):
            super().__init__(name="rows")
            self.inner, self.rows = L.Dense(7), L.Dense(4)

        def call(self, x):
            return self.inner(x) @ ops.ones((7, 4)) + self.rows(np.ones((5, 3), "float32"))

    assert trace(functionalize(Rows(), (None, 5, 4))).macs() == 5 * 4 * 7 + 5 * 7 * 4


class Branching(L.Layer):
    def call(self, x, training=None):
        return x * 2.0 if training else x


class Noisy(L.Layer):
    def call(self, x):
        return x + keras.random.normal((5, 4))


class Outer(keras.Model):
    def __init__(self, inside):
        super().__init__()
        self.inside, self.head = inside, L.Dense(2, name="head")

    def call(self, x):
        return self.head(self.inside(x))


@pytest.mark.parametrize("inside", [Scaled, Branching, Noisy])
def test_what_cannot_be_written_out_stays_one_layer(inside):
    model = Outer(inside(name="inside"))
    if inside is Noisy:  # its answers are random: nothing could be compared
        with pytest.raises(SurgeryError, match="does not answer as it does"):
            functionalize(model, (None, 5, 4))
        return
    graph = functionalize(model, (None, 5, 4))
    assert any(site.operation is model.inside for site in sites(graph).sites)
    assert "has no rule" in plan_filters(graph, ratio=0.0).frozen["inside"]
    x = drawn(2, 5, 4)
    assert np.allclose(graph(x, training=True), model(x, training=True))


class Whole(keras.Model):
    """A layer's call as the call of a model."""

    def __init__(self, layer):
        super().__init__(name="whole")
        for name, value in vars(layer).items():
            if isinstance(value, L.Layer):
                setattr(self, name, value)
        self.behaviour = type(layer)

    def build(self, shape):
        self.behaviour.build(self, shape)

    def call(self, x, training=None):
        if self.behaviour is Branching:
            return Branching.call(self, x, training)
        return self.behaviour.call(self, x)


class Held(keras.Model):
    def __init__(self):
        super().__init__(name="held")
        self.norm = L.BatchNormalization(name="norm")

    def call(self, x):
        return self.norm(x, training=False)


class Choosing(keras.Model):
    def call(self, x):
        return x if ops.max(x) > 0 else -x


class Other(keras.Sequential):
    def call(self, x, training=None, mask=None):
        return 2.0 * super().call(x)


@pytest.mark.parametrize(
    "model, message",
    [
        (Whole(Scaled()), r"lack weights of \['whole'\]"),
        (Whole(Branching()), "does not do the same in training"),
        (Whole(Noisy()), "draws random numbers itself"),
        (Held(), r"'norm' is always called with training=False"),
        (Choosing(name="choosing"), r"'choosing'.*line .* of test_functionalize.py, 'return x if"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(model, message):
    with pytest.raises(SurgeryError, match=message):
        functionalize(model, (None, 5, 4))
    assert not any(one._inbound_nodes or one._outbound_nodes for one in model._flatten_layers())


def test_a_sequential_with_a_call_of_its_own_is_no_plain_graph():
    model = Other([keras.Input((4,)), L.Dense(3)])
    with pytest.raises(SurgeryError, match="subclassed"):
        sites(model)


class Spared(Net):
    def __init__(self):
        super().__init__()
        self.spare = L.Dense(7, name="spare")


def test_a_layer_that_nothing_calls_is_left_out_with_a_warning():
    model = Spared()
    model.spare.build((None, 3))
    model(np.zeros((2, 5), "float32"))
    with pytest.warns(UserWarning, match=r"leaves out \['spare'\]"):
        graph = functionalize(model)
    assert len(graph.weights) == len(model.weights) - 2


@pytest.mark.parametrize("spec, message", [(None, "not built on known shapes"), ("x", "Expected in input_spec")])
def test_a_specification_is_asked_for(spec, message):
    with pytest.raises(SurgeryError, match=message):
        functionalize(Net(), spec)
    with pytest.raises(SurgeryError, match="Expected a Keras 3 model"):
        functionalize("net")


class TiedByHand(keras.Model):
    """The embeddings are turned into a constant of the graph, which would not be trained."""

    def __init__(self, embedding, turned):
        super().__init__()
        self.embedding, self.turned, self.dense = embedding, turned, L.Dense(4)

    def call(self, tokens):
        x = self.dense(self.embedding(tokens))
        return (
            ops.matmul(x, ops.transpose(self.embedding.embeddings)) if self.turned else self.embedding(x, reverse=True)
        )


def test_weights_that_are_computed_with_outside_of_their_layer_are_refused():
    tokens = np.zeros((2, 5), "int32")
    with pytest.raises(SurgeryError, match=r"would not follow its weights.*ReversibleEmbedding"):
        functionalize(TiedByHand(L.Embedding(9, 4), turned=True), tokens)
    model = TiedByHand(L.ReversibleEmbedding(9, 4), turned=False)
    graph = functionalize(model, tokens)
    model.embedding.embeddings.assign(3 * model.embedding.embeddings)
    assert np.array_equal(model(tokens), graph(tokens)) and np.abs(graph(tokens)).max() > 0
