"""Layers and residual blocks taken out, against the same layers called by hand."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.graph import evaluate, sites
from kpipe.quantize import quantize
from kpipe.structured.candidates import Candidate, bypassable
from kpipe.structured.depth import relative_change, remove_layers
from kpipe.structured.shorten import check_shortening, shorten
from kpipe.structured.stretches import answers, stretches
from tests.models import ZOO, build, samples


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain(scales: tuple[float, ...] = (1.0, 1.0, 1.0)) -> keras.Model:
    """Make dense layers a, b, c of 4 units on 4 features, I + scale * noise each, and two outputs behind them."""
    net = keras.Sequential([keras.Input((4,), name="x"), *(L.Dense(4, name=n) for n in "abc"), L.Dense(2, name="out")])
    for seed, scale in enumerate(scales):
        noise = rng(seed).normal(0, 1, (4, 4))
        net.layers[seed].kernel.assign(np.eye(4) + scale * noise)
    return net


def residual(scales: tuple[float, ...] = (1.0, 1.0, 1.0)) -> keras.Model:
    """Make three blocks x + scale * conv(relu(bn(conv(x)))) with a ReLU behind each sum."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2), name="image")
    x = L.ReLU(name="stem_relu")(L.Conv2D(4, 3, padding="same", name="stem")(image))
    for n, _ in enumerate(scales):
        y = L.ReLU(name=f"relu{n}")(L.BatchNormalization(name=f"bn{n}")(L.Conv2D(6, 1, name=f"in{n}")(x)))
        y = L.Conv2D(4, 3, padding="same", name=f"out{n}")(y)
        x = L.ReLU(name=f"last{n}")(L.Add(name=f"sum{n}")([x, y]))
    net = keras.Model(image, L.Dense(3, name="logits")(L.GlobalAveragePooling2D(name="gap")(x)), name="residual")
    for n, scale in enumerate(scales):
        layer = net.get_layer(f"out{n}")
        layer.set_weights([scale * w + scale * 0.1 for w in layer.get_weights()])
    return net


def transformer(mask: bool = False, blocks: int = 2) -> keras.Model:
    """Make a pre-LN encoder; with `mask` the zeros of the input are left out of the attention."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = L.Embedding(9, 8, name="embed")(tokens)
    seen = {"attention_mask": ops.not_equal(tokens, 0)[:, None, :]} if mask else {}
    for n in range(blocks):
        y = L.LayerNormalization(name=f"norm{n}a")(x)
        x = L.Add(name=f"attend{n}")([x, L.MultiHeadAttention(2, 4, name=f"heads{n}")(y, y, **seen)])
        y = L.Dense(16, activation="gelu", name=f"up{n}")(L.LayerNormalization(name=f"norm{n}b")(x))
        x = L.Add(name=f"feed{n}")([x, L.Dense(8, name=f"down{n}")(L.Dropout(0.1, name=f"drop{n}")(y))])
    x = L.GlobalAveragePooling1D(name="mean")(L.LayerNormalization(name="norm")(x))
    return keras.Model(tokens, L.Dense(3, name="logits")(x), name="transformer")


def names(model: keras.Model) -> list[str]:
    return [candidate.name for candidate in bypassable(model)]


def layer_names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def test_dense_layers_and_blocks_are_found_with_what_they_cost():
    assert bypassable(plain()) == tuple(Candidate(n, (n,), 20, 16) for n in "abc")
    blocks = bypassable(residual())
    assert [b.name for b in blocks] == ["sum0", "sum1", "sum2"]
    assert blocks[0].layers == ("in0", "bn0", "relu0", "out0", "sum0", "last0")
    params = 4 * 6 + 6 + 4 * 6 + 9 * 6 * 4 + 4
    assert (blocks[0].params, blocks[0].macs) == (params, 36 * (4 * 6 + 9 * 6 * 4))


@pytest.mark.parametrize("mask", [False, True])
def test_both_halves_of_a_transformer_block_are_found(mask):
    found = bypassable(transformer(mask))
    assert [one.name for one in found] == ["attend0", "feed0", "attend1", "feed1"]
    assert found[0].layers == ("norm0a", "heads0", "attend0")
    assert found[3].layers == ("norm1b", "up1", "drop1", "down1", "feed1")


def test_a_layer_goes_with_its_norm_and_activation_but_the_last_norm_of_a_network_stays():
    image = keras.Input((6, 6, 2))
    x = image
    for n in range(3):
        x = L.Conv2D(2 if n < 2 else 4, 3, padding="same", name=f"c{n}")(x)
        x = L.ReLU(name=f"r{n}")(L.BatchNormalization(name=f"n{n}")(x))
    net = keras.Model(image, L.Dense(3)(L.Flatten()(x)))
    assert [one.layers for one in bypassable(net)] == [("c0", "n0", "r0"), ("c1", "n1", "r1")]
    assert "norm" not in bypassable(transformer())[-1].layers  # it comes behind a sum, and before it only a sum did


def test_what_is_taken_elsewhere_or_comes_from_elsewhere_is_no_candidate():
    x, z = keras.Input((4,), name="x"), keras.Input((4,), name="z")
    a = L.Dense(4, name="a")(x)
    b = L.Dense(4, name="b")(a)
    both = L.Add(name="both")([b, L.Dense(4, name="c")(z)])
    tapped = keras.Model([x, z], [L.Dense(2, name="first")(both), L.Dense(2, name="second")(b)])
    # a, b and c are single layers; the sum of two towers has no one tensor that goes round it.
    assert sorted(names(tapped)) == ["a", "b", "c"]
    branch = L.Dense(6, name="wide")(a)
    back = L.Dense(4, name="narrow")(branch)
    forked = keras.Model(x, [L.Dense(2)(back), L.Dense(2)(branch)])
    assert names(forked) == ["a"]  # wide and narrow keep their form together, but wide is taken elsewhere too


def test_what_makes_an_output_stays():
    net = keras.Sequential([keras.Input((4,)), L.Dense(4, name="a"), L.Dense(4, name="b")])
    assert names(net) == ["a"]
    with pytest.raises(KpipeError, match=r"'b' of .* cannot be taken out: it makes an output of the model"):
        remove_layers(net, layers="b")


def test_dense_layers_taken_out_by_numpy():
    net, x = plain(), rng(5).normal(0, 1, (7, 4)).astype("float32")
    before = [w.copy() for w in net.get_weights()]
    small = remove_layers(net, layers=["^a$", "^c$"])
    kernel, bias, last, end = (net.get_layer("b").get_weights() + net.get_layer("out").get_weights())[:4]
    assert np.allclose(small(x), (x @ kernel + bias) @ last + end, atol=1e-5)
    assert layer_names(small) == ["b", "out"] and isinstance(small, keras.Sequential)
    assert small.inputs[0].name == "x" and small.layers[0] is not net.layers[1]
    assert layer_names(net) == ["a", "b", "c", "out"]
    assert all((w == v).all() for w, v in zip(net.get_weights(), before, strict=True))


def test_a_block_taken_out_by_calling_the_other_layers():
    net = build_random(residual())
    (x,) = samples(net)
    small = remove_layers(net, layers="sum1")
    y = x
    for name in layer_names(net)[1:]:
        if name == "in0" or name == "in2":
            held = y
        if name in ("in1", "bn1", "relu1", "out1", "sum1", "last1"):
            continue
        y = net.get_layer(name)([held, y] if name.startswith("sum") else y)
    assert np.allclose(small(x), y, atol=1e-5)
    assert not np.allclose(small(x), net(x), atol=1e-2)
    assert small.output_names == net.output_names and small.name == net.name


def build_random(net: keras.Model) -> keras.Model:
    for seed, variable in enumerate(net.variables):
        if variable.dtype == "float32" and not variable.path.endswith("moving_variance"):
            variable.assign(np.asarray(variable) + rng(seed).normal(0, 0.2, variable.shape))
    return net


@pytest.mark.parametrize("scales", [(1, 0.01, 1), (1, 1, 0.01), (0.01, 1, 1)])
def test_the_block_that_does_nothing_goes_first(scales):
    net = residual(scales)
    data = rng().normal(0, 1, (40, 6, 6, 2)).astype("float32")
    idle = scales.index(0.01)
    gone = set(layer_names(net)) - set(layer_names(remove_layers(net, count=1, data=data)))
    assert gone == {f"{name}{idle}" for name in ("in", "bn", "relu", "out", "sum", "last")}
    assert not np.allclose(net(data), remove_layers(net, layers=f"sum{(idle + 1) % 3}")(data), atol=1e-2)
    assert np.allclose(net(data), remove_layers(net, count=1, data=data)(data), atol=0.1)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("idle", "gone"), [("down1", "feed1"), ("heads0", "attend0"), ("down0", "feed0")])
def test_the_half_of_a_transformer_block_that_does_nothing_goes_first(idle, gone):
    net = transformer()
    layer = net.get_layer(idle)
    last = layer.output_dense if idle.startswith("heads") else layer
    last.set_weights([1e-5 * w for w in last.get_weights()])
    tokens = rng().integers(0, 9, (40, 6)).astype("int32")
    small = remove_layers(net, count=1, data=tokens)
    assert gone not in layer_names(small) and len(names(small)) == 3
    assert np.allclose(small(tokens), net(tokens), atol=1e-3)
    others = [remove_layers(net, layers=one)(tokens) for one in names(net) if one != gone]
    assert not any(np.allclose(y, net(tokens), atol=1e-3) for y in others)


def test_dense_layers_are_ranked_by_the_change_of_the_output():
    net, x = plain((0.3, 0.2, 0.4)), rng(5).normal(0, 1, (300, 4)).astype("float32")
    kernels = {layer.name: np.asarray(layer.kernel) for layer in net.layers}

    def output(left: str) -> np.ndarray:
        y = x
        for name in left:
            y = y @ kernels[name]
        return y @ kernels["out"]

    def nearest_to_all(count: int) -> list[str]:
        left = "abc"
        for _ in range(count):
            trials = [left.replace(name, "") for name in left]
            left = min(trials, key=lambda trial: np.linalg.norm(output(trial) - output("abc")))
        return [*left, "out"]

    for count in (1, 2, 3):
        assert layer_names(remove_layers(net, count=count, data=(x, np.zeros(300)))) == nearest_to_all(count)
    assert nearest_to_all(1) != ["b", "c", "out"]  # the first layer is not simply the one that goes


@pytest.mark.parametrize("criterion", ["loss", "accuracy", lambda y, found: -np.square(y - found.argmax(-1)).mean()])
def test_layers_are_ranked_on_labelled_data(criterion):
    """The labels are those of the net without its second layer: nothing is better than to take that out."""
    net, x = plain((1, 1, 1)), rng(5).normal(0, 1, (300, 4)).astype("float32")
    y = np.asarray(remove_layers(net, layers="b")(x)).argmax(-1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert layer_names(remove_layers(net, count=1, criterion=criterion, data=(x, y), loss=loss)) == ["a", "c", "out"]
    net.compile(loss=loss)
    assert layer_names(remove_layers(net, count=1, criterion=criterion, data=(x, y))) == ["a", "c", "out"]
    z = np.asarray(remove_layers(net, layers="c")(x)).argmax(-1)
    assert layer_names(remove_layers(net, count=1, criterion=criterion, data=(x, z))) == ["a", "b", "out"]


def test_a_random_choice_follows_its_seed():
    chosen = [tuple(layer_names(remove_layers(plain(), count=1, criterion="random", seed=s))) for s in range(8)]
    again = [tuple(layer_names(remove_layers(plain(), count=1, criterion="random", seed=s))) for s in range(8)]
    assert chosen == again and len(set(chosen)) == 3


def test_of_layers_that_are_alike_the_first_goes():
    net = plain((0, 0, 0))
    assert layer_names(remove_layers(net, count=2, data=np.ones((4, 4)))) == ["c", "out"]


def test_a_mask_stays_with_those_that_still_take_it():
    net = transformer(mask=True)
    tokens = rng().integers(0, 9, (5, 6)).astype("int32")
    small = remove_layers(net, layers=["attend0", "feed1"])
    x = net.get_layer("embed")(tokens)
    seen = (tokens != 0)[:, None, :]
    x = x + net.get_layer("down0")(net.get_layer("up0")(net.get_layer("norm0b")(x)))
    y = net.get_layer("norm1a")(x)
    x = x + net.get_layer("heads1")(y, y, attention_mask=seen)
    expected = net.get_layer("logits")(net.get_layer("mean")(net.get_layer("norm")(x)))
    assert np.allclose(small(tokens), expected, atol=1e-5)
    whole = remove_layers(net, layers=["attend", "feed"])  # nobody takes the mask any more
    assert layer_names(whole) == ["tokens", "embed", "norm", "mean", "logits"]


def test_nested_models_keep_their_form_and_their_names():
    net = build("nested")
    (x,) = samples(net)
    assert names(net) == ["inner"]
    front = net.get_layer("block")(net.get_layer("conv")(x))
    for name, after in (("^inner$", front), ("inner/conv", 2 * front)):
        small = remove_layers(net, layers=name)
        expected = net.get_layer("logits")(net.get_layer("gap")(after))
        assert np.allclose(small(x), expected, atol=1e-5)
        assert layer_names(small.get_layer("block")) == ["conv", "bn", "relu"]
    assert layer_names(small.get_layer("inner")) == ["inner_in", "add"]
    with pytest.raises(KpipeError, match="'inner/add' of 'nested' cannot be taken out: it is all of the model 'inner'"):
        remove_layers(net, layers="inner/add")


def tower() -> keras.Model:
    """Make a nested model that is called twice, with a dense layer in it and one round it called twice."""
    features = keras.Input((4,), name="features")
    y = L.Dense(4, activation="relu", name="first")(features)
    y = L.Dense(4, activation="relu", name="second")(y)
    inner = keras.Model(features, L.Dense(4, name="third")(y), name="tower")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    twice = L.Dense(4, name="twice")
    a = twice(twice(inner(left)))
    both = L.Concatenate(name="both")([a, inner(right)])
    return keras.Model({"left": left, "right": right}, {"y": L.Dense(2, name="y")(both)}, name="siamese")


def test_a_layer_of_a_model_that_is_called_twice_goes_from_both_calls():
    net, (x, z) = tower(), rng().normal(0, 1, (2, 5, 4)).astype("float32")
    small = remove_layers(net, layers="tower/second")
    inner = net.get_layer("tower")
    a, b = (inner.get_layer("third")(inner.get_layer("first")(one)) for one in (x, z))
    a = net.get_layer("twice")(net.get_layer("twice")(a))
    expected = net.get_layer("y")(ops.concatenate([a, b], axis=-1))
    assert np.allclose(small({"left": x, "right": z})["y"], expected, atol=1e-5)
    assert layer_names(small.get_layer("tower")) == ["features", "first", "third"]


def test_one_call_of_a_shared_layer_goes_and_its_weights_stay():
    net, (x, z) = tower(), rng().normal(0, 1, (2, 5, 4)).astype("float32")
    once = [candidate for candidate in bypassable(net) if candidate.name == "twice"]
    assert [(one.params, one.macs) for one in once] == [(0, 16), (0, 16)]
    small = remove_layers(net, count=1, data={"left": x, "right": z}, ignore=["tower", "third"], check=True)
    inner = net.get_layer("tower")
    a, b = net.get_layer("twice")(inner(x)), inner(z)
    assert np.allclose(
        small({"left": x, "right": z})["y"], net.get_layer("y")(ops.concatenate([a, b], axis=-1)), atol=1e-5
    )


@pytest.mark.parametrize("name", ZOO)
def test_the_answers_are_those_of_the_graph_and_of_keras(name):
    net = build(name)
    inputs = samples(net)
    found = answers(net, inputs)
    calls = evaluate(sites(net), inputs, lambda site, *args, **kwargs: site.operation(*args, **kwargs))
    whole = keras.tree.flatten(net(inputs[0] if len(inputs) == 1 else inputs))
    for one, other, third in zip(found, calls, whole, strict=True):
        assert np.array_equal(one, other)
        assert np.allclose(one, third, atol=1e-5)


def test_layers_that_vary_in_training_or_keep_a_state_are_compared_as_in_inference():
    net = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 4, 4, 1)),
            L.RandomFlip(),
            L.Reshape((4, 4)),
            L.GRU(4, return_sequences=True, stateful=True, name="gru"),
            L.Dense(4, name="dense"),
            L.Dropout(0.5),
            L.Flatten(),
            L.Dense(2),
        ]
    )
    state = np.asarray(net.get_layer("gru").states[0]).copy()
    data = rng().normal(0, 1, (4, 4, 4, 1)).astype("float32")
    small = remove_layers(net, layers="dense")
    assert "dense" not in layer_names(small) and "random_flip" in "".join(layer_names(small))
    assert np.array_equal(net.get_layer("gru").states[0], state)
    assert np.array_equal(answers(net, [data[:2]])[0], answers(net, [data[:2]])[0])


def test_implicit_masks_are_handed_on():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = L.Embedding(9, 8, mask_zero=True, name="embed")(tokens)
    for n in range(2):
        y = L.LayerNormalization(name=f"norm{n}")(x)
        x = L.Add(name=f"attend{n}")([x, L.MultiHeadAttention(2, 4, name=f"heads{n}")(y, y)])
    net = keras.Model(tokens, L.Dense(3, name="logits")(L.GlobalAveragePooling1D(name="mean")(x)))
    data = rng().integers(0, 9, (40, 6)).astype("int32")
    small = remove_layers(net, layers="attend0")
    x = net.get_layer("embed")(data)
    y = net.get_layer("norm1")(x)
    x = x + net.get_layer("heads1")(y, y)
    expected = net.get_layer("logits")(net.get_layer("mean")(x, mask=data != 0))
    assert np.allclose(small(data), expected, atol=1e-5)
    assert not np.allclose(small(data), net.get_layer("logits")(np.asarray(x).mean(1)), atol=1e-3)


@pytest.mark.parametrize("name", ["residual", "grouped", "se_block", "nested"])
def test_what_remains_is_saved_trained_and_keeps_what_is_frozen(name, tmp_path):
    net = build(name)
    net.layers[1].trainable = False
    small = remove_layers(net, count=1, data=samples(net)[0])
    assert small.count_params() < net.count_params()
    assert not small.layers[1].trainable and small.layers[2].trainable
    small.save(tmp_path / "small.keras")
    (x,) = samples(net)
    assert np.array_equal(keras.saving.load_model(tmp_path / "small.keras")(x), small(x))
    small.compile("sgd", "mse")
    assert np.isfinite(small.train_on_batch(x, np.zeros((8, *small.output_shape[1:]))))


@pytest.mark.parametrize("maker", [residual, transformer, plain])
def test_the_check_finds_a_weight_that_is_off(maker):
    net = build_random(maker())
    stretch = next(one for one in stretches(net, lambda path: False) if one.name in ("sum1", "feed1", "b"))
    small = shorten(net, stretch)
    assert check_shortening(net, small, stretch) < 1e-5
    kernel = small.layers[-1].kernel
    kernel.assign(kernel + 0.01)
    with pytest.raises(SurgeryError, match=r"differs by .* None is returned"):
        check_shortening(net, small, stretch)


def test_the_change_is_relative_and_the_mean_over_outputs():
    before = [[np.array([[3.0, 4.0]]), np.array([2.0])], [np.array([[0.0, 0.0]]), np.array([0.0])]]
    after = [[np.array([[3.0, 4.0]]), np.array([1.0])], [np.array([[3.0, 0.0]]), np.array([0.0])]]
    assert relative_change(before, after) == pytest.approx((3 / 5 + 1 / 2) / 2)


def test_layers_that_stay():
    data = rng().normal(0, 1, (40, 6, 6, 2)).astype("float32")
    net = residual((0.01, 0.5, 1))
    assert "sum0" in layer_names(remove_layers(net, count=1, data=data, ignore="in0"))
    kept = remove_layers(net, count=1, data=data, ignore=[lambda layer: layer.name == "out0", "sum2"])
    assert set(layer_names(net)) - set(layer_names(kept)) >= {"sum1", "out1"}
    with pytest.raises(KpipeError, match="'sum0' of 'residual' cannot be taken out: ignore says"):
        remove_layers(net, layers="sum0", ignore="in0")
    with pytest.raises(KpipeError, match=r"only 1 can be taken out of .* one after another\. sum0, sum2: ignored"):
        remove_layers(net, count=2, data=data, ignore=["out0", "sum2"])


def test_layers_that_compute_nothing_go_only_by_name():
    net = transformer()
    assert "drop0" not in names(net)
    assert "drop0" not in layer_names(remove_layers(net, layers="drop0"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "either count or layers"),
        ({"count": 1, "layers": "a"}, "either count or layers"),
        ({"count": -1}, "count is -1"),
        ({"count": 1, "criterion": "lose", "data": np.ones((2, 4))}, "Did you mean 'loss'"),
        ({"count": 1}, "needs data. Received: data=None"),
        ({"count": 1, "data": np.zeros((0, 4))}, "no batch at all"),
        ({"count": 1, "data": iter([np.ones((2, 4))])}, "gone through once"),
        ({"count": 1, "criterion": "loss", "data": np.ones((2, 4)), "loss": "mse"}, "needs labels"),
        ({"count": 1, "criterion": "loss", "data": (np.ones((2, 4)), np.ones(2))}, "not compiled"),
        ({"count": 1, "data": np.ones((2, 5))}, r"samples of shape \(5,\); expected \(4,\)"),
        ({"count": 4, "data": np.ones((2, 4))}, "count=4, but only 3 can be taken out"),
        ({"layers": "zzz"}, "matches no layer. What can be taken out: a, b, c"),
        ({"layers": "("}, "no regular expression"),
        ({"layers": 5}, "layers is 5; expected a regular expression"),
        ({"count": 1, "data": np.ones((2, 4)), "ignore": "zzz"}, "ignore='zzz' matches no layer"),
        ({"layers": []}, r"layers=\[\] names none"),
        ({"layers": "a", "criterion": "loss", "loss": "mse"}, "not ranked, and criterion, loss would do nothing"),
        ({"layers": "a", "data": np.ones((2, 4))}, "not ranked, and data would do nothing"),
        ({"count": 1.0}, "count is 1.0"),
        ({"count": 1, "criterion": "random", "seed": -1}, "seed is -1"),
        (
            {"count": 1, "criterion": "loss", "data": (np.ones((2, 4)), np.ones(2))},
            r"^remove_layers\(criterion='loss'\) needs a loss",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, text):
    with pytest.raises(KpipeError, match=text):
        remove_layers(plain(), **arguments)


def test_counts_of_numpy_are_counts():
    data = np.ones((4, 4))
    twins = [remove_layers(plain(), count=count, data=data) for count in (2, np.int64(2))]
    assert layer_names(twins[0]) == layer_names(twins[1]) and len(layer_names(twins[1])) == 2


def test_what_cannot_be_taken_out_is_named_with_the_reason():
    with pytest.raises(KpipeError, match=r"'in1', which cannot be taken out alone: .* it lies in out1, sum1"):
        remove_layers(residual(), layers="in1")
    net = keras.Sequential([keras.Input((4,)), L.Dense(3, name="a"), L.Dense(2, name="b")])
    with pytest.raises(KpipeError, match=r"Nothing of .* can be taken out"):
        remove_layers(net, count=1, data=np.ones((2, 4)))
    with pytest.raises(SurgeryError, match="quantized already"):
        remove_layers(quantize(plain(), calibration=np.ones((4, 4), "float32")), layers="a")


def test_to_take_out_nothing_is_a_copy_with_a_warning():
    net = plain()
    with pytest.warns(NoEffectWarning, match="takes nothing out"):
        twin = remove_layers(net, count=0)
    assert twin is not net and all((a == b).all() for a, b in zip(net.get_weights(), twin.get_weights(), strict=True))
