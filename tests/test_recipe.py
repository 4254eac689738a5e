import copy
import re
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from kpipe.errors import RecipeError
from kpipe.patterns import PATTERNS
from kpipe.recipe import load_recipe, parse_recipe

GOOD = {
    "name": "good",
    "data": {"source": "digits"},
    "model": {"factory": "kpipe.models:digits_cnn"},
    "stages": [
        {"stage": "train", "epochs": 2, "optimizer": {"name": "adam", "learning_rate": 0.001}},
        {"stage": "prune_filters", "target": {"macs": 0.5}, "criterion": "taylor"},
        {"stage": "prune_weights", "schedule": {"polynomial_decay": {"final_sparsity": 0.6}}},
        {"stage": "distill", "temperature": 2.0},
        {"stage": "export", "name": "float"},
        {"stage": "quantize", "scheme": "int8", "epochs": 1},
        {"stage": "export", "formats": ["tflite", "onnx"], "max_accuracy_drop": 0.01},
    ],
}


def changed(place, value):
    """Give GOOD with one value set; `place` is a path such as "stages.0.epochs"."""
    document = copy.deepcopy(GOOD)
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    inside: Any = document
    for part in path:
        inside = inside[part]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return document


def faults(document, **options):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document, **options)
    return [line.strip() for line in str(caught.value).splitlines() if line.strip()]


def test_a_good_recipe_is_read_with_its_defaults():
    recipe = parse_recipe(GOOD)
    assert [stage.stage for stage in recipe.stages] == [stage["stage"] for stage in GOOD["stages"]]
    resolved = recipe.resolved()
    assert resolved["seed"] == 0
    assert resolved["stages"][1]["scope"] == "layer"
    assert parse_recipe(resolved).resolved() == resolved


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("stages.0.stage", "trian", "stages[0].stage: unknown stage 'trian'. Known: .* Did you mean 'train'?"),
        ("stages.0.epoch", 3, "stages[0].epoch: unknown key. Known: .* Did you mean 'epochs'?"),
        ("stages.0.optimizer.lerning_rate", 1, "stages[0].optimizer.lerning_rate: .* Did you mean 'learning_rate'?"),
        ("stages.0.optimizer.name", "adm", "stages[0].optimizer.name: unknown optimizer 'adm'.* mean 'adam'?"),
        ("stages.0.optimizer.momentum", 0.9, "stages[0].optimizer: momentum is for sgd and rmsprop; adam has none .*"),
        ("stages.0.augment", {}, "stages[0].augment: augment changes nothing; .*"),
        ("stages.0.augment", {"flips": True}, "stages[0].augment.flips: unknown key. Known: flip, shift.*"),
        ("stages.0.epochs", 0, "stages[0].epochs: received 0; it should be greater than or equal to 1"),
        ("stages.0.epochs", "many", "stages[0].epochs: received 'many'; it should be a valid integer.*"),
        ("stages.0.loss", "crossentropy", "stages[0].loss: unknown loss 'crossentropy'.*"),
        ("stages.1.criterion", "tailor", "stages[1].criterion: Unknown criterion 'tailor'.* Did you mean 'taylor'?"),
        ("stages.1.target", {"mac": 0.5}, "stages[1].target.mac: unknown key. Known: macs, params.*mean 'macs'?"),
        ("stages.1.target", {"macs": 0.0}, "stages[1].target.macs: received 0.0; .*greater than 0"),
        ("stages.1.target", {"macs": 1.0}, "stages[1].target.macs: received 1.0; .*less than 1"),
        ("stages.1.ignore", ["conv1", "conv("], "stages[1].ignore[1]: 'conv(' is no regular expression: .*"),
        ("stages.2.layers", "[a", "stages[2].layers: '[a' is no regular expression: .*"),
        ("stages.2.epochs", 0, "stages[2]: a schedule needs epochs to prune in; .*"),
        ("stages.1.target", {}, "stages[1].target: .*macs.*params.*"),
        ("stages.1.ratio", 0.5, "stages[1]: received ratio, target; give exactly one of ratio, target, schedule"),
        ("stages.1.scope", "net", "stages[1].scope: Expected one of the scopes .*, or a mapping.* Received: 'net'.*"),
        ("stages.2.schedule", {"poly": {}}, "stages[2].schedule: Unknown schedule 'poly'.*"),
        (
            "stages.2.schedule",
            {"polynomial_decay": {"final_sparsity": 1.0}},
            "stages[2].schedule: final_sparsity is 1.0; expected a fraction of zeros in [0, 1).*",
        ),
        (
            "stages.2.schedule",
            {"polynomial_decay": {"final_sparsity": 0.5, "begin_step": 9, "end_step": 3}},
            "stages[2].schedule: end_step is 3 and begin_step 9.*",
        ),
        ("stages.2.sparsity", 0.5, "stages[2]: give exactly one of sparsity and schedule"),
        ("stages.2.pattern", "3:5:7", "stages[2].pattern: Unknown pattern '3:5:7'.*"),
        ("stages.3.student", {}, "stages[3].student: give either factory: .*"),
        ("stages.3.student", {"factory": "kpipe.models:nope"}, "stages[3].student.factory: module .* has no 'nope'"),
        ("stages.4.name", "a/b", "stages[4].name: received 'a/b'.*"),
        ("stages.0.stage", ["train"], "stages[0].stage: unknown stage ['train']. Known: .*"),
        (
            "stages.4.name",
            None,
            "stages[6].name: stages[4] delivers good.tflite too; give each export a name of its own",
        ),
        ("stages.4.name", "good", "stages[6].name: stages[4] delivers good.tflite too; .*"),
        ("stages.4.precision", "int8", "stages[4].precision: int8 needs a quantized model; put a quantize .*"),
        ("stages.6.precision", "float32", "stages[6].precision: a model quantized by int8 is written in int8 only.*"),
        ("stages.6.precision", "int4", "stages[6].precision: a model quantized by int8 is written in int8 only.*"),
        (
            "stages.6",
            {"stage": "export", "precision": "int8", "method": "converter"},
            "stages[6].method: converter rounds a float model, and this one is quantized by int8; leave method .*",
        ),
        (
            "stages.4",
            {"stage": "export", "name": "float", "precision": "int16x8"},
            "stages[4]: int16x8 is written by method='converter' alone, from a float model into a .tflite file",
        ),
        (
            "stages.4",
            {"stage": "export", "name": "float", "precision": "int8", "method": "converter", "formats": ["onnx"]},
            "stages[4]: method='converter' writes .tflite files; for onnx files call kpipe.quantize, .*",
        ),
        ("stages.4.method", "converted", "stages[4].method: unknown method 'converted'.* Did you mean 'converter'?"),
        ("stages.5.bits", {"logits": 5}, "stages[5].bits: bits of 'logits' is 5; expected 4, 8 or None, .*"),
        ("stages.5.bits", {"(": 8}, "stages[5].bits: bits is '(', which is no regular expression: .*"),
        ("stages.5.scheme", "int9", "stages[5].scheme: unknown scheme 'int9'.* Did you mean 'int8'?"),
        ("stages.6.formats", ["tflight"], "stages[6].formats[0]: unknown format 'tflight'.* Did you mean 'tflite'?"),
        ("stages.6.formats", [], "stages[6].formats: .*"),
        ("stages.6.precision", "float61", "stages[6].precision: unknown precision 'float61'.*"),
        ("stages.6.max_accuracy_drop", 2, "stages[6].max_accuracy_drop: received 2; .*less than or equal to 1"),
        ("stages", [], "stages: received .*expected a list of stages.*"),
        ("stages.0", "train", "stages[0]: received 'train'; expected a mapping with `stage`.*"),
        ("sead", 3, "sead: unknown key. Known: .* Did you mean 'seed'?"),
        ("seed", -1, "seed: received -1; .*"),
        ("name", "../up", "name: received '../up'.*"),
        ("data", None, "data: missing; give it a value"),
        ("data.source", None, "data.source: missing; give it a value"),
        ("data.source", "absent.npz", "data.source: file 'absent.npz' not found. Looked at: .*absent.npz"),
        ("data.source", "no_such_module:data", "data.source: module 'no_such_module' cannot be imported.*"),
        ("data.source", "digitz", "data.source: .*digitz.* not found. Looked in.* Did you mean 'digits'?.*"),
        ("data.validation_fraction", 1.0, "data.validation_fraction: received 1.0; .*less than 1"),
        ("model", {}, "model: give either factory: .*"),
        ("model", {"load": "absent.keras"}, "model.load: file 'absent.keras' not found. Looked at: .*absent.keras"),
        ("model", {"factory": "digits_cnn"}, "model.factory: received 'digits_cnn'; expected \"module:function\".*"),
    ],
)
def test_a_fault_is_told_with_its_path(place, value, expected):
    pattern = ".*".join(re.escape(part) for part in expected.split(".*"))
    found = faults(changed(place, value))
    assert any(re.fullmatch(pattern, fault) for fault in found), found


def test_all_faults_are_told_at_once():
    document = changed("stages.0.stage", "trian")
    document["stages"][1]["criterion"] = "tailor"
    document["stages"][5]["epoch"] = 1
    document["sead"] = 1
    paths = [fault.split(": ")[0] for fault in faults(document)]
    assert paths == ["sead", "stages[0].stage", "stages[1].criterion", "stages[5].epoch"]


def test_prune_after_quantize_is_refused_and_export_before_is_not():
    document = copy.deepcopy(GOOD)
    document["stages"].insert(6, {"stage": "prune_filters", "ratio": 0.5})
    (fault,) = faults(document)
    assert fault.startswith("stages[6]: prune_filters takes a float model, but stages[5] (quantize) gives a quantized")
    parse_recipe(GOOD)  # holds an export before quantize


def test_two_exports_of_two_names_are_not_refused():
    recipe = parse_recipe(changed("stages.4.name", "other"))
    assert [stage.name for stage in recipe.stages if stage.stage == "export"] == ["other", None]
    document = changed("stages.4.formats", ["onnx"])
    document["stages"][6]["formats"] = ["tflite"]
    document["stages"][4]["name"] = "good"
    recipe = parse_recipe(document)
    assert [list(stage.formats) for stage in recipe.stages if stage.stage == "export"] == [["onnx"], ["tflite"]]


@pytest.mark.parametrize("field", ["max_accuracy_drop", "until"])
def test_a_limit_of_lost_accuracy_is_refused_where_the_loss_knows_no_classes(field):
    document = changed("stages.0.loss", "huber")
    if field == "until":
        document["stages"][1] |= {"until": {"max_accuracy_drop": 0.01}, "epochs": 1}
        del document["stages"][6]["max_accuracy_drop"]
    place = 1 if field == "until" else 6
    (fault,) = faults(document)
    assert (
        fault
        == f"stages[{place}].{field}: to the loss huber no label is a class, so there is no accuracy; leave it out"
    )
    for loss in ("auto", "sparse_categorical_crossentropy"):
        document["stages"][0]["loss"] = loss
        parse_recipe(document)


def test_precisions_that_fit_are_not_refused():
    assert parse_recipe(changed("stages.6.precision", "int8")).stages[6].precision == "int8"
    assert parse_recipe(changed("stages.4.precision", "float16")).stages[4].precision == "float16"


@pytest.mark.parametrize("stage", [{"stage": "prune_filters", "ratio": 0.5}, {"stage": "quantize"}])
@pytest.mark.parametrize(
    ("field", "value"),
    [("distill", {}), ("optimizer", {"learning_rate": 0.5}), ("batch_size", 8), ("loss", "mean_squared_error")],
)
def test_what_only_a_training_reads_is_refused_without_one(stage, field, value):
    document = changed("stages", [{"stage": "train"}, {**stage, "epochs": 0, field: value}])
    (fault,) = faults(document)
    assert fault.startswith(f"stages[1]: epochs is 0: nothing trains, and {field} would do nothing. Leave {field} out")
    document["stages"][1]["epochs"] = 1
    parse_recipe(document)


def test_a_stage_that_does_not_train_is_read_again_from_its_resolved_recipe():
    stages = [{"stage": "prune_weights", "sparsity": 0.5, "epochs": 0}, {"stage": "quantize"}]
    resolved = parse_recipe(changed("stages", stages)).resolved()
    assert parse_recipe(resolved).resolved() == resolved


def test_a_criterion_with_gradients_reads_the_loss_without_a_training():
    stage = {"stage": "prune_filters", "ratio": 0.5, "epochs": 0, "loss": "mean_squared_error"}
    parse_recipe(changed("stages", [{**stage, "criterion": "taylor"}]))
    assert len(faults(changed("stages", [{**stage, "criterion": "l1"}]))) == 1


def test_a_pattern_without_a_global_ranking_is_refused(monkeypatch):
    monkeypatch.setitem(PATTERNS._objects, "whole_rows", lambda scores, sparsity: scores > 0)
    stage = {"stage": "prune_weights", "sparsity": 0.5, "pattern": "whole_rows"}
    parse_recipe(changed("stages", [stage]))
    (fault,) = faults(changed("stages", [{**stage, "scope": "global"}]))
    assert fault.startswith("stages[0]: The pattern")


@pytest.mark.parametrize(
    ("formats", "expected"),
    [([], ["tflite"]), ([["onnx"]], ["onnx"]), ([["onnx"], ["tflite", "onnx"]], ["onnx", "tflite"])],
)
def test_steps_are_measured_in_the_formats_that_are_delivered(formats, expected):
    document = copy.deepcopy(GOOD)
    document["stages"] = [{"stage": "train"}]
    document["stages"] += [{"stage": "export", "name": str(i), "formats": f} for i, f in enumerate(formats)]
    assert parse_recipe(document).plan().formats == expected


def test_a_file_is_looked_for_beside_the_recipe(tmp_path):
    x, y = np.zeros((20, 3), "float32"), np.arange(20) % 2
    np.savez(tmp_path / "points.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "net.keras")
    document = changed("data", {"source": "points.npz", "limit": 5})
    document["model"] = {"load": "net.keras"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    recipe = load_recipe(tmp_path / "r.yaml")
    data = recipe.load_data()
    assert [len(split[0]) for split in (data.train, data.validation, data.test)] == [5, 2, 5]
    assert recipe.make_model(data).output_shape == (None, 2)


def test_modules_are_looked_for_beside_the_recipe(tmp_path):
    (tmp_path / "beside_the_recipe.py").write_text(
        "import numpy as np, keras\n"
        "def data(n):\n"
        "    x = np.ones((n, 3), 'float32'); y = np.arange(n) % 4\n"
        "    return x, y, x, y\n"
        "def net(classes):\n"
        "    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(classes)])\n"
    )
    document = changed("data", {"source": "beside_the_recipe:data", "options": {"n": 30}})
    document["model"] = {"factory": "beside_the_recipe:net"}
    recipe = parse_recipe(document, folder=tmp_path)
    data = recipe.load_data()
    assert len(data.test[0]) == 30
    assert recipe.make_model(data).output_shape == (None, 4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("return 3", "gives int; expected a keras.Model"),
        ("return keras.Sequential([keras.layers.Dense(2)])", "is not built; give it a keras.Input"),
    ],
)
def test_a_factory_that_gives_no_built_model_is_refused(tmp_path, made, message):
    name = f"factory_{abs(hash(made))}"
    (tmp_path / f"{name}.py").write_text(f"import keras\ndef net():\n    {made}\n")
    recipe = parse_recipe(changed("model", {"factory": f"{name}:net"}), folder=tmp_path)
    with pytest.raises(RecipeError, match=f"model: .*{message}"):
        recipe.make_model(recipe.load_data())


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "net.keras").write_text("no model")
    recipe = parse_recipe(changed("model", {"load": "net.keras"}), folder=tmp_path)
    with pytest.raises(RecipeError, match=r"model: .*net\.keras is no Keras model file"):
        recipe.make_model(recipe.load_data())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no recipe"),
        ("a: [1", "is not YAML"),
        ("- 1\n- 2", "received list; expected a mapping"),
        ("", "received NoneType; expected a mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_missing_recipe_names_the_nearest_one(tmp_path):
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(RecipeError, match=r"Did you mean 'digits.yaml'"):
        load_recipe(tmp_path / "digit.yaml")


def test_the_name_of_the_file_is_the_name_of_the_recipe(tmp_path):
    document = changed("name", None)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"


def test_a_float_model_may_be_rounded_by_the_converter_before_it_is_quantized():
    stage = {"stage": "export", "name": "float", "precision": "int16x8", "method": "converter"}
    assert parse_recipe(changed("stages.4", stage)).resolved()["stages"][4]["method"] == "converter"
