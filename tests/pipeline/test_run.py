"""The pipeline with a stage of its own that changes weights without training, so that a run takes a second or two."""

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import pytest

from kpipe.atomic import PARTIAL
from kpipe.errors import KpipeError, RecipeError
from kpipe.export import read_metadata
from kpipe.pipeline import STAGES, Context, FloatModel, Quiet, Stage, delivery
from kpipe.pipeline.steps import begin, plan_steps
from kpipe.recipe import parse_recipe
from kpipe.report import report


@pytest.fixture(scope="module", autouse=True)
def shift():
    @STAGES("shift")
    class Shift(Stage):
        """Add a number, and some noise, to the last bias."""

        stage: Literal["shift"] = "shift"
        by: float = 1.0
        loss: str = "auto"
        fails: bool = False

        def run(self, artifact: FloatModel, context: Context) -> FloatModel:
            if self.fails:
                raise KpipeError("shift was told to fail")
            bias = artifact.model.layers[-1].bias
            bias.assign(bias + self.by + keras.random.uniform(bias.shape))
            context.record.note(f"shifted by {self.by}")
            return artifact if self.by == 0 else FloatModel(artifact.model)

    yield
    STAGES._objects.pop("shift")
    STAGES._facts.pop("shift")


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    return x[:40], y[:40], x[40:], y[40:]


def wide(classes):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(classes)])


def net(classes):
    # The layers have no names: whatever was made before in this process must not show.
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(classes)])


SOURCE = "import keras\nimport numpy as np\n\n\n" + "\n\n".join(map(inspect.getsource, (data, net, wide)))
DOCUMENT = {
    "name": "shifts",
    "data": {"source": "pipeline_source:data", "calibration_samples": 16},
    "model": {"factory": "pipeline_source:net"},
    "stages": [{"stage": "shift", "by": 1.0}, {"stage": "shift", "by": 2.0}, {"stage": "export"}],
}


@pytest.fixture
def document(tmp_path, monkeypatch):
    (tmp_path / "pipeline_source.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(DOCUMENT)


@pytest.fixture(scope="module")
def whole(shift, tmp_path_factory):
    """Run the document once, elsewhere: the directory, what the run found, and what it made."""
    folder, heard = tmp_path_factory.mktemp("whole"), Heard()
    (folder / "pipeline_source.py").write_text(SOURCE)
    metrics = parse_recipe(copy.deepcopy(DOCUMENT), folder).run(folder / "run", progress=heard)
    return folder / "run", metrics, heard


@pytest.fixture
def finished(whole, tmp_path):
    """Give a copy of a finished run of the document."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


class Heard(Quiet):
    def __init__(self):
        self.made, self.taken = [], []

    def end(self, entry, reused):
        (self.taken if reused else self.made).append(entry["name"])


def go(document, directory, **options):
    heard = Heard()
    metrics = parse_recipe(document).run(directory, progress=heard, **options)
    return metrics, heard


def without_timings(metrics):
    metrics = copy.deepcopy(metrics)
    for entry in metrics["stages"]:
        del entry["seconds"]
        for file in entry["files"]:
            del file["latency"]
    for file in metrics["delivery"]:
        del file["latency"], file["faster"]
    del metrics["summary"]["faster"]
    return metrics


def test_a_run_writes_its_directory(whole):
    directory, metrics, heard = whole
    assert heard.made == ["00-model", "01-shift", "02-shift", "03-export"]
    assert sorted(path.name for path in directory.iterdir()) == [
        ".delivered.json", "00-model", "01-shift", "02-shift", "03-export",
        "latency.json", "metrics.json", "recipe.yaml", "shifts.tflite", "shifts.tflite.json",
    ]  # fmt: skip
    assert metrics == json.loads((directory / "metrics.json").read_text())
    assert (directory / "shifts.tflite").read_bytes() == (directory / "03-export" / "shifts.tflite").read_bytes()
    said = read_metadata(directory / "shifts.tflite")
    assert (said["recipe"], said["stages"]) == ("shifts", ["00-model", "01-shift", "02-shift", "03-export"])
    assert said["recipe_key"] == metrics["stages"][-1]["key"]
    assert (said["accuracy"], said["test_samples"]) == (metrics["delivery"][0]["accuracy"], 20)
    beside = json.loads((directory / "shifts.tflite.json").read_text())
    assert beside["file"]["bytes"] == metrics["delivery"][0]["bytes"]
    for entry in metrics["stages"]:
        assert json.loads((directory / entry["name"] / "entry.json").read_text())["key"] == entry["key"]
        for file in entry["files"]:
            path = directory / entry["name"] / file["path"]
            assert file["bytes"] == path.stat().st_size
            assert 0 < file["latency"]["median_ms"] <= file["latency"]["p90_ms"]
            assert 0 <= file["accuracy"] <= 1
    assert metrics["stages"][1]["notes"] == ["shifted by 1.0"]
    assert metrics["stages"][-1]["artifact"] == {"kind": "file", "path": "shifts.tflite"}
    assert metrics["data"] == {
        "source": "pipeline_source:data", "train": 36, "validation": 4, "test": 20, "calibration": 16,
    }  # fmt: skip


def test_the_baseline_is_the_model_as_it_came_without_a_training_first(whole):
    _, metrics, _ = whole
    summary = metrics["summary"]
    assert summary["baseline"] == "00-model"
    assert summary["accuracy_baseline"] == metrics["stages"][0]["metrics"]["accuracy"]
    assert summary["accuracy_delivered"] == metrics["delivery"][0]["accuracy"]
    assert summary["accuracy_drop"] == pytest.approx(summary["accuracy_baseline"] - summary["accuracy_delivered"])
    before, after = metrics["stages"][0]["files"][0], metrics["delivery"][0]
    assert summary["smaller"] == pytest.approx(before["bytes"] / after["bytes"])
    assert summary["faster"] == pytest.approx(before["latency"]["median_ms"] / after["latency"]["median_ms"])


def test_a_finished_run_is_taken_over_whole(document, tmp_path):
    document["stages"] = document["stages"][:1]
    first, _ = go(document, tmp_path / "run")
    again, heard = go(document, tmp_path / "run")
    assert heard.made == []
    assert again == first
    _, heard = go(document, tmp_path / "run", resume=False)
    assert heard.taken == []


def test_a_resumed_run_ends_like_an_uninterrupted_one(document, whole, tmp_path):
    _, whole, _ = whole
    broken = {**document, "stages": [*document["stages"][:1], {**document["stages"][1], "fails": True}]}
    with pytest.raises(KpipeError, match="02-shift: shift was told to fail"):
        go(broken, tmp_path / "broken")
    left = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert left == ["00-model", "01-shift"]
    resumed, heard = go(document, tmp_path / "broken")
    assert heard.taken == ["00-model", "01-shift"]
    assert without_timings(resumed) == without_timings(whole)
    # The control: another seed gives other noise, and the comparison sees it.
    other, _ = go({**document, "seed": 1}, tmp_path / "other")
    assert without_timings(other) != without_timings(whole)


@pytest.mark.slow
def test_a_changed_stage_runs_again_and_what_follows(document, finished, tmp_path):
    document["stages"][1]["by"] = 3.0
    changed, heard = go(document, finished)
    assert heard.taken == ["00-model", "01-shift"]
    assert heard.made == ["02-shift", "03-export"]
    fresh, _ = go(document, tmp_path / "fresh")
    assert without_timings(changed) == without_timings(fresh)


def test_what_a_step_rests_on_makes_its_key(document, finished):
    document["stages"] = document["stages"][:2]
    plan = parse_recipe(document).plan()

    def keys(change):
        other = copy.deepcopy(document)
        change(other)
        plan = parse_recipe(other).plan()
        data = plan.load_data()
        begin(plan.seed, 0)
        return [step.key for step in plan_steps(plan, data, plan.make_model(data))]

    same = keys(lambda document: None)
    assert same == [json.loads((finished / name / "entry.json").read_text())["key"] for name in
                    ("00-model", "01-shift", "02-shift")]  # fmt: skip
    assert plan.stage_keys == parse_recipe(document).plan().stage_keys
    for change, kept in (
        (lambda document: document["data"].update(limit=30), 0),
        (lambda document: document.update(seed=5), 0),
        (lambda document: document["model"].update(factory="pipeline_source:wide"), 0),
        (lambda document: document["stages"].insert(0, {"stage": "shift", "by": 9.0}), 1),
        (lambda document: document["stages"][1].update(by=9.0), 2),
        (lambda document: document["stages"].append({"stage": "export"}), 3),
        (lambda document: document["stages"][1].update(loss="huber"), 0),  # the model as it came is measured by it
        (lambda document: document.update(name="renamed"), 3),
    ):
        other = keys(change)
        assert [a == b for a, b in zip(same, other, strict=False)] == [index < kept for index in range(3)]


def test_a_renamed_run_delivers_under_its_new_name_and_repeats_nothing_else(document, finished):
    metrics, heard = go({**document, "name": "renamed"}, finished)
    assert heard.taken == ["00-model", "01-shift", "02-shift"]
    assert heard.made == ["03-export"]
    assert [file["path"] for file in metrics["delivery"]] == ["renamed.tflite"]
    assert not (finished / "shifts.tflite").exists()


@pytest.mark.slow
def test_a_format_asked_for_later_is_added_to_finished_steps(document, tmp_path):
    document["stages"] = document["stages"][1:]
    go(document, tmp_path / "run")
    document["stages"][1]["formats"] = ["tflite", "onnx"]
    metrics, heard = go(document, tmp_path / "run")
    assert heard.made == ["02-export"]
    assert all({file["format"] for file in entry["files"]} == {"tflite", "onnx"} for entry in metrics["stages"])
    assert {file["path"] for file in metrics["delivery"]} == {"shifts.tflite", "shifts.onnx"}


def test_what_is_delivered_no_more_is_withdrawn(document, tmp_path):
    document["stages"] = document["stages"][2:]
    go(document, tmp_path / "run")
    (tmp_path / "run" / "mine.txt").touch()
    document["stages"][0]["name"] = "other"
    go(document, tmp_path / "run")
    assert not (tmp_path / "run" / "shifts.tflite").exists()
    assert (tmp_path / "run" / "other.tflite").exists()
    assert (tmp_path / "run" / "mine.txt").exists()


@pytest.mark.slow
def test_the_time_of_a_file_of_batches_is_that_of_one_sample(document, tmp_path):
    document["stages"] = [document["stages"][0], {"stage": "export", "batch": 4}]
    metrics, _ = go(document, tmp_path / "run")
    (file,) = metrics["delivery"]
    timed = json.loads((tmp_path / "run" / "latency.json").read_text())["files"]["02-export/shifts.tflite"]
    assert file["batch"] == 4
    assert file["latency"]["median_ms"] == pytest.approx(timed["median_ms"] / 4)
    assert file["accuracy"] == metrics["stages"][1]["metrics"]["accuracy"]


@pytest.mark.slow
def test_a_removed_export_is_delivered_no_more(document, tmp_path):
    document["stages"] = [document["stages"][0], {"stage": "export"}, {"stage": "export", "name": "second"}]
    go(document, tmp_path / "run")
    assert (tmp_path / "run" / "second.tflite").is_file()
    del document["stages"][2]
    metrics, heard = go(document, tmp_path / "run")
    assert heard.made == []
    assert [file["path"] for file in metrics["delivery"]] == ["shifts.tflite"]
    assert [path.name for path in (tmp_path / "run").glob("*.tflite")] == ["shifts.tflite"]
    fresh, _ = go(document, tmp_path / "fresh")
    assert without_timings(metrics) == without_timings(fresh)


def test_what_a_run_moved_before_it_was_killed_is_withdrawn_too(document, finished):
    for name in ("metrics.json", "recipe.yaml"):  # a kill amid the moves: metrics.json comes last
        (finished / name).unlink()
    document["stages"] = document["stages"][:2]
    go(document, finished)
    assert not (finished / "shifts.tflite").exists()


def top(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_an_earlier_delivery_stays_until_the_new_one_takes_its_place(document, finished):
    report(finished)
    before = top(finished)
    edited = {**document, "stages": [{**document["stages"][0], "by": 7.0}, *document["stages"][1:]]}
    broken = copy.deepcopy(edited)
    broken["stages"][1]["fails"] = True
    with pytest.raises(KpipeError, match="02-shift: shift was told to fail"):
        go(broken, finished)
    assert top(finished) == before
    report(finished)  # of the delivery, with the recipe that it was made by
    assert top(finished) == before

    # The control: a run that succeeds replaces all of it, and the old report is not left beside the new files.
    metrics, heard = go(edited, finished)
    assert heard.taken == ["00-model", "01-shift"]
    after = top(finished)
    assert set(before) - set(after) == {"report.md", "report.html"}
    assert [name for name in after if after[name] == before[name]] == [".delivered.json"]
    assert json.loads(after["metrics.json"]) == metrics
    assert "by: 7.0" in after["recipe.yaml"].decode()
    assert read_metadata(finished / "shifts.tflite")["recipe_key"] == metrics["stages"][-1]["key"]


def test_a_delivery_that_cannot_be_written_leaves_the_earlier_one(document, finished, monkeypatch):
    before = top(finished)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("kpipe.pipeline.delivery.shutil.copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        go(document, finished, resume=False)
    assert top(finished) == before
    monkeypatch.undo()
    monkeypatch.chdir(finished.parent)
    go(document, finished)
    assert top(finished)["metrics.json"] != before["metrics.json"]  # timed anew, as its steps were run anew


@pytest.mark.slow
def test_the_environment_reported_is_the_one_that_the_timings_were_taken_in(document, tmp_path, monkeypatch):
    document["stages"] = document["stages"][:1]
    first, _ = go(document, tmp_path / "run")
    monkeypatch.setattr("kpipe.pipeline.examine.environment", lambda: {"cpu": "another"})
    again, _ = go(document, tmp_path / "run")
    assert again == first
    other, _ = go({**document, "seed": 1}, tmp_path / "run")
    assert other["environment"] == {"cpu": "another"}


@pytest.mark.slow
def test_a_format_asked_for_no_more_is_removed_from_finished_steps(document, tmp_path):
    document["stages"] = [{"stage": "shift"}, {"stage": "export", "formats": ["onnx", "tflite"]}]
    go(document, tmp_path / "run")
    document["stages"][1]["formats"] = ["tflite"]
    metrics, heard = go(document, tmp_path / "run")
    assert heard.taken == ["00-model", "01-shift"]
    fresh, _ = go(document, tmp_path / "fresh")
    assert without_timings(metrics) == without_timings(fresh)
    run, whole = ({path.relative_to(top) for path in top.rglob("*")} for top in (tmp_path / "run", tmp_path / "fresh"))
    assert run == whole


def test_what_cannot_fit_the_model_is_told_before_the_training(document, tmp_path, monkeypatch):
    document["stages"] = [
        {"stage": "train", "epochs": 1},
        {"stage": "prune_filters", "ratio": 0.5, "ignore": "nothing"},
    ]
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(RecipeError, match=r"stages\[1\]\.ignore: ignore='nothing' matches no layer"):
        go(document, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    document["stages"][1]["ignore"] = (
        "dense$"  # the control, by a name that Keras gives: it gets as far as the training
    )
    with pytest.raises(pytest.fail.Exception, match="it trains"):
        go(document, tmp_path / "run")


def test_zeros_of_a_model_that_was_loaded_are_kept(document, tmp_path):
    model = net(3)
    kernel = model.layers[0].kernel
    kernel.assign(np.where(np.arange(20).reshape(4, 5) % 2, 0.0, kernel.numpy()))
    model.layers[1].kernel.assign(np.zeros((5, 3)))  # not pruned but not trained yet
    model.save(tmp_path / "sparse.keras")
    document |= {"model": {"load": "sparse.keras"}, "stages": [{"stage": "train", "epochs": 2}]}
    go(document, tmp_path / "run")
    trained = keras.models.load_model(tmp_path / "run" / "01-train" / "model.keras", compile=False)
    np.testing.assert_array_equal(trained.layers[0].kernel.numpy() == 0, np.arange(20).reshape(4, 5) % 2 == 1)
    assert np.count_nonzero(trained.layers[1].kernel.numpy())


def test_whole_numbers_of_a_regression_have_no_accuracy(document, tmp_path):
    document["stages"] = [{"stage": "train", "epochs": 1, "loss": "mean_squared_error"}, {"stage": "export"}]
    document["model"] = {"factory": "pipeline_source:one"}
    source = tmp_path / "pipeline_source.py"
    source.write_text(
        source.read_text() + "\n\ndef one():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n"
    )
    metrics, _ = go(document, tmp_path / "run")
    assert [entry["metrics"]["accuracy"] for entry in metrics["stages"]] == [None, None]
    assert [file["accuracy"] for entry in metrics["stages"] for file in entry["files"]] == [None, None]
    trained = keras.models.load_model(tmp_path / "run" / "01-train" / "model.keras", compile=False)
    x, y = data()[2:]
    error = np.mean((trained.predict(x, verbose=0)[:, 0] - y) ** 2)
    assert metrics["stages"][0]["metrics"]["loss"] == pytest.approx(error, rel=1e-5)


def test_labels_beyond_the_units_are_told_before_anything_is_left(document, tmp_path):
    document["stages"] = [{"stage": "train", "epochs": 1}]
    document["model"] = {"factory": "pipeline_source:few"}
    source = tmp_path / "pipeline_source.py"
    source.write_text(source.read_text() + "\n\ndef few():\n    return net(2)\n")
    with pytest.raises(KpipeError, match=r"01-train: The labels run from 0 to 2, .* with 2 outputs tells 2 classes"):
        go(document, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_at_once_leaves_no_directory(document, tmp_path):
    document["stages"] = [{"stage": "train", "epochs": 1, "loss": "categorical_crossentropy"}]
    document["model"] = {"factory": "pipeline_source:two"}
    source = tmp_path / "pipeline_source.py"
    source.write_text(
        source.read_text() + "\n\ndef two():\n    x = keras.Input((4,))\n"
        "    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])\n"
    )
    with pytest.raises(KpipeError, match=r"01-train: .*has 2 outputs"):
        go(document, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_student_whose_function_was_edited_is_taught_again(document, tmp_path):
    document["stages"] = [
        {"stage": "shift"},
        {"stage": "distill", "student": {"factory": "pipeline_student:student"}, "epochs": 1},
    ]
    text = (tmp_path / "pipeline_source.py").read_text() + "\n\ndef student(classes):\n    return {}(classes)\n"

    def heard(model):
        # In a folder of its own: a process keeps a module that it has imported from a file.
        folder = tmp_path / model
        folder.mkdir(exist_ok=True)
        (folder / "pipeline_student.py").write_text(text.format(model))
        listener = Heard()
        parse_recipe(document, folder).run(tmp_path / "run", progress=listener)
        return listener

    assert heard("net").made == ["00-model", "01-shift", "02-distill"]
    assert heard("net").made == []
    assert heard("wide").made == ["02-distill"]


def test_labels_that_only_the_test_split_has_are_told_before_the_training(document, tmp_path, monkeypatch):
    document |= {"stages": [{"stage": "train", "epochs": 1}], "model": {"factory": "pipeline_source:three"}}
    document["data"]["source"] = "pipeline_source:rare"
    source = tmp_path / "pipeline_source.py"
    source.write_text(
        source.read_text() + "\n\ndef three():\n    return net(3)\n"
        "\n\ndef rare():\n    x, y, x_test, y_test = data()\n    return x, y, x_test, y_test + 1\n"
    )
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(KpipeError, match=r"01-train: The labels run from 1 to 3"):
        go(document, tmp_path / "run")


def test_a_run_that_is_interrupted_at_once_leaves_no_directory(document, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kpipe.pipeline.examine.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(document, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_earlier_delivery_stays_when_the_new_one_cannot_take_its_place(document, finished, monkeypatch):
    report(finished)
    before, replace = top(finished), Path.replace
    edited = {**document, "stages": [{**document["stages"][0], "by": 7.0}, *document["stages"][1:]]}

    def failing(path, target):
        if (
            target == finished / "latency.json" and "old-" not in path.name
        ):  # all files of the delivery are moved by then
            raise OSError("no room left")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="no room left"):
            go(edited, finished)
    assert top(finished) == before
    go(edited, finished)
    assert top(finished)["shifts.tflite"] != before["shifts.tflite"]  # the control: there was something to move


@pytest.mark.sweep(2)
@pytest.mark.parametrize("reached", [".delivered.json", "renamed.tflite", "latency.json", "metrics.json"])
def test_a_kill_amid_the_moves_leaves_nothing_that_counts_and_the_next_run_mends_it(
    reached, document, finished, monkeypatch
):
    report(finished)
    renamed, replace = {**document, "name": "renamed"}, Path.replace

    def dying(path, target):
        if target == finished / reached:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        for tidying in ("_take_back", "_remove"):  # who is killed does neither
            patch.setattr(f"kpipe.atomic.{tidying}", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            go(renamed, finished)
    assert not (finished / "metrics.json").exists()
    assert not (finished / "report.md").exists()
    assert any(path.name.startswith(PARTIAL) for path in finished.iterdir())  # the control: it was cut off
    metrics, heard = go(renamed, finished)
    assert heard.made == []
    assert [file["path"] for file in metrics["delivery"]] == ["renamed.tflite"]
    assert set(top(finished)) == {*delivery.TOLD, delivery.DELIVERED, "renamed.tflite", "renamed.tflite.json"}
