"""The stage that clusters: what it leaves, what it notes, and what later stages keep."""

import json

import keras
import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.errors import NoEffectWarning, RecipeError
from kpipe.pipeline import Baseline, Context, FloatModel
from kpipe.recipe import parse_recipe
from kpipe.stages import ClusterWeights, Distill, PruneFilters, PruneWeights, Quantize, Train
from kpipe.stages.fields import Optimizer, Teaching

FAST = {"batch_size": 16, "optimizer": Optimizer(learning_rate=0.01)}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = (rng.normal(size=(160, 6, 6, 1)) + 2 * y[:, None, None, None]).astype("float32")
    return Dataset("points", (x, y), (x[:32], y[:32]), (x[:32], y[:32]), x[:32], 2)


def net():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(8, 3, name="conv"),
        keras.layers.BatchNormalization(momentum=0.5, name="norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(8, activation="relu", name="hidden"),
        keras.layers.Dense(2, name="logits"),
    ]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers], name="net")


@pytest.fixture
def context(data, tmp_path):
    net().save(tmp_path / "baseline.keras")
    baseline = Baseline({"metrics": {"accuracy": 0.5}}, tmp_path / "baseline.keras")

    def make(**options):
        return Context("net", data, 0, tmp_path, tmp_path, baseline=baseline, **options)

    return make


def kernels(model):
    return [variable.numpy() for variable in model.trainable_variables if variable.name == "kernel"]


def most(model):
    return max(len(np.unique(kernel)) for kernel in kernels(model))


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("epochs", "teaching"), [(0, None), (2, None), (2, Teaching())])
def test_kernels_have_few_values_and_the_record_says_how_few_bits(context, epochs, teaching):
    given, now = net(), context()
    before = kernels(given)
    stage = ClusterWeights(clusters=5, epochs=epochs, distill=teaching, **(FAST if epochs else {}))
    after = stage.run(FloatModel(given), now).model
    assert [len(np.unique(kernel)) for kernel in kernels(after)] == [5, 5, 5]
    at_once = kernels(ClusterWeights(clusters=5, epochs=0).run(FloatModel(net()), context()).model)
    trained = [not np.array_equal(one, other) for one, other in zip(kernels(after), at_once, strict=True)]
    assert trained == [epochs > 0] * 3
    rows = now.record.details["clusters"]
    assert [
        (row["path"], row["clusters"], row["bits"], row["packed_bytes"], row["codebook_bytes"]) for row in rows
    ] == [
        ("conv/kernel", 5, 3, 72 * 3 // 8, 20),
        ("hidden/kernel", 5, 3, 1024 * 3 // 8, 20),
        ("logits/kernel", 5, 3, 16 * 3 // 8, 20),
    ]
    for row, kernel in zip(rows, kernels(after), strict=True):
        shares = np.unique(kernel, return_counts=True)[1] / kernel.size
        assert row["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
        assert row["entropy"] * kernel.size <= 8 * row["huffman_bytes"] <= (row["entropy"] + 1) * kernel.size + 8
    (note,) = now.record.notes
    small = sum(row["huffman_bytes"] + row["codebook_bytes"] for row in rows)
    assert f"{sum(kernel.nbytes for kernel in before) / small:.1f} times smaller" in note
    assert any("bias" in row["layer"] for row in now.record.skipped)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    "fields", [{"per": "channel"}, {"layers": "hidden"}, {"init": "linear"}, {"gradient": "mean"}], ids=str
)
def test_what_a_recipe_may_say_is_done(context, fields):
    after = ClusterWeights(clusters=3, epochs=1, **FAST, **fields).run(FloatModel(net()), context()).model
    hidden = after.get_layer("hidden").kernel.numpy()
    by_channel = {len(np.unique(column)) for column in hidden.T}
    assert (by_channel, len(np.unique(hidden))) == ({3}, 24 if fields == {"per": "channel"} else 3)
    assert (len(np.unique(after.get_layer("conv").kernel.numpy())) > 24) == ("layers" in fields)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("preserve", [True, False])
def test_zeros_of_a_pruned_model(context, preserve):
    now = context(holds_zeros=True)
    sparse = PruneWeights(sparsity=0.6, epochs=0).run(FloatModel(net()), now).model
    zeros = [kernel == 0 for kernel in kernels(sparse)]
    stage = ClusterWeights(clusters=4, init="linear", iterations=0, preserve_sparsity=preserve, epochs=1, **FAST)
    after = stage.run(FloatModel(sparse), now).model
    same = [np.array_equal(kernel == 0, zero) for kernel, zero in zip(kernels(after), zeros, strict=True)]
    assert most(after) <= 4 and all(same) == preserve


LATER = {
    "train": Train(epochs=2, **FAST),
    "distill": Distill(epochs=1, **FAST),
    "prune_filters": PruneFilters(ratio=0.25, criterion="l2", epochs=1, **FAST),
    "prune_weights at once": PruneWeights(sparsity=0.3, epochs=0),
    "cluster_weights": ClusterWeights(clusters=5, epochs=1, **FAST),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("later", LATER)
def test_later_stages_keep_the_clusters(context, later, held):
    clustered = ClusterWeights(clusters=5, epochs=0).run(FloatModel(net()), context())
    before = kernels(clustered.model)
    stage, now = LATER[later], context(holds_clusters=held)
    if later == "cluster_weights":
        with pytest.warns(NoEffectWarning, match="no more than clusters=5"):
            after = stage.run(clustered, now).model
    else:
        after = stage.run(clustered, now).model
    keeps = held or later in ("prune_weights at once", "cluster_weights")  # the control: who trains must be told
    assert (most(after) <= 6) == keeps
    assert not all(np.array_equal(one, other) for one, other in zip(kernels(after), before, strict=True))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("held", [True, False])
def test_quantization_aware_training_keeps_the_clusters(context, held):
    """A batch norm that is folded scales each channel: the kernel has a codebook for each of them then."""
    clustered = ClusterWeights(clusters=5, epochs=0).run(FloatModel(net()), context())
    after = Quantize(epochs=1, batch_size=16).run(clustered, context(holds_clusters=held)).model
    found = [len(np.unique(column)) for kernel in kernels(after) for column in kernel.reshape(-1, kernel.shape[-1]).T]
    assert len(found) == 18 and (max(found) <= 5) == held


def test_pruning_after_clustering_says_that_clusters_go(context):
    clustered = ClusterWeights(clusters=5, epochs=0).run(FloatModel(net()), context())
    now = context(holds_clusters=True)
    after = PruneWeights(sparsity=0.5, epochs=1, **FAST).run(clustered, now).model
    assert any("prune first" in note for note in now.record.notes)
    assert all(np.count_nonzero(kernel == 0) == round(0.5 * kernel.size) for kernel in kernels(after))


SOURCE = """
import keras
import numpy as np


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)).astype("float32"), np.arange(60) % 3
    return x[:40], y[:40], x[40:], y[40:]


def net(classes):
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(classes)])
"""


@pytest.mark.slow
def test_in_a_run_later_stages_are_told(tmp_path, monkeypatch):
    (tmp_path / "clusters_source.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    document = {
        "name": "clusters",
        "data": {"source": "clusters_source:data", "calibration_samples": 16},
        "model": {"factory": "clusters_source:net"},
        "stages": [
            {"stage": "prune_weights", "sparsity": 0.5, "epochs": 0},
            {"stage": "cluster_weights", "clusters": 4, "epochs": 0},
            {"stage": "train", "epochs": 1, "batch_size": 16},
        ],
    }
    parse_recipe(document).run(tmp_path / "run")
    trained = keras.models.load_model(tmp_path / "run" / "03-train" / "model.keras", compile=False)
    before = keras.models.load_model(tmp_path / "run" / "02-cluster_weights" / "model.keras", compile=False)
    assert most(trained) == 4 == most(before)
    for old, new in zip(kernels(before), kernels(trained), strict=True):
        assert ((old == 0) == (new == 0)).all() and not np.array_equal(old, new)
    entry = json.loads((tmp_path / "run" / "02-cluster_weights" / "entry.json").read_text())
    assert {row["bits"] for row in entry["details"]["clusters"]} == {2}


def faults(**stage):
    document = {
        "name": "a",
        "data": {"source": "digits"},
        "model": {"factory": "kpipe.models:digits_cnn"},
        "stages": [{"stage": "cluster_weights", **stage}],
    }
    try:
        parse_recipe(document)
    except RecipeError as error:
        return str(error).strip()
    return ""


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ({"clusters": 1}, "stages[0].clusters"),
        ({"clusters": 257}, "stages[0].clusters"),
        ({"init": "kmeans"}, "stages[0].init: Unknown initialisation of centroids 'kmeans'"),
        ({"per": "filter"}, "stages[0].per"),
        ({"layers": "conv("}, "stages[0].layers: 'conv(' is no regular expression"),
        ({"roles": ["bias"]}, "stages[0].roles[0]: unknown role 'bias'"),
        ({"epochs": 0, "gradient": "mean"}, "gradient would do nothing"),
        ({"gradient": "median"}, "stages[0].gradient"),
    ],
)
def test_faults_are_found_where_the_recipe_is_read(stage, fault):
    assert fault in faults(**stage)


@pytest.mark.parametrize("stage", [{}, {"clusters": 256, "per": "channel", "init": "density", "epochs": 0}], ids=str)
def test_what_is_right_is_taken(stage):
    assert faults(**stage) == ""
