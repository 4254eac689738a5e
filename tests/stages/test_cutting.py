"""Rounds of cutting and training, budgets of accuracy, and teachers within them."""

import json
import warnings

import keras
import numpy as np
import pytest

from kpipe.costs.file_size import int8_bytes
from kpipe.data import Dataset
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.measure import measure
from kpipe.pipeline import Baseline, Context, FloatModel
from kpipe.pipeline.ledger import noting
from kpipe.stages import Distill, PruneFilters, PruneHeads, PruneWeights, RemoveLayers, Train
from kpipe.stages.fields import Optimizer, Target, Teaching, Until
from kpipe.structured import FilterPlan, prune_filters
from tests.stages.test_stages import small, taught

FAST = {"optimizer": Optimizer(learning_rate=0.01), "batch_size": 16}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = rng.normal(size=(240, 6, 6, 1)).astype("float32")
    x[np.arange(240), y, y, 0] += 4.0
    return Dataset("dots", (x[:160], y[:160]), (x[160:200], y[160:200]), (x[200:], y[200:]), x[:48], 3)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A trained net on disk, which is the baseline too."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("baseline")
    done = Train(epochs=4, **FAST).run(FloatModel(small()), Context("net", data, 0, folder, folder)).model
    done.save(folder / "model.keras")
    return Baseline({"metrics": {"accuracy": accuracy(done, data.test)}}, folder / "model.keras")


@pytest.fixture
def context(data, tmp_path, trained):
    return taught(data, tmp_path, trained)


def accuracy(model, split):
    return float(np.mean(model.predict(split[0], verbose=0).argmax(axis=1) == split[1]))


def filters(model):
    return [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def run(stage, context, trained):
    return stage.run(FloatModel(trained.load()), context).model


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_rounds_reach_the_ratio_in_equal_parts_of_what_is_left(context, trained):
    after = run(PruneFilters(ratio=0.75, rounds=2, epochs=1, **FAST), context, trained)
    assert filters(after) == [2, 3]  # half of 8 and 12, and half again
    rows = context.record.details["rounds"]
    assert [row["round"] for row in rows] == [1, 2] and len(context.record.history["loss"]) == 2
    assert rows[1]["params"] == after.count_params() and rows[1]["macs"] == measure(after).macs
    assert rows[1]["validation accuracy"] == pytest.approx(accuracy(after, context.data.validation))
    assert rows[0]["params"] > rows[1]["params"]


def test_the_plan_of_all_rounds_cuts_the_first_model(context, trained):
    after = run(PruneFilters(ratio=0.75, rounds=2, epochs=0, criterion="l2"), context, trained)
    plan = FilterPlan.load(context.folder / "plan.json")
    assert json.loads(json.dumps(context.record.details["plan"])) == plan.to_dict()
    again = prune_filters(trained.load(), plan)
    for ours, theirs in zip(after.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert plan.before["params"] == measure(trained.load()).params and plan.after["params"] == measure(after).params


@pytest.mark.slow
def test_rounds_end_at_the_target_and_not_above(context, trained):
    before = measure(trained.load()).macs
    after = run(PruneFilters(target=Target(macs=0.25), rounds=3, epochs=1, **FAST), context, trained)
    assert 0.15 * before < measure(after).macs <= 0.25 * before
    parts = [row["macs"] / before for row in context.record.details["rounds"]]
    assert all(part <= 0.25 ** (number / 3) + 1e-6 for number, part in enumerate(parts, 1)), parts


@pytest.mark.slow
def test_many_small_rounds_reach_the_ratio(context, trained):
    assert filters(run(PruneFilters(ratio=0.5, rounds=10, epochs=0), context, trained)) == [4, 6]
    parts = [(row["params"], row["macs"]) for row in context.record.details["rounds"]]
    assert len(parts) == 10 and parts == sorted(parts, reverse=True)
    assert context.record.details["plan"]["request"]["ratio"] == 0.5


def test_limits_are_those_of_all_rounds(context, trained):
    assert filters(run(PruneFilters(ratio=0.75, rounds=2, epochs=0, max_ratio=0.5), context, trained)) == [4, 6]
    target = Target(macs=0.3)
    after = run(PruneFilters(target=target, rounds=2, epochs=0, min_channels=4), context, trained)
    assert min(filters(after)) == 4 and measure(after).macs <= 0.3 * measure(trained.load()).macs


@pytest.mark.slow
def test_rounds_that_take_nothing_are_gone_through_and_said_only_of_all(context, trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = run(PruneFilters(ratio=0.1, rounds=3, until=Until(max_accuracy_drop=0.9), epochs=0), context, trained)
    assert filters(after) == [7, 11]  # 0.8 and 1.2 channels; the first round takes 0.28 and 0.41, which is none
    assert context.record.details["until"]["rounds taken"] == 3
    with pytest.warns(NoEffectWarning, match="prune_filters removes nothing in 2 rounds"):
        after = run(PruneFilters(ratio=0.01, rounds=2, epochs=0), context, trained)
    assert filters(after) == [8, 12]


def test_one_round_is_as_without_rounds(context, trained):
    one = run(PruneFilters(ratio=0.5, rounds=1, epochs=0), context, trained)
    plain = run(PruneFilters(ratio=0.5, epochs=0), context, trained)
    assert all((a == b).all() for a, b in zip(one.get_weights(), plain.get_weights(), strict=True))


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ratio": {"conv1": 0.5}}, [4, 12]),
        ({"ratio": {"conv1": 0.75, "conv": 0.4}, "rounds": 2}, [2, 7]),
        ({"ratio": 0.75, "max_ratio": 0.5}, [4, 6]),
        ({"ratio": 0.75, "min_channels": 5}, [5, 5]),
        ({"ratio": 0.5, "criterion": "fpgm", "reduction": "max", "normalise": "max"}, [4, 6]),
        ({"ratio": 0.5, "scope": {"both": "conv"}, "max_ratio": 0.5}, [4, 6]),
        ({"ratio": 0.5, "scope": "isomorphic"}, [4, 6]),
        ({"schedule": {"constant": {"target_sparsity": 0.75}}, "max_ratio": 0.5, "epochs": 1}, [4, 6]),
    ],
    ids=str,
)
def test_what_a_plan_can_be_asked_a_recipe_can(context, trained, fields, expected):
    assert filters(run(PruneFilters(**{"epochs": 0, **fields}), context, trained)) == expected


@pytest.mark.slow
def test_a_file_comes_down_to_its_bytes_in_rounds(context, trained):
    before = int8_bytes(trained.load())
    after = run(PruneFilters(target=Target(bytes=before - 500), rounds=2, epochs=0, scope="global"), context, trained)
    assert before - 1200 < int8_bytes(after) <= before - 500
    assert (
        len(context.record.details["rounds"]) == 2
        and context.record.details["rounds"][0]["params"] > measure(after).params
    )


# ---- budgets ---------------------------------------------------------------------------------------------------------


def test_until_goes_on_to_the_last_model_within_the_budget(context, trained):
    stage = PruneFilters(ratio=0.4, until=Until(max_accuracy_drop=0.1), epochs=2, **FAST)
    with noting(context.record):
        after = run(stage, context, trained)
    rows, said = context.record.details["rounds"], context.record.details["until"]
    reference = accuracy(trained.load(), context.data.validation)
    assert said["accuracy to compare with"] == pytest.approx(reference)
    inside = [row for row in rows if row["within the budget"]]
    assert inside == rows[: said["rounds taken"]] and len(rows) - len(inside) <= 1
    for row in rows:
        drop = reference - row["validation accuracy"]
        assert row["accuracy drop"] == pytest.approx(drop)
        assert row["within the budget"] == (drop <= 0.1 + 1e-9)
    assert measure(after).params == inside[-1]["params"] < measure(trained.load()).params
    assert accuracy(after, context.data.validation) == pytest.approx(inside[-1]["validation accuracy"])
    assert reference - accuracy(after, context.data.validation) <= 0.1 + 1e-9
    assert any("The budget is an accuracy drop of 0.1" in note for note in context.record.notes)
    assert FilterPlan.load(context.folder / "plan.json").after["params"] == measure(after).params


def test_a_budget_that_the_first_round_exceeds_gives_the_model_back_and_warns(context, trained):
    given = trained.load()
    stage = PruneFilters(ratio=0.85, until=Until(max_accuracy_drop=0.0), epochs=0, criterion="random")
    with pytest.warns(NoEffectWarning, match=r"gives the model back as it came: round 1 is beyond it\. It drops by 0"):
        after = stage.run(FloatModel(given), context).model
    assert all((a == b).all() for a, b in zip(after.get_weights(), given.get_weights(), strict=True))
    assert context.record.details["until"]["rounds taken"] == 0 and "plan" not in context.record.details
    assert len(context.record.details["rounds"]) == 1


def test_without_a_budget_the_same_cut_is_taken(context, trained):
    """The control of the test above."""
    after = run(PruneFilters(ratio=0.85, epochs=0, criterion="random"), context, trained)
    assert filters(after) == [1, 2]


def test_until_with_rounds_stops_where_the_amount_is_reached(context, trained):
    stage = PruneFilters(ratio=0.75, rounds=2, until=Until(max_accuracy_drop=0.9), epochs=0)
    assert filters(run(stage, context, trained)) == [2, 3]
    assert context.record.details["until"]["end"] == "all 2 rounds are within it"


@pytest.mark.slow
def test_until_ends_where_no_channel_can_go_any_more(context, trained):
    stage = PruneFilters(ratio=0.75, until=Until(max_accuracy_drop=0.99), epochs=0)
    assert filters(run(stage, context, trained)) == [1, 1]
    assert context.record.details["until"]["end"].endswith("finds nothing more to cut")
    stage = PruneFilters(target=Target(macs=0.3), until=Until(max_accuracy_drop=0.99), epochs=0)
    run(stage, context, trained)
    assert "cannot be reached" in context.record.details["until"]["end"]


def test_until_needs_classes(context, trained):
    x, y = context.data.train
    values = (x, y[:, None].astype("float32"))
    real = Dataset("values", values, values, values, x, 1)
    stage = PruneFilters(ratio=0.5, until=Until(max_accuracy_drop=0.1), epochs=0, loss="auto")
    with pytest.raises(KpipeError, match="until has a max_accuracy_drop, and the labels are no classes"):
        stage.run(FloatModel(small(1)), Context("net", real, 0, context.folder, context.folder))


def test_statistics_are_taken_anew(context, trained):
    plain = run(PruneFilters(ratio=0.5, epochs=0, ignore=("conv2",)), context, trained)
    anew = run(PruneFilters(ratio=0.5, epochs=0, ignore=("conv2",), reestimate_batch_norm=True), context, trained)
    for name, same in (("conv1", True), ("bn", False)):
        pairs = zip(plain.get_layer(name).get_weights(), anew.get_layer(name).get_weights(), strict=True)
        assert all((a == b).all() for a, b in pairs) == same
    front = keras.Model(anew.inputs[0], anew.get_layer("conv1").output)
    mean = np.asarray(front(context.data.train[0])).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(anew.get_layer("bn").moving_mean.numpy(), mean, rtol=1e-3, atol=1e-4)


# ---- other cuts ------------------------------------------------------------------------------------------------------


def sequence_net():
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 1), name="image")
    h = keras.layers.Reshape((6, 6), name="rows")(x)
    for name in "ab":
        attended = keras.layers.MultiHeadAttention(4, 3, name=f"{name}_attention")(h, h)
        h = keras.layers.Add(name=f"{name}_add")([h, attended])
        inner = keras.layers.Dense(8, "relu", name=f"{name}_up")(h)
        h = keras.layers.Add(name=f"{name}_out")([h, keras.layers.Dense(6, name=f"{name}_down")(inner)])
    return keras.Model(x, keras.layers.Dense(3, name="logits")(keras.layers.Flatten(name="flat")(h)))


@pytest.mark.slow
def test_heads_go_in_rounds_and_are_trained_on(context):
    model = sequence_net()
    stage = PruneHeads(ratio=0.75, rounds=2, epochs=1, distill=Teaching(teacher="input", features=("_out",)), **FAST)
    after = stage.run(FloatModel(model), context).model
    assert [after.get_layer(f"{name}_attention").num_heads for name in "ab"] == [1, 1]
    assert len(context.record.details["rounds"]) == 2 and len(context.record.history["loss"]) == 2
    assert model.get_layer("a_attention").num_heads == 4


@pytest.mark.slow
def test_heads_come_to_the_ratio_however_many_the_rounds(context):
    after = PruneHeads(ratio=0.5, rounds=4, epochs=0).run(FloatModel(sequence_net()), context).model
    assert [after.get_layer(f"{name}_attention").num_heads for name in "ab"] == [2, 2]


@pytest.mark.slow
def test_layers_go_in_rounds_and_are_trained_on(context):
    stage = RemoveLayers(count=2, rounds=2, epochs=1, distill=Teaching(teacher="input", features=("^flat$",)), **FAST)
    model = sequence_net()
    after = stage.run(FloatModel(model), context).model
    removed = [row["layer"] for row in context.record.details["removed layers"]]
    assert len(removed) >= 2 and not set(removed) & {layer.name for layer in after.layers}
    assert [row["round"] for row in context.record.details["rounds"]] == [1, 2]
    assert after.count_params() < model.count_params() and len(context.record.history["loss"]) == 2


def test_named_layers_are_taken_out(context):
    after = RemoveLayers(layers=("^a_add$",), epochs=0).run(FloatModel(sequence_net()), context).model
    assert "a_attention" not in {layer.name for layer in after.layers}


@pytest.mark.slow
def test_layers_go_until_none_can(context):
    stage = RemoveLayers(count=1, until=Until(max_accuracy_drop=0.99), epochs=0)
    after = stage.run(FloatModel(sequence_net()), context).model
    assert not any("add" in layer.name for layer in after.layers)
    assert "cannot be cut" in context.record.details["until"]["end"]


# ---- teachers --------------------------------------------------------------------------------------------------------


def outputs(model, name, x):
    return np.asarray(keras.Model(model.inputs[0], model.get_layer(name).output)(x))


@pytest.mark.slow
def test_features_are_matched_by_the_channels_that_are_kept(context, trained):
    """Taught by the features of the model as it came, the kept channels stay closer to what they were."""
    x, away = context.data.test[0], []
    for teaching in (None, Teaching(teacher="input", alpha=0.1, features=("conv2",), feature_weight=50.0)):
        stage = PruneFilters(ratio=0.5, epochs=4, distill=teaching, **FAST)
        keras.utils.set_random_seed(0)
        after = run(stage, context, trained)
        places = next(g["removed"] for g in context.record.details["plan"]["groups"] if g["name"] == "conv2")
        kept = [n for n in range(12) if n not in places]
        theirs, ours = outputs(trained.load(), "conv2", x)[..., kept], outputs(after, "conv2", x)
        away.append(float(np.mean((theirs - ours) ** 2) / np.mean(theirs**2)))
    assert away[1] < 0.5 * away[0], away


@pytest.mark.slow
def test_the_baseline_teaches_a_narrower_model_by_a_learned_map(context, trained):
    narrow = prune_filters(trained.load(), FilterPlan.from_dict(_half(trained, context)))
    stage = PruneFilters(ratio=0.5, epochs=1, distill=Teaching(features=("conv",)), **FAST)
    after = stage.run(FloatModel(narrow), context).model
    assert filters(after) == [2, 3]


def _half(trained, context):
    run(PruneFilters(ratio=0.5, epochs=0), context, trained)
    return context.record.details["plan"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        PruneFilters(
            schedule={"constant": {"target_sparsity": 0.25}}, epochs=1, distill=Teaching(teacher="input"), **FAST
        ),
        PruneWeights(sparsity=0.5, epochs=1, distill=Teaching(teacher="input", features=("conv1", "bn")), **FAST),
        PruneFilters(
            schedule={"constant": {"target_sparsity": 0.25, "begin_step": 4}},
            epochs=1,
            distill=Teaching(teacher="input", features=("conv1",)),
            regularizer={"depgraph": {"strength": 1e-3}},
            **FAST,
        ),
    ],
    ids=["filters", "weights", "features and a regulariser"],
)
def test_the_model_as_it_came_teaches_without_a_baseline(stage, data, tmp_path):
    keras.utils.set_random_seed(0)
    model = small()
    before = model.get_weights()
    stage.run(FloatModel(model), Context("net", data, 0, tmp_path, tmp_path))
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_features_that_no_layer_has_are_named(context, trained):
    with pytest.raises(KpipeError, match=r"distill.features has 'cnov', which is found in the name of no layer.*'conv"):
        run(PruneFilters(ratio=0.5, epochs=1, distill=Teaching(features=("cnov",))), context, trained)


@pytest.mark.slow
def test_the_distill_stage_compares_features(context, trained):
    after = Distill(epochs=1, features=("conv1",), feature_weight=2.0, **FAST).run(FloatModel(small()), context).model
    assert filters(after) == [8, 12]


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", [None, {"depgraph": {"strength": 0.05}}], ids=str)
def test_a_regulariser_changes_what_is_trained(context, trained, regularizer):
    """With it the channels are others than without, and the control is the run without."""
    schedule = {"constant": {"target_sparsity": 0.5, "begin_step": 15}}
    keras.utils.set_random_seed(0)
    plain = run(PruneFilters(schedule=schedule, epochs=2, **FAST), context, trained)
    keras.utils.set_random_seed(0)
    again = run(PruneFilters(schedule=schedule, epochs=2, regularizer=regularizer, **FAST), context, trained)
    same = all((a == b).all() for a, b in zip(plain.get_weights(), again.get_weights(), strict=True))
    assert same == (regularizer is None) and filters(again) == [4, 6]


HALF = {"constant": {"target_sparsity": 0.5}}

# ---- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PruneFilters(ratio=0.5, regularizer="depgraph"), "give a schedule, or leave it"),
        (
            lambda: PruneFilters(schedule={"constant": {"target_sparsity": 0.5}}, rounds=2),
            "rounds goes with cuts before",
        ),
        (lambda: PruneFilters(ratio=0.5, criterion="movement"), "in prune_filters with a schedule"),
        (lambda: PruneFilters(ratio=0.5, until={"max_acuracy_drop": 0.1}), "max_acuracy_drop"),
        (lambda: PruneFilters(schedule=HALF, regularizer="lasso"), "nknown regularizer 'lasso'"),
        (lambda: PruneFilters(target={"bytes": 4000}, until={"max_accuracy_drop": 0.1}), "has to be a fraction"),
        (lambda: PruneFilters(target={"macs": 1.5}), "target.macs"),
        (lambda: PruneFilters(target={"macs": 0.5, "bytes": 0.5}), "exactly one of macs, params, bytes, latency_ms"),
        (lambda: PruneFilters(ratio={"conv": 1.5}), "Received: 1.5 of 'conv'"),
        (lambda: PruneFilters(ratio=0.5, scope="globl"), "Did you mean 'global'"),
        (lambda: PruneFilters(ratio=0.5, criterion="fpmg"), "Did you mean 'fpgm'"),
        (lambda: PruneHeads(epochs=0), "exactly one of ratio and count"),
        (lambda: PruneHeads(ratio=0.5, epochs=0, distill=Teaching()), "distill would do nothing"),
        (lambda: RemoveLayers(count=1, layers=("a",)), "exactly one of count and layers"),
        (lambda: RemoveLayers(layers=("a",), rounds=2), "layers that are named go at once"),
        (lambda: RemoveLayers(count=1, rounds=2), "2 rounds cannot share 1 layers"),
        (lambda: RemoveLayers(count=1, criterion="los"), "Did you mean 'loss'"),
        (lambda: RemoveLayers(layers=(), epochs=0), "layers names none"),
        (lambda: RemoveLayers(layers=("a",), criterion="loss", loss="huber", epochs=0), "criterion would do nothing"),
        (lambda: PruneFilters(ratio=0.5, parts=("chanels",)), "Unknown part 'chanels'.*Did you mean 'channels'"),
        (lambda: PruneFilters(ratio=0.5, parts=()), "Expected parts as names"),
        (lambda: Teaching(feature_weight=2.0), "there are none; name some"),
        (lambda: Teaching(features=("a",), alpha=1), "features would do nothing"),
        (lambda: Distill(features=("a",), alpha=1), "features would do nothing"),
    ],
)
def test_what_does_not_go_together_is_refused_where_the_recipe_is_read(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.slow
def test_movement_is_followed_along_a_schedule(context, trained):
    stage = PruneFilters(schedule={"polynomial_decay": {"final_sparsity": 0.5}}, criterion="movement", epochs=1, **FAST)
    assert filters(run(stage, context, trained)) == [4, 6]
