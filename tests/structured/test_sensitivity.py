"""Sensitivity scans, against channels zeroed by hand and against models that were really cut."""

import importlib
import json
import re

import keras
import numpy as np
import pytest
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


def scores_of(kept: list):
    """Make a metric that notes each call."""

    def agreement(labels: np.ndarray, outputs: np.ndarray) -> float:
        kept.append(1)
        return float((outputs.argmax(-1) == labels).mean())

    return agreement


def test_a_scan_goes_on_where_it_was_broken_off(tmp_path):
    net, calls, path = two_layers(), [], tmp_path / "scan.json"
    data = points(net)
    metric = scores_of(calls)
    whole = sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=metric)
    assert len(calls) == 1 + 2 * 3

    def breaking(labels: np.ndarray, outputs: np.ndarray) -> float:
        if len(calls) == 4:
            raise KeyboardInterrupt
        return metric(labels, outputs)

    breaking.__name__ = metric.__name__
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=breaking, path=path)
    assert sum(map(len, json.loads(path.read_text())["values"].values())) == 4
    calls.clear()
    assert sensitivity(net, data, ratios=(0.2, 0.5, 0.8), metric=metric, path=path) == whole
    assert len(calls) == 3
    calls.clear()
    assert sensitivity(net, data, ratios=(0.2, 0.5), groups="two", metric=metric, path=path).groups[0].name == "two"
    assert not calls
    sensitivity(net, data, ratios=(0.2, 0.9), metric=metric, path=path)
    assert len(calls) == 1  # 0.9 of 6 units leaves one, as 0.8 does; 0.9 of 8 is new
    assert [file.name for file in tmp_path.iterdir()] == ["scan.json"]


def test_ratios_that_remove_nothing_are_the_whole_model():
    calls = []
    net = two_layers()
    found = sensitivity(net, points(net), ratios=(0.0, 0.05), metric=scores_of(calls))
    assert len(calls) == 1 and found.groups[0].removed == (0, 0)
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
        ({"loss": keras.losses.SparseCategoricalCrossentropy()}, "loss '"),
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


def test_two_groups_of_one_layer_get_the_smaller_ratio():
    one = GroupSensitivity("heads", ("mha",), 4, (0.5,), (2,), (0.9,))
    two = GroupSensitivity("mha#2", ("mha",), 8, (0.5,), (4,), (0.1,))
    assert Sensitivity("accuracy", True, 0.9, "l1", (one, two)).ratios() == {"^mha$": 0.0}


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
