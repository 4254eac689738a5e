"""What every stage, optimizer and loss promises. A new one without a case here fails."""

import re

import keras
import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.layers import located
from kpipe.pipeline import STAGES, Baseline, Context, FloatModel, QuantizedModel
from kpipe.pipeline.task import LOSSES, loss_for
from kpipe.quantize import is_quantized
from kpipe.stages import (
    ClusterWeights,
    Distill,
    Export,
    FindTicket,
    PruneFilters,
    PruneHeads,
    PruneWeights,
    Quantize,
    RemoveLayers,
    Train,
)
from kpipe.stages.fields import OPTIMIZERS, Optimizer
from kpipe.stages.training import make_optimizer


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(2, name="logits"),
        ],
        name="net",
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (rng.normal(size=(120, 6)) + 2 * y[:, None]).astype("float32")
    return Dataset("points", (x[:64], y[:64]), (x[64:80], y[64:80]), (x[80:], y[80:]), x[:32], 2)


@pytest.fixture
def context(data, tmp_path):
    net().save(tmp_path / "baseline.keras")
    baseline = Baseline({"metrics": {"accuracy": 0.5}}, tmp_path / "baseline.keras")
    return Context("net", data, 0, tmp_path, tmp_path, baseline=baseline)


def attending():
    """A net with four heads."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    steps = keras.layers.Reshape((3, 2), name="steps")(x)
    attended = keras.layers.MultiHeadAttention(4, 2, name="attention")(steps, steps)
    flat = keras.layers.Flatten(name="flat")(attended)
    return keras.Model(x, keras.layers.Dense(2, name="logits")(flat), name="attending")


def deep():
    """A net with a layer that can be left out."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, activation="relu", name=name) for name in ("first", "second")]
    return keras.Sequential([keras.Input((6,), name="x"), *layers, keras.layers.Dense(2, name="logits")], name="deep")


def moved(before, after, context):
    """The weights are others, the net is the same one."""
    assert [w.shape for w in before.weights] == [w.shape for w in after.model.weights]
    assert not np.array_equal(before.get_layer("hidden").kernel, after.model.get_layer("hidden").kernel)
    assert len(context.record.history["loss"]) == 1


def narrower(before, after, context):
    assert after.model.get_layer("hidden").units == before.get_layer("hidden").units // 2
    assert after.model.get_layer("logits").units == before.get_layer("logits").units


def half_the_heads(before, after, context):
    assert after.model.get_layer("attention").num_heads == before.get_layer("attention").num_heads // 2
    assert context.record.details["plan"]["groups"][0]["name"] == "attention:heads"


def one_layer_less(before, after, context):
    assert len(after.model.layers) == len(before.layers) - 1
    assert len(context.record.details["removed layers"]) == 1


def half_zero(before, after, context):
    for name in ("hidden", "logits"):
        kernel = np.asarray(after.model.get_layer(name).kernel)
        assert np.count_nonzero(kernel) == kernel.size - round(kernel.size / 2)


def few_values(before, after, context):
    """Each kernel has four values, and they were trained."""
    moved(before, after, context)
    for name, row in zip(("hidden", "logits"), context.record.details["clusters"], strict=True):
        assert len(np.unique(after.model.get_layer(name).kernel)) == row["clusters"] == 4


def a_trained_ticket(before, after, context):
    """Of each kernel 0.8 x 0.8 is left, trained, and the record tells of both rounds."""
    for name in ("hidden", "logits"):
        kernel = np.asarray(after.model.get_layer(name).kernel)
        assert np.count_nonzero(kernel) == kernel.size - round(0.36 * kernel.size)
    assert [one["round"] for one in context.record.details["rounds"]] == [1, 2]
    assert len(context.record.history["loss"]) == 3


def whole_numbers(before, after, context):
    assert isinstance(after, QuantizedModel)
    assert is_quantized(after.model)


def written(before, after, context):
    assert [file["path"] for file in context.record.files] == ["net.tflite"]
    assert (context.folder / "net.tflite").stat().st_size == context.record.files[0]["bytes"]


CASES = {
    "cluster_weights": (ClusterWeights(clusters=4, epochs=1), few_values),
    "distill": (Distill(epochs=1), moved),
    "export": (Export(), written),
    "find_ticket": (FindTicket(rounds=2, epochs=1), a_trained_ticket),
    "prune_filters": (PruneFilters(ratio=0.5, epochs=0), narrower),
    "prune_heads": (PruneHeads(ratio=0.5, epochs=0), half_the_heads),
    "prune_weights": (PruneWeights(sparsity=0.5, epochs=0), half_zero),
    "quantize": (Quantize(), whole_numbers),
    "remove_layers": (RemoveLayers(count=1, epochs=0), one_layer_less),
    "train": (Train(epochs=1), moved),
}
NETS = {"prune_heads": attending, "remove_layers": deep}


def test_every_stage_has_a_case():
    assert set(CASES) == set(STAGES)


def paths(model):
    """Name the layers; parts that Keras makes without a name are numbered on and on, and have no weights."""
    return [re.sub(r"/(softmax|dropout)_\d+$", r"/\1", path) for path in located(model)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_keeps_its_promise(name, context):
    stage, promise = CASES[name]
    assert type(stage) is STAGES[name]
    assert stage.stage == name
    make = NETS.get(name, net)
    after = stage.run(FloatModel(make()), context)
    promise(make(), after, context)
    assert stage.misfits(make()) == []
    same = paths(after.model) == paths(make())
    assert same or not stage.keeps_layers()
    if name in ("remove_layers", "quantize"):  # the control: the comparison sees that layers are others
        assert not same


@pytest.mark.parametrize("name", STAGES)
def test_a_promise_is_not_kept_by_doing_nothing(name, context):
    """The control of the test above."""
    _, promise = CASES[name]
    with pytest.raises((AssertionError, KeyError)):
        make = NETS.get(name, net)
        promise(make(), FloatModel(make()), context)


STEPS = {
    "adam": -0.5,
    "adamw": -0.5,
    "nadam": None,  # its first step has a momentum of its own schedule
    "rmsprop": -0.5 / np.sqrt(0.1),
    "adagrad": -0.5 * 2 / np.sqrt(0.1 + 4),
    "sgd": -0.5 * 2,
    "lion": -0.5,
}
"""The first step from 0 at a gradient of 2 and a rate of 0.5, by each method's formula."""


def test_every_optimizer_has_a_case():
    assert set(STEPS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_as_its_formula_says(name):
    made = make_optimizer(Optimizer(name=name, learning_rate=0.5, decay="none"), steps=1)
    assert type(made).__name__.lower() == name
    weight = keras.Variable([0.0])
    made.apply([keras.ops.convert_to_tensor([2.0])], [weight])
    step = float(weight.numpy()[0])
    assert step < 0
    if STEPS[name] is not None:
        assert step == pytest.approx(STEPS[name], rel=1e-4)


LOGITS = np.array([[1.0, -0.5], [0.25, 2.0]])
ONE_HOT = np.array([[1.0, 0.0], [1.0, 0.0]])


def cross_entropy(logits, truth):
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - (logits * truth).sum(axis=1)))


def logistic(logits, truth):
    return float(np.mean(np.log1p(np.exp(logits)) - truth * logits))


def huber(values, truth):
    away = np.abs(values - truth)
    return float(np.mean(np.where(away <= 1, away**2 / 2, away - 0.5)))


VALUES = {
    "sparse_categorical_crossentropy": (np.array([0, 0]), cross_entropy(LOGITS, ONE_HOT)),
    "categorical_crossentropy": (ONE_HOT, cross_entropy(LOGITS, ONE_HOT)),
    "binary_crossentropy": (ONE_HOT, logistic(LOGITS, ONE_HOT)),
    "mean_squared_error": (ONE_HOT, float(np.mean((LOGITS - ONE_HOT) ** 2))),
    "mean_absolute_error": (ONE_HOT, float(np.mean(np.abs(LOGITS - ONE_HOT)))),
    "huber": (ONE_HOT, huber(LOGITS, ONE_HOT)),
}
"""The labels, and the loss of LOGITS by its formula."""


def test_every_loss_has_a_case():
    assert set(VALUES) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_on_logits(name):
    labels, expected = VALUES[name]
    assert float(loss_for(net(), labels, name)(labels, LOGITS)) == pytest.approx(expected, rel=1e-5)
