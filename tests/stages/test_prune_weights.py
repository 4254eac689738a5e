"""What a recipe may say of weight pruning, what is refused when it is read, and what the stage leaves behind."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.errors import RecipeError
from kpipe.pipeline import Baseline, Context, FloatModel
from kpipe.recipe.check import parse_recipe
from kpipe.stages import PruneFilters, PruneWeights
from kpipe.stages.fields import Optimizer, Teaching

BATCHES = 10
"""Updates of an epoch: 160 samples in batches of 16."""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = (rng.normal(size=(160, 8)) + 2 * y[:, None]).astype("float32")
    return Dataset("points", (x, y), (x[:32], y[:32]), (x[:32], y[:32]), x[:32], 2)


@pytest.fixture
def context(data, tmp_path):
    net().save(tmp_path / "baseline.keras")
    baseline = Baseline({"metrics": {"accuracy": 0.5}}, tmp_path / "baseline.keras")
    return Context("net", data, 0, tmp_path, tmp_path, baseline=baseline)


def net():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh", name="hidden"), keras.layers.Dense(4, name="middle")]
    return keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(2, name="logits")], name="net")


def pruned(context, model=None, **fields):
    given = {"epochs": 2, "batch_size": 16, "optimizer": Optimizer(learning_rate=0.01), **fields}
    return PruneWeights(**given).run(FloatModel(model or net()), context).model


def sparsities(model):
    return {layer.name: float(np.mean(np.asarray(layer.kernel) == 0)) for layer in model.layers}


LINEAR = {"linear": {"final_sparsity": 0.5, "begin_epoch": 0.5, "end_epoch": 1.5, "updates_per_epoch": 5}}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("teaching", [None, Teaching()], ids=["labels", "taught"])
def test_a_schedule_in_epochs_is_followed_and_its_curve_kept(context, teaching):
    assert set(sparsities(pruned(context, schedule=LINEAR, distill=teaching)).values()) == {0.5}
    (noted,) = context.record.details["schedules"]
    assert [step for step, _ in noted["reached"]] == [5, 7, 9, 11, 13, 15]
    assert noted["weights"] == "all" and noted["updates"] == 6 and noted["asked"][-1] == [2 * BATCHES, 0.5]
    for step, reached in noted["reached"]:
        kept = sum(round(size * 0.5 * (step - 5) / 10) for size in (64, 32, 8))
        assert reached == pytest.approx(kept / 104)


def test_each_set_of_weights_follows_its_own_schedule(context):
    schedule = {
        "hidden": {"stepped": {"sparsities": [0.25, 0.75], "epochs": [0, 1]}},
        "logits/kernel": {"one_cycle": {"final_sparsity": 0.5}},
    }
    assert sparsities(pruned(context, schedule=schedule)) == {"hidden": 0.75, "middle": 0.0, "logits": 0.5}
    first, second = context.record.details["schedules"]
    assert (first["weights"], first["reached"]) == ("hidden", [[0, 0.25], [10, 0.75]])
    assert second["weights"] == "logits/kernel" and second["reached"][-1] == [15, 0.5]
    assert any("middle/kernel" in row["layer"] for row in context.record.skipped)


def test_a_sparsity_is_reached_in_three_quarters_of_the_training(context):
    assert set(sparsities(pruned(context, sparsity=0.5)).values()) == {0.5}
    (noted,) = context.record.details["schedules"]
    assert noted["schedule"].startswith("PolynomialDecay") and noted["reached"][-1] == [15, 0.5]


@pytest.mark.parametrize(
    ("scope", "epochs"),
    [("layer", 0), ({"global": {"normalise": "lamp", "ceiling": 0.9}}, 0), ("global", 1), ("erk", 0)],
    ids=str,
)
def test_scopes_share_out_the_sparsity(context, scope, epochs):
    after = pruned(context, sparsity=0.5, scope=scope, epochs=epochs, **({} if epochs else UNTRAINED))
    zeros = {name: share * size for (name, share), size in zip(sparsities(after).items(), (64, 32, 8), strict=True)}
    assert sum(zeros.values()) == 52
    assert (len(set(sparsities(after).values())) == 1) == (scope == "layer")


@pytest.mark.parametrize(("criterion", "sees"), [("wanda", True), ("magnitude", False)], ids=str)
def test_a_criterion_sees_what_it_looks_at(context, data, criterion, sees):
    """Of four inputs that are almost nothing, the weights matter least; their magnitude does not tell."""
    x, y = data.train
    faint = replace(context, data=replace(data, train=(x * np.repeat([1e-4, 1.0], 4).astype("float32"), y)))
    given = {"optimizer": Optimizer(name="sgd", learning_rate=0.01), "epochs": 1, "layers": "hidden"}
    kernel = np.asarray(pruned(faint, sparsity=0.5, criterion=criterion, **given).get_layer("hidden").kernel)
    assert np.count_nonzero(kernel == 0) == 32
    assert (kernel[4:] != 0).all() == sees


@pytest.mark.slow
def test_movement_is_gathered_while_the_stage_trains(context):
    chosen = [
        np.asarray(pruned(context, sparsity=0.5, criterion=one, epochs=1).layers[0].kernel) != 0
        for one in ("movement", "l1")
    ]
    assert [np.count_nonzero(kept) for kept in chosen] == [32, 32] and (chosen[0] != chosen[1]).any()


UNTRAINED = {"batch_size": 64, "optimizer": Optimizer()}
"""What a stage that does not train has to leave at its defaults."""


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("epochs", "given"), [(0, UNTRAINED), (1, {})], ids=["at once", "trained"])
def test_two_of_four_inputs_are_kept(context, epochs, given):
    after = pruned(context, sparsity=0.5, pattern="2:4", epochs=epochs, **given)
    for name in ("hidden", "middle"):
        groups = np.asarray(after.get_layer(name).kernel).reshape(2, 4, -1)
        assert (np.count_nonzero(groups, axis=1) == 2).all()


def test_weights_that_cannot_have_the_pattern_are_named(context):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="wide"), keras.layers.Dense(2, name="end")])
    with pytest.warns(UserWarning, match="cannot|left"):
        pruned(context, model, sparsity=0.5, pattern="2:4", epochs=0, **UNTRAINED)
    assert any("end/kernel" in row["layer"] and "2:4" in row["reason"] for row in context.record.skipped)


@pytest.mark.parametrize("roles", [None, ("kernel", "depthwise_kernel")], ids=["default", "depthwise"])
def test_depthwise_kernels_are_pruned_where_they_are_asked_for(context, roles):
    image = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Reshape((2, 2, 2)),
            keras.layers.DepthwiseConv2D(2, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="logits"),
        ]
    )
    after = pruned(context, image, sparsity=0.5, epochs=0, **UNTRAINED, **({"roles": roles} if roles else {}))
    assert np.count_nonzero(after.get_layer("depthwise").kernel == 0) == (4 if roles else 0)
    assert np.count_nonzero(after.get_layer("logits").kernel == 0) == 2


@pytest.mark.sweep(1)
@pytest.mark.parametrize("regrowth", ["set", {"kind": "rigl", "frequency": 3, "fraction": 0.5}], ids=["set", "rigl"])
def test_regrowth_moves_zeros_and_keeps_their_number(context, regrowth):
    regrowth = regrowth if isinstance(regrowth, dict) else {"kind": regrowth, "frequency": 3, "fraction": 0.5}
    masks = []

    class Watching(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            masks.append(np.asarray(self.model.get_layer("hidden").kernel) == 0)

    model = net()
    with pytest.MonkeyPatch.context() as patched:
        fit = keras.Model.fit

        def watched(self, *args, callbacks=(), **named):
            return fit(self, *args, callbacks=[*callbacks, Watching()], **named)

        patched.setattr(keras.Model, "fit", watched)
        after = pruned(context, model, sparsity=0.5, regrowth=regrowth, epochs=3)
    assert {row["sparsity"] for row in context.record.details["weights"]} == {0.5}
    assert np.count_nonzero(masks[1] != masks[2]) >= 4
    assert min(sparsities(after).values()) == 0.5  # what has grown where no gradient comes is still zero
    (noted,) = context.record.details["schedules"]
    assert noted["schedule"].startswith("ConstantSparsity") and noted["reached"][0] == [0, 0.5]


def test_a_filter_schedule_leaves_its_curve(data, tmp_path):
    context = Context("net", data, 0, tmp_path, tmp_path)
    stage = PruneFilters(
        schedule={"iterative": {"final_sparsity": 0.5, "stages": 2, "end_epoch": 1}}, epochs=2, batch_size=16
    )
    small = stage.run(FloatModel(net()), context).model
    assert [layer.units for layer in small.layers] == [4, 2, 2]
    (noted,) = context.record.details["schedules"]
    assert [step for step, _ in noted["reached"]] == [0, 5, 10]
    assert noted["reached"][0][1] == 0 and noted["reached"][2][1] == 0.5


def faults(**stage):
    document = {
        "name": "a",
        "data": {"source": "digits"},
        "model": {"factory": "kpipe.models:digits_cnn"},
        "stages": [{"stage": "train", "epochs": 1}, {"stage": "prune_weights", **stage}],
    }
    try:
        parse_recipe(document)
    except RecipeError as error:
        return str(error).strip()
    return ""


IN_EPOCHS = {"linear": {"final_sparsity": 0.5, "end_epoch": 7}}


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        (dict(), "stages[1]: give exactly one of sparsity and schedule"),
        (dict(epochs=0), "stages[1]: give exactly one of sparsity and schedule"),
        (dict(regrowth="set"), "stages[1]: give exactly one of sparsity and schedule"),
        (dict(sparsity=0.5, schedule=IN_EPOCHS, epochs=7), "stages[1]: give exactly one of sparsity and schedule"),
        (dict(sparsity=0.5, pattern=124), "stages[1].pattern: The pattern is 124; expected one of"),
        (dict(sparsity=0.5, pattern=["2:4"]), "stages[1].pattern: received ['2:4']; expected text"),
        (dict(sparsity=0.6, pattern="2:4"), "stages[1]: The sparsity is 0.6; the pattern '2:4' reaches 0.5 at most"),
        (dict(sparsity=0.6, pattern="2:4", epochs=0), "the pattern '2:4' reaches 0.5 at most"),
        (dict(sparsity=0.5, pattern="blok:4x1"), "stages[1].pattern: Unknown pattern 'blok:4x1'"),
        (dict(sparsity=0.5, scope="globl"), "stages[1].scope: The scope is 'globl'"),
        (dict(sparsity=0.5, scope={"global": {"normalise": "lam"}}), "Did you mean 'lamp'?"),
        (dict(sparsity=0.5, scope=3), "stages[1].scope: received 3; expected text"),
        (dict(sparsity=0.5, roles=["kernle"]), "stages[1].roles[0]: unknown role 'kernle'"),
        (dict(sparsity=0.5, roles=[]), "stages[1].roles: received no role"),
        (dict(sparsity=0.5, roles=["bias"]), "stages[1].roles[0]: unknown role 'bias'"),
        (dict(sparsity=0.5, layers="conv("), "stages[1].layers: 'conv(' is no regular expression"),
        (dict(sparsity=0.5, regrowth="rigle"), "stages[1].regrowth: Unknown regrowth 'rigle'"),
        (dict(sparsity=0.5, regrowth={"fraction": 2}), "stages[1].regrowth: fraction is 2"),
        (dict(sparsity=0.5, regrowth=3), "stages[1].regrowth: received 3"),
        (dict(sparsity=0.5, regrowth="set", epochs=0), "regrowth would do nothing"),
        (dict(sparsity=0.5, criterion="movement", epochs=0), "'movement' follows the weights through a training"),
        (dict(schedule="linear"), "stages[1].schedule: received 'linear'; expected a name with its arguments"),
        (dict(schedule=IN_EPOCHS, epochs=0), "a schedule needs epochs to prune in"),
        (dict(schedule=IN_EPOCHS), "ends at epoch 7, and the stage trains 5 epochs"),
        (dict(schedule={"conv": IN_EPOCHS}), "ends at epoch 7, and the stage trains 5 epochs"),
        (dict(schedule={"linear": {"begin_epoch": 1}}), "stages[1].schedule: The schedule 'linear' counts epochs"),
        (dict(schedule={"conv(": {"linear": {"final_sparsity": 0.5}}}), "stages[1].schedule: schedule has 'conv('"),
        (
            dict(schedule={"a": {"linear": {"final_sparsity": 0.5}}, "b": {"lnear": {"final_sparsity": 0.5}}}),
            "stages[1].schedule: The schedule of 'b': Unknown schedule 'lnear'",
        ),
        (
            dict(schedule={"a": {"stepped": {"sparsities": [0.5, 0.8], "epochs": [1, 2]}}}, pattern="2:4"),
            "the pattern '2:4' reaches 0.5 at most",
        ),
    ],
)
def test_faults_are_found_where_the_recipe_is_read(stage, fault):
    assert fault in faults(**stage)


@pytest.mark.parametrize(
    "stage",
    [
        dict(sparsity=0.5, pattern="2:4", scope="erk"),
        dict(sparsity=0.9, pattern="block:4x1:max", scope="global:mean"),
        dict(sparsity=0.5, criterion="movement"),
        dict(sparsity=0.5, regrowth="rigl"),
        dict(schedule={"constant": {"target_sparsity": 0.5, "begin_epoch": 1}}, regrowth={"kind": "set"}),
        dict(schedule={"conv": IN_EPOCHS, "": {"iterative": {"final_sparsity": 0.9, "stages": 3}}}, epochs=7),
        dict(schedule={"join": {"schedules": [{"linear": {"final_sparsity": 0.5, "end_epoch": 2}}]}}),
    ],
    ids=str,
)
def test_what_is_right_is_taken(stage):
    assert faults(**stage) == ""


def test_filters_know_neither_movement_nor_other_scopes():
    for given, fault in (
        ({"criterion": "movement"}, "'movement' follows the weights through a training; use it in prune_weights"),
        ({"scope": "erk"}, "stages[1].scope: Expected one of the scopes ('layer', 'global', 'isomorphic')"),
        ({"schedule": {"conv": {"linear": {"final_sparsity": 0.5}}}, "ratio": None}, "Unknown schedule 'conv'"),
    ):
        assert fault in faults(stage="prune_filters", **{"ratio": 0.5, **given})
