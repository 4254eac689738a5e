"""TFMOT's names on Keras 3, with TFMOT itself as the oracle: names, schedules, masks, policies, a user's script."""

import importlib
import json
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.legacy import tfmot
from kpipe.unstructured.wrapper import PruneLowMagnitude
from tests.legacy.policy_models import MODELS, chain
from tests.legacy.tfmot_oracle import SCHEDULES, STEPS
from tests.unstructured import tfmot_cases
from tests.unstructured.tfmot_cases import APART, SAME

PUBLIC = tfmot.sparsity.keras
CASES = {
    name: (SAME | APART)[name]
    for name in (
        *("dense, constant", "convolution, polynomial", "2x2 AVG, polynomial", "4x1 MAX, constant", "2x2 AVG, ragged"),
        *("2:4 dense", "2:4 convolution", "1:4 dense", "an odd number of entries, half of them", "equal weights"),
    )
}
"""Those in which the wrapper's masks are compared."""


# ---- names -----------------------------------------------------------------------------------------------------------


def test_every_public_name_of_tfmot_is_there_both_ways(oracle):
    assert PUBLIC.__all__ == sorted(oracle["names"])
    for name in PUBLIC.__all__:
        assert getattr(tfmot, name) is getattr(PUBLIC, name)
        assert getattr(PUBLIC, name).__doc__
    assert importlib.import_module("kpipe.legacy.tfmot.sparsity.keras") is PUBLIC


def test_what_is_elsewhere_is_named():
    with pytest.raises(AttributeError, match=r"pruning alone; for quantization see kpipe\.quantize"):
        _ = tfmot.quantization
    with pytest.raises(AttributeError, match="no attribute 'sparse'"):
        _ = tfmot.sparse


# ---- a script --------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """Give a user's script with its one import changed, and nothing else."""
    text = Path(__file__).with_name("tfmot_script.py").read_text()
    before, after = "import tensorflow_model_optimization as tfmot\n", "from kpipe.legacy import tfmot\n"
    assert text.count(before) == 1
    (tmp_path / "script.py").write_text(text.replace(before, after))
    return runpy.run_path(str(tmp_path / "script.py"))


def test_a_script_moves_by_one_import_to_the_same_weights(script, oracle, tmp_path):
    ours = script["run"](str(tmp_path))
    theirs = [oracle[f"script: {i}"] for i in range(5)]
    assert [round(float((kernel == 0).mean()), 3) for kernel in ours] == [0.75, 0.75, 0.5, 0.5, 0.0]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_script_keeps_exact_zeros_while_an_optimizer_moves_the_weights(script):
    still, moved = (
        [weight for weight in script["trained"](rate).get_weights() if weight.dtype == np.float32 and weight.ndim > 1]
        for rate in (0.0, 0.01)
    )
    counts = [round(share * kernel.size) for share, kernel in zip([0.75, 0.75, 0.5, 0.5, 0.0], moved, strict=True)]
    assert [int((kernel == 0).sum()) for kernel in moved] == counts
    dense = moved[3].reshape(4, 4, 8)  # (inputs, outputs) -> (groups, 4 inputs, outputs)
    assert ((dense == 0).sum(axis=1) == 2).all()
    for before, after in zip(still, moved, strict=True):
        assert (before != after)[(before != 0) & (after != 0)].mean() > 0.4, "the optimizer moves what is left"


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_answer_as_those_of_tfmot(name, oracle):
    kind, arguments = SCHEDULES[name]
    schedule = getattr(PUBLIC, kind)(*arguments)
    theirs = oracle[f"schedule: {name}"].copy()
    if name.endswith("ragged"):  # the update at the end is kpipe's own
        end = STEPS.index(schedule.end_step)
        assert theirs[end, 0] == 0
        theirs[end, 0] = 1
    ours = np.array([[float(part) for part in schedule(step)] for step in STEPS])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    late = np.array([[float(part) for part in schedule(step - 1)] for step in STEPS])
    assert np.abs(late - theirs).max() > 0.1


def test_the_end_is_reached_where_tfmot_misses_it():
    schedule = PUBLIC.PolynomialDecay(0.0, 0.8, 0, 100, frequency=30)
    assert [step for step in range(1, 200) if schedule(step)[0]] == [30, 60, 90, 100]
    assert float(schedule(100)[1]) == np.float32(0.8)
    due, sparsity = PUBLIC.PolynomialDecay(0.2, 0.8, 5, 5)(5)
    assert bool(due) and float(sparsity) == np.float32(0.8)


def test_a_schedule_has_tfmots_attributes_and_config():
    schedule = PUBLIC.PolynomialDecay(0.2, 0.6, 10, 20, 5, 10)
    arguments = {"initial_sparsity": 0.2, "final_sparsity": 0.6, "begin_step": 10, "end_step": 20}
    arguments |= {"power": 5, "frequency": 10}
    assert schedule.get_config() == {"class_name": "PolynomialDecay", "config": arguments}
    assert {name: getattr(schedule, name) for name in arguments} == arguments
    for config in (schedule.get_config(), arguments):
        assert PUBLIC.PolynomialDecay.from_config(config) == schedule
    saved = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(saved) == schedule != PUBLIC.ConstantSparsity(0.6, 10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PUBLIC.ConstantSparsity(1.0, 0), "target_sparsity is 1.0"),
        (lambda: PUBLIC.ConstantSparsity(0.5, -1), "begin_step is -1"),
        (lambda: PUBLIC.ConstantSparsity(0.5, 10, -5), "end_step is -5"),
        (lambda: PUBLIC.PolynomialDecay(0.2, 0.8, 10, -1), "end_step is -1"),
        (lambda: PUBLIC.PolynomialDecay(0.2, 0.8, 0, 10, 3, 0), "frequency is 0"),
    ],
    ids=range(5),
)
def test_schedules_that_do_not_fit_are_refused(make, text):
    with pytest.raises(KpipeError, match=text):
        make()


# ---- masks -----------------------------------------------------------------------------------------------------------


def our_masks(case, roll=0):
    """Follow a case's schedule for TFMOT's steps with our wrapper and callback; no weight is trained."""
    kind, arguments = tfmot_cases.SCHEDULES[case.schedule]
    dense = len(case.shape) == 2
    layer = L.Dense(case.shape[-1]) if dense else L.Conv2D(case.shape[-1], case.shape[:2])
    wrapped = PUBLIC.prune_low_magnitude(
        layer,
        getattr(PUBLIC, kind)(**arguments),
        block_size=case.block,
        block_pooling_type=case.pooling,
        sparsity_m_by_n=case.zeros_of,
    )
    model = keras.Sequential([keras.Input(case.shape[:1] if dense else (5, 5, case.shape[2])), wrapped])
    layer.kernel.assign(np.roll(case.weight(), roll))
    callback = PUBLIC.UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for step in range(tfmot_cases.STEPS):
        callback.on_train_batch_begin(step)
        ((_, mask, _),) = wrapped.pruning_vars
        found.append(mask.numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", [name for name in CASES if name != "equal weights"])
def test_masks_are_those_of_tfmot_at_every_step(name, oracle):
    theirs = oracle[f"mask: {name}"]
    np.testing.assert_array_equal(our_masks(CASES[name]), theirs)
    assert not theirs[-1].all() and not np.array_equal(our_masks(CASES[name], roll=1), theirs)


def test_of_equal_weights_the_exact_number_goes_where_tfmot_keeps_all(oracle):
    assert oracle["mask: equal weights"].all()
    mask = our_masks(CASES["equal weights"])[-1]
    assert (~mask).sum() == 144 - round(0.4 * 144) and not mask.ravel()[: (~mask).sum()].any()


# ---- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_taken_and_refused_as_by_tfmot(name, oracle):
    policy, model = PUBLIC.PruneForLatencyOnXNNPack(), MODELS[name](keras)
    if oracle[f"policy: {name}"] < 0:
        with pytest.raises(KpipeError):
            policy.ensure_model_supports_pruning(model)
    else:
        policy.ensure_model_supports_pruning(model)
        assert sum(policy.allow_pruning(layer) for layer in model.layers) == oracle[f"policy: {name}"]


def test_the_oracle_takes_some_networks_and_refuses_some(oracle):
    verdicts = [int(oracle[f"policy: {name}"]) for name in MODELS]
    assert min(verdicts) == -1 and max(verdicts) == 2 and 5 < verdicts.count(-1) < len(verdicts) - 5


def test_a_policy_looks_into_nested_models_operations_and_wrappers():
    policy = PUBLIC.PruneForLatencyOnXNNPack()
    inner = keras.Sequential([keras.Input((8, 8, 8)), L.Conv2D(8, 1), L.ReLU()], name="block")
    model = chain(keras, inner, lambda x: (x + x) * x - x, inner)
    pruned = PUBLIC.prune_low_magnitude(model, pruning_policy=policy)
    wrappers = [layer.name for layer in pruned._flatten_layers() if isinstance(layer, PruneLowMagnitude)]
    assert len(wrappers) == 1
    PUBLIC.prune_low_magnitude(pruned, pruning_policy=policy)
    bad = keras.Sequential([keras.Input((8, 8, 8)), L.Conv2D(8, 1), L.MaxPooling2D(2, name="pool")], name="block")
    with pytest.raises(KpipeError, match=r"'block/pool' \(MaxPooling2D\)"):
        policy.ensure_model_supports_pruning(chain(keras, bad))
    with pytest.raises(KpipeError, match="Divide"):
        policy.ensure_model_supports_pruning(chain(keras, lambda x: x / 2))


@pytest.mark.parametrize("model", [keras.Sequential([L.Conv2D(4, 1)]), keras.Model()], ids=["unbuilt", "subclassed"])
def test_a_policy_refuses_models_without_a_graph(model):
    with pytest.raises(KpipeError, match="have no graph to look at"):
        PUBLIC.PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wrapped():
    net = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    return PUBLIC.prune_low_magnitude(net, PUBLIC.ConstantSparsity(0.5, 2))


def test_models_are_loaded_without_the_scope(wrapped, tmp_path):
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(loaded.layers[0], PruneLowMagnitude)
    assert loaded.layers[0].pruning_schedule == PUBLIC.ConstantSparsity(0.5, 2)


def test_the_scope_knows_the_wrapper_by_tfmots_name(wrapped):
    config = json.loads(wrapped.to_json())
    layer = config["config"]["layers"][1]
    del layer["module"], layer["registered_name"]
    assert layer["class_name"] == "PruneLowMagnitude"
    with PUBLIC.prune_scope():
        loaded = keras.models.model_from_json(json.dumps(config))
    assert isinstance(loaded.layers[0], PruneLowMagnitude)
    with pytest.raises(ValueError, match="Unknown layer: 'PruneLowMagnitude'"):
        keras.models.model_from_json(json.dumps(config))
