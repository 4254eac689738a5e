"""Sensitivity scans, against channels zeroed by hand and against models that were really cut."""

import importlib
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.quantize import quantize
from kpipe.structured import FilterPlan, GroupPlan, plan_filters, prune_filters
from kpipe.structured.scan import GroupSensitivity, Sensitivity
from kpipe.structured.sensitivity import sensitivity
from tests.models import build

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def points(net: keras.Model, count: int = 300, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs, and the classes that the whole model puts them into, one in five changed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, *net.input_shape[1:])).astype("float32")
    y = np.asarray(net(x)).argmax(-1)
    return x, np.where(rng.random(count) < 0.2, 0, y)


def two_layers(seed: int = 1) -> keras.Model:
    """Make 5 features -> 8 units -> 6 units -> 3 classes; the biases let a zeroed unit still speak."""
    keras.utils.set_random_seed(seed)
    hidden = [L.Dense(8, "relu", name="one", bias_initializer="ones"), L.Dense(6, "tanh", name="two")]
    return keras.Sequential([keras.Input((5,)), *hidden, L.Dense(3, name="out")], name="net")


def test_the_figures_are_those_of_rows_zeroed_by_hand():
    net = two_layers()
    x, y = points(net)
    (a, b), (c, d), (e, f) = (layer.get_weights() for layer in net.layers)
    order = {  # l1 of all that a unit has, low first
        "one": np.argsort(np.abs(a).sum(0) + np.abs(b) + np.abs(c).sum(1)),
        "two": np.argsort(np.abs(c).sum(0) + np.abs(d) + np.abs(e).sum(1)),
    }

    def accuracy(gone: dict[str, np.ndarray]) -> float:
        second, last = c.copy(), e.copy()
        second[gone.get("one", [])] = 0
        last[gone.get("two", [])] = 0
        return float(((np.tanh(np.maximum(x @ a + b, 0) @ second + d) @ last + f).argmax(-1) == y).mean())

    found = sensitivity(net, (x, y), ratios=(0.9, 0.25, 0.5))
    assert (found.metric, found.baseline, found.higher_is_better) == ("accuracy", accuracy({}), True)
    assert [(g.name, g.channels, g.ratios, g.removed) for g in found.groups] == [
        ("one", 8, (0.25, 0.5, 0.9), (2, 4, 7)),
        ("two", 6, (0.25, 0.5, 0.9), (2, 3, 5)),
    ]
    for group in found.groups:
        assert group.values == tuple(accuracy({group.name: order[group.name][:n]}) for n in group.removed)
    assert len({value for group in found.groups for value in group.values}) > 3
    dropped = found.groups[0].values[0]
    producer = a.copy(), b.copy()
    producer[0][:, order["one"][:2]] = 0  # the bias still speaks: another figure
    wrong = (np.tanh(np.maximum(x @ producer[0] + b, 0) @ c + d) @ e + f).argmax(-1) == y
    assert dropped != wrong.mean()


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["conv_bn", "residual", "concat", "depthwise", "se_block", "nested"])
def test_the_figures_are_those_of_models_that_were_really_cut(name):
    net = build(name)
    data = points(net, 20)
    found = sensitivity(net, data, ratios=(0.3, 0.7), metric="loss", loss=LOSS)
    whole = plan_filters(net, ratio=0.3)
    assert [group.name for group in found.groups] == [group.name for group in whole.groups]
    for place, group in enumerate(found.groups):
        alone = GroupPlan(group.name, group.layers, group.channels, whole.groups[place].removed)
        small = prune_filters(net, FilterPlan((alone,)))
        assert group.values[0] == pytest.approx(float(LOSS(data[1], small(data[0]))), rel=1e-4)
        assert group.removed[0] == len(alone.removed)
    assert any(abs(group.values[0] - found.baseline) > 1e-3 for group in found.groups)


CALLS = {"made": 0, "at most": 99}


def agreement(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Give the accuracy, as a metric of one's own that counts its calls and may break off."""
    if CALLS["made"] == CALLS["at most"]:
        raise KeyboardInterrupt
    CALLS["made"] += 1
    return float((outputs.argmax(-1) == labels).mean())


def test_a_scan_goes_on_where_it_was_broken_off(tmp_path):
    net, path = two_layers(), tmp_path / "scan.json"
    data = points(net)
    CALLS.update({"made": 0, "at most": 99})
    whole = sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=agreement)
    assert CALLS["made"] == 1 + 2 * 3

    CALLS.update({"made": 0, "at most": 4})
    with pytest.raises(KeyboardInterrupt):
        sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=agreement, path=path)
    assert sum(map(len, json.loads(path.read_text())["values"].values())) == 4
    CALLS.update({"made": 0, "at most": 99})
    assert sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=agreement, path=path) == whole
    assert CALLS["made"] == 3
    CALLS["made"] = 0
    assert sensitivity(net, data, ratios=(0.2, 0.5), groups="two", metric=agreement, path=path).groups[0].name == "two"
    assert not CALLS["made"]
    sensitivity(net, data, ratios=(0.2, 0.9), metric=agreement, path=path)
    assert CALLS["made"] == 1  # 0.9 of 6 units leaves one, as 0.8 does; 0.9 of 8 is new
    assert [file.name for file in tmp_path.iterdir()] == ["scan.json"]


def test_ratios_that_remove_nothing_are_the_whole_model():
    net = two_layers()
    CALLS.update({"made": 0, "at most": 99})
    found = sensitivity(net, points(net), ratios=(0.0, 0.05), metric=agreement)
    assert CALLS["made"] == 1 and found.groups[0].removed == (0, 0)
    assert found.groups[0].values == (found.baseline, found.baseline)


def test_the_file_of_another_scan_is_refused(tmp_path):
    net, path = two_layers(), tmp_path / "scan.json"
    data = points(net)
    net.compile(loss=LOSS)
    sensitivity(net, data, ratios=(0.5,), metric="loss", path=path)
    before = path.read_text()
    x, y = data
    asked = [
        ({"data": (x + 1, y)}, "data '"),
        ({"data": (x, y[::-1])}, "data '"),
        ({"model": two_layers(2)}, "model '"),
        ({"metric": "accuracy"}, "metric 'loss' and not 'accuracy'"),
        ({"criterion": "l2"}, "criterion 'l1' and not 'l2'"),
        ({"seed": 1}, "seed '0' and not '1'"),
        ({"loss": keras.losses.SparseCategoricalCrossentropy()}, 'loss "keras.*from_logits'),
    ]
    for change, text in asked:
        arguments = {"model": net, "data": data, "ratios": (0.5,), "metric": "loss", "loss": LOSS, "path": path}
        with pytest.raises(KpipeError, match=f"is of another scan: .*{text}"):
            sensitivity(**(arguments | change))
    assert path.read_text() == before
    path.write_text("[1, 2")
    with pytest.raises(KpipeError, match="holds no scan that sensitivity wrote"):
        sensitivity(net, data, metric="loss", path=path)


def test_an_activation_makes_another_model(tmp_path):
    net = two_layers()
    data = points(net)
    sensitivity(net, data, ratios=(0.5,), path=tmp_path / "scan.json")
    net.layers[0].activation = keras.activations.gelu
    with pytest.raises(KpipeError, match="it has model '"):
        sensitivity(net, data, ratios=(0.5,), path=tmp_path / "scan.json")


def example(values: dict[str, tuple[float, ...]], metric: str = "accuracy") -> Sensitivity:
    groups = [GroupSensitivity(name, (name,), 10, (0.1, 0.5, 0.9), (1, 5, 9), found) for name, found in values.items()]
    return Sensitivity(metric, metric != "loss", 0.9, "l1", tuple(groups), {"out": "it makes an output"})


def test_ratios_are_the_largest_up_to_which_no_more_is_lost():
    found = example({"a.c": (0.90, 0.895, 0.3), "abc": (0.85, 0.90, 0.90), "d": (0.95, 0.90, 0.89)})
    ratios = found.ratios(max_drop=0.011)
    assert list(ratios.values()) == [0.5, 0.0, 0.9]
    assert [[name for name in ("a.c", "abc", "d", "d/a.c") if re.search(key, name)] for key in ratios] == [
        ["a.c"],
        ["abc"],
        ["d"],
    ]
    assert list(example({"a": (0.91, 0.99, 0.2)}, "loss").ratios(0.05).values()) == [0.1]
    assert list(example({"a": (float("nan"), 0.9, 0.9)}).ratios(1.0).values()) == [0.0]


def test_each_group_of_a_layer_gets_its_own_ratio():
    whole = GroupSensitivity("mha", ("mha",), 8, (0.5,), (4,), (0.1,))
    heads = GroupSensitivity("mha:heads", ("mha",), 4, (0.5,), (2,), (0.9,))
    found = Sensitivity("accuracy", True, 0.9, "l1", (whole, heads)).ratios()
    assert list(found.items()) == [("^mha:heads$", 0.5), ("^mha$", 0.0)]  # the second finds both by their layer


def test_the_table():
    lines = str(example({"first": (0.9, 0.8, 0.7), "b": (0.85, 0.4, 0.1)})).splitlines()
    assert lines == [
        "accuracy of the whole model: 90.0%; channels chosen by l1",
        "channels of  channels   -0.1   -0.5   -0.9",
        "first              10  90.0%  80.0%  70.0%",
        "b                  10  85.0%  40.0%  10.0%",
        "out: stays, it makes an output",
    ]
    assert "0.1234" in str(example({"a": (0.12341, 1.0, 2.0)}, "loss"))


@pytest.mark.parametrize("count", [2, 14])
def test_the_drawing(tmp_path, count):
    found = example({f"layer{n}": (0.9, 0.8, 0.7) for n in range(count)})
    found.plot(tmp_path / "scan.svg")
    text = (tmp_path / "scan.svg").read_text()
    assert "<svg" in text
    found.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(KpipeError, match="Cannot draw"):
        found.plot(tmp_path / "scan.xyz")
    with pytest.raises(KpipeError, match="no group to draw"):
        example({}).plot(tmp_path / "none.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.png", "scan.svg"]


def test_criteria_that_need_gradients_see_the_same_data():
    net = two_layers()
    data = points(net)
    found = sensitivity(net, data, ratios=(0.5,), criterion="taylor", loss=LOSS, groups=["^one$"])
    plan = plan_filters(net, ratio=0.5, criterion="taylor", data=data, loss=LOSS, ignore="two")
    small = prune_filters(net, plan)
    assert found.criterion == "taylor"
    assert found.groups[0].values[0] == float((np.asarray(small(data[0])).argmax(-1) == data[1]).mean())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"ratios": ()}, "ratios is"),
        ({"ratios": (0.5, 1.0)}, "ratios is"),
        ({"ratios": 0.5}, "ratios is 0.5"),
        ({"groups": "zzz"}, "groups='zzz' matches no layer whose channels can be cut: one, two"),
        ({"groups": "("}, "no regular expression"),
        ({"groups": []}, r"groups=\[\] names none"),
        ({"parts": ("chanels",)}, "parts=\\('chanels',\\) holds 'chanels'. Parts that may go here: channels"),
        ({"parts": ()}, "parts as names"),
        ({"metric": "loss"}, r"^sensitivity\(metric='loss'\) needs a loss"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"metric": "loss"}, "not compiled"),
        ({"data": None}, "needs data. Received: data=None"),
        ({"data": np.zeros((3, 5), "float32")}, "needs labels"),
        ({"data": iter([])}, "gone through once"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, text):
    net = two_layers()
    with pytest.raises(KpipeError, match=text):
        sensitivity(net, **({"data": points(net, 8)} | arguments))


def test_models_of_which_nothing_can_be_cut():
    net = keras.Sequential([keras.Input((5,)), L.Dense(3, name="out")])
    with pytest.warns(NoEffectWarning, match="No channel of .* can be cut. .*out: "):
        found = sensitivity(net, points(net))
    assert found.groups == () and "out: stays" in str(found)
    with pytest.raises(SurgeryError, match="quantized already"):
        sensitivity(quantize(net, calibration=np.ones((4, 5), "float32")), points(net))


def test_figures_of_a_model_that_cannot_be_masked_are_refused(monkeypatch):
    """Wherever the masked model is not the model, as one that loses a mask on the way, no figure is told."""
    net = two_layers()
    module = importlib.import_module("kpipe.structured.sensitivity")
    monkeypatch.setattr(module, "masked_answer", lambda traced, keep, inputs: [np.asarray(net(inputs[0])) + 0.01])
    with pytest.raises(SurgeryError, match=r"no channel cut, .* answer otherwise than the model, by 0\.0"):
        sensitivity(net, points(net))


def test_the_model_stays_as_it_is():
    net = two_layers()
    net.compile("sgd", LOSS, metrics=["accuracy"])
    data = points(net)
    before = [np.asarray(v).copy() for v in net.variables]
    logs = net.evaluate(*data, verbose=0)
    sensitivity(net, data, ratios=(0.5,), metric="loss")
    assert all(np.array_equal(v, b) for v, b in zip(net.variables, before, strict=True))
    assert net.evaluate(*data, verbose=0) == logs


def small_first(evidence):
    return np.abs(evidence.weight) if evidence.role == "kernel" else None


def judges(sign: float):
    """Make criteria of one name and one code that differ in what they close over."""
    return lambda evidence: sign * np.abs(evidence.weight) if evidence.role == "kernel" else None


FUNCTIONS = {
    "code": (
        {"metric": lambda labels, outputs: -float(np.abs(outputs).sum())},
        {"metric": lambda labels, outputs: -float((outputs**2).sum())},
    ),
    "constants": (
        {"metric": lambda labels, outputs: float((outputs > 0.25).mean())},
        {"metric": lambda labels, outputs: float((outputs > 0.75).mean())},
    ),
    "closure": ({"criterion": judges(1.0)}, {"criterion": judges(-1.0)}),
    "loss": (
        {"metric": "loss", "loss": lambda labels, outputs: outputs[:, 0] ** 2},
        {"metric": "loss", "loss": lambda labels, outputs: outputs[:, 1] ** 2},
    ),
}


@pytest.mark.parametrize("asked", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_scan_by_another_function_of_the_same_name_is_another_scan(tmp_path, asked):
    net, path = two_layers(), tmp_path / "scan.json"
    data, (one, other) = points(net, 40), asked
    first, alone = (sensitivity(net, data, ratios=(0.5,), groups="one", **how) for how in asked)
    assert first.groups[0].values != alone.groups[0].values
    assert sensitivity(net, data, ratios=(0.5,), groups="one", path=path, **one) == first
    with pytest.raises(KpipeError, match="is of another scan"):
        sensitivity(net, data, ratios=(0.5,), groups="one", path=path, **other)
    assert sensitivity(net, data, ratios=(0.5,), groups="one", path=path, **one) == first


def test_a_scan_by_a_named_function_says_its_name():
    net = two_layers()
    assert sensitivity(net, points(net), ratios=(0.5,), criterion=small_first).criterion == "small_first"


def normed() -> keras.Model:
    """Make a net of which batch norm follows the first layer alone."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    y = L.BatchNormalization(name="norm", gamma_initializer="random_normal")(L.Dense(8, name="a")(x))
    return keras.Model(x, L.Dense(2, name="out")(L.Dense(6, name="b")(y)))


def test_groups_that_the_criterion_does_not_judge_are_named_and_others_are_scanned():
    net = normed()
    gamma = np.abs(np.asarray(net.get_layer("norm").gamma))
    data = points(net, 40)
    for groups in (None, "^a$", ["a", "b"]):
        found = sensitivity(net, data, ratios=(0.5,), criterion="bn_scale", groups=groups)
        assert [(group.name, group.removed) for group in found.groups] == [("a", (4,))]
    assert found.frozen["b"] == "the criterion 'bn_scale' judges none of its weights"
    kernel = net.get_layer("b").kernel
    zeroed = np.asarray(kernel).copy()
    zeroed[np.argsort(gamma)[:4]] = 0
    kernel.assign(zeroed)
    assert found.groups[0].values[0] == float((np.asarray(net(data[0])).argmax(-1) == data[1]).mean())
    with pytest.raises(
        KpipeError, match=r"criterion 'bn_scale' judges no weight of any group .* asked about .*: b\. Choo"
    ):
        sensitivity(net, data, ratios=(0.5,), criterion="bn_scale", groups="^b$")


def attending() -> keras.Model:
    """Make a net of four heads, of which the first two say nothing."""
    keras.utils.set_random_seed(0)
    x, attend = keras.Input((5, 6)), L.MultiHeadAttention(4, 3, name="attend")
    y = L.Add()([x, attend(x, x)])
    kernel = attend._output_dense.kernel  # (heads, size, features)
    kernel.assign(np.asarray(kernel) * np.array([0, 0, 10, 10])[:, None, None])
    return keras.Model(x, L.Dense(2, name="out")(L.GlobalAveragePooling1D()(y)))


def test_only_the_parts_that_are_asked_for_are_scanned_and_decide():
    net = attending()
    data = points(net, 40)
    parts = {"a": ("heads",), "b": None, "c": ("channels", "heads"), "d": ("heads", "key_dim")}
    found = {name: sensitivity(net, data, ratios=(0.5,), parts=one) for name, one in parts.items()}
    names = {name: [group.name for group in one.groups] for name, one in found.items()}
    every = ["attend:heads", "attend:key_dim", "attend:value_dim"]
    assert names == {"a": every[:1], "b": every, "c": every[:1], "d": every[:2]}
    assert found["c"] == sensitivity(net, data, ratios=(0.5,))  # what plan_filters takes when nothing is said
    assert found["a"].frozen["attend:key_dim"] == "parts=('heads',) leaves 'key_dim' out"
    drops = [found["b"].drops(group)[0] for group in found["b"].groups]
    assert drops[0] == 0 < max(drops[1:])  # another part would forbid the cut
    assert list(found["b"].ratios(0.0)) == [f"^{name}$" for name in every]
    assert found["c"].ratios(0.0) == {"^attend:heads$": 0.5}
    bearable = {"^attend:heads$": 0.5, "^attend:key_dim$": 0.0, "^attend:value_dim$": 0.34}
    plan = plan_filters(net, ratio=bearable, parts=None)
    assert {group.name: len(group.removed) for group in plan.groups} == {every[0]: 2, every[1]: 0, every[2]: 1}


def test_a_stateful_model_keeps_its_states():
    x = keras.Input(batch_shape=(4, 5, 3))
    y = L.LSTM(6, stateful=True, name="lstm")(x)
    net = keras.Model(x, L.Lambda(keras.activations.hard_sigmoid)(L.Dense(1)(y)))  # it has to be asked what it gives
    rng = np.random.default_rng(0)
    net(rng.normal(size=(4, 5, 3)))
    before = [np.asarray(state).copy() for state in net.get_layer("lstm").states]
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(8, 5, 3)), np.arange(8) % 2)).batch(4)
    sensitivity(net, data, ratios=(0.5,))
    assert all(np.array_equal(a, b) for a, b in zip(net.get_layer("lstm").states, before, strict=True))
    assert all(np.abs(state).max() > 0 for state in before)
