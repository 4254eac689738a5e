"""What of a recipe cannot go with its model is told before anything trains, and nothing else is."""

import keras
import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.errors import KpipeError, RecipeError
from kpipe.pipeline import Context, FloatModel, ModelSource, check_fit
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


def net():
    layers = [keras.layers.Dense(8, activation="relu", name=name) for name in ("first", "second")]
    return keras.Sequential([keras.Input((6,), name="x"), *layers, keras.layers.Dense(2, name="logits")], name="net")


def attending():
    x = keras.Input((6,), name="x")
    steps = keras.layers.Reshape((3, 2), name="steps")(x)
    attended = keras.layers.MultiHeadAttention(2, 2, name="attention")(steps, steps)
    flat = keras.layers.Flatten(name="flat")(attended)
    return keras.Model(x, keras.layers.Dense(2, name="logits")(flat), name="attending")


@pytest.fixture(scope="module")
def data():
    x, y = np.random.default_rng(0).normal(size=(40, 6)).astype("float32"), np.arange(40) % 2
    return Dataset("points", (x[:20], y[:20]), (x[20:30], y[20:30]), (x[30:], y[30:]), x[:10], 2)


@pytest.fixture
def context(data, tmp_path):
    return Context("net", data, 0, tmp_path, tmp_path)


HALF = {"constant": {"target_sparsity": 0.5, "begin_step": 0}}
OURS = {"teacher": "input"}
CASES = [
    (PruneFilters, {"ratio": 0.5, "epochs": 0}, "ignore", ["first", "nothing"], ["first"], "nothing"),
    (PruneFilters, {"epochs": 0}, "ratio", {"second": 0.5, "zzz": 0.5}, {"second": 0.5}, "zzz"),
    (PruneFilters, {"ratio": 0.5, "epochs": 0}, "scope", {"a": "first", "b": "zzz"}, {"a": "first"}, "zzz"),
    (PruneFilters, {"ratio": 0.5, "epochs": 0}, "parts", ["key_dim"], ["channels"], "key_dim"),
    (PruneWeights, {"sparsity": 0.5, "epochs": 0}, "layers", "zzz", "second", "zzz"),
    (PruneWeights, {"epochs": 1}, "schedule", {"first": HALF, "zzz": HALF}, {"first": HALF}, "zzz"),
    (PruneWeights, {"epochs": 1}, "schedule", {"bias": HALF}, {"kernel": HALF}, "bias"),
    (ClusterWeights, {"epochs": 0}, "layers", "bias", "first", "bias"),
    (FindTicket, {"rounds": 1, "epochs": 1}, "layers", "zzz", "first", "zzz"),
    (FindTicket, {"rounds": 1, "epochs": 1}, "per_round", {"first": 0.2, "zzz": 0.2}, {"first": 0.2}, "zzz"),
    (RemoveLayers, {"count": 1, "epochs": 0}, "ignore", ["zzz"], ["first"], "zzz"),
    (RemoveLayers, {"epochs": 0}, "layers", ["zzz"], ["second"], "zzz"),
    (Quantize, {}, "exclude", ["logits", "zzz"], ["logits"], "zzz"),
    (Quantize, {}, "bits", {"logits": 8, "zzz": None}, {"logits": 8}, "zzz"),
]


@pytest.mark.parametrize(("stage", "rest", "field", "bad", "good", "word"), CASES)
def test_what_a_stage_names_fails_in_its_run_too(stage, rest, field, bad, good, word, context):
    wrong = stage(**rest, **{field: bad})
    ((named, why),) = wrong.misfits(net())
    assert named == field
    assert repr(word) in why
    with pytest.raises(KpipeError) as error:
        wrong.run(FloatModel(net()), context)
    assert str(error.value).startswith(why.split(" of 'net'.")[0])  # behind that a message may list more, or less
    # The control: what fits is not named.
    assert stage(**rest, **{field: good}).misfits(net()) == []


@pytest.mark.parametrize("stage", [PruneFilters(ratio=0.5, epochs=1), Quantize(epochs=1), ClusterWeights(epochs=1)])
def test_features_that_no_layer_gives_are_named(stage, context):
    def taught(features):
        return type(stage)(**stage.model_dump(exclude={"distill"}, exclude_unset=True), distill={**OURS, **features})

    wrong = taught({"features": ["fir", "zzz"]})
    ((field, why),) = wrong.misfits(net())
    assert (field, "'zzz'" in why) == ("distill.features", True)
    with pytest.raises(KpipeError, match="zzz"):
        wrong.run(FloatModel(net()), context)
    assert taught({"features": "fir"}).misfits(net()) == []
    assert taught({}).misfits(net()) == []


def test_heads_are_looked_for():
    ((field, why),) = PruneHeads(ratio=0.5).misfits(net())
    assert field == "stage"
    assert "no heads that can be cut" in why
    assert PruneHeads(ratio=0.5).misfits(attending()) == []
    assert [field for field, _ in PruneHeads(ratio=0.5, ignore="zzz").misfits(attending())] == ["ignore"]


def test_all_faults_are_told_at_once_with_their_stages():
    stages = [
        Train(epochs=1),
        PruneFilters(ratio={"zzz": 0.5}, ignore=("nothing", "first"), distill={"features": ["nolayer"]}),
        PruneHeads(ratio=0.5),
        Export(),
        Quantize(exclude="none"),
    ]
    with pytest.raises(RecipeError) as error:
        check_fit(stages, net())
    head, *faults = str(error.value).splitlines()
    assert head == "Stages do not fit the model 'net':"
    assert [fault.split(": ")[0].strip() for fault in faults] == [
        "stages[1].distill.features", "stages[1].ignore", "stages[1].ratio", "stages[2].stage", "stages[4].exclude",
    ]  # fmt: skip
    check_fit([Train(epochs=1), PruneFilters(ratio={"first": 0.5}, ignore="second"), Quantize(exclude="logits")], net())


@pytest.mark.parametrize(
    "unsure", [RemoveLayers(count=1), Distill(student=ModelSource(factory="kpipe.models:digits_cnn"), epochs=1)]
)
def test_behind_a_stage_that_may_change_layers_nothing_is_told(unsure):
    missing = PruneFilters(ratio=0.5, ignore="zzz")
    check_fit([unsure, missing], net())
    with pytest.raises(RecipeError, match=r"stages\[0\]\.ignore"):
        check_fit([missing, unsure], net())


def test_a_path_that_a_loaded_model_has_is_not_refused(tmp_path):
    """Keras's own path of a weight in a nested model is shorter in a model from a file, as later stages get it."""
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="deep")], name="inner")
    built = keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(2, name="logits")], name="net")
    built.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    stage = PruneWeights(sparsity=0.5, epochs=0, layers="^deep/")
    assert stage.misfits(built) == stage.misfits(loaded) == []
    assert PruneWeights(sparsity=0.5, epochs=0, layers="^deeper/").misfits(built)


def test_one_expression_needs_no_list():
    assert PruneFilters(ratio=0.5, ignore="conv").ignore == ("conv",)
    assert RemoveLayers(layers="conv").layers == ("conv",)
    assert PruneFilters(ratio=0.5, ignore="conv") == PruneFilters(ratio=0.5, ignore=["conv"])
    with pytest.raises(ValueError, match="no regular expression"):
        PruneFilters(ratio=0.5, ignore="(")
