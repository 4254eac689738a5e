import json

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.pipeline import checkpoint


def step(folder, key="k", **changes):
    folder.mkdir(parents=True)
    (folder / "model.keras").touch()
    (folder / "model.tflite").touch()
    entry = {"key": key, "artifact": {"kind": "float", "path": "model.keras"}, "files": [{"path": "model.tflite"}]}
    (folder / "entry.json").write_text(json.dumps({**entry, **changes}))
    return folder


def test_a_finished_step_is_found_by_its_key(tmp_path):
    folder = step(tmp_path / "01-train")
    entry = checkpoint.finished(folder, "k")
    assert entry is not None
    assert entry["key"] == "k"
    assert checkpoint.finished(folder, "other") is None


@pytest.mark.parametrize("lost", ["model.keras", "model.tflite", "entry.json"])
def test_a_step_that_lost_a_file_is_not_finished(tmp_path, lost):
    folder = step(tmp_path / "01-train")
    (folder / lost).unlink()
    assert checkpoint.finished(folder, "k") is None


def test_half_an_entry_is_not_finished(tmp_path):
    folder = step(tmp_path / "01-train")
    (folder / "entry.json").write_text('{"key": "k"')
    assert checkpoint.finished(folder, "k") is None


def test_sweeping_removes_old_steps_and_remains_but_nothing_of_the_users(tmp_path):
    step(tmp_path / "01-train")
    step(tmp_path / "02-quantize")
    (tmp_path / ".partial-03-export" / "deep").mkdir(parents=True)
    (tmp_path / "01-train" / ".partial-1-model.onnx").touch()
    (tmp_path / "04-photos").mkdir()  # named like a step, but without an entry
    (tmp_path / "notes.txt").touch()
    (tmp_path / "mine").mkdir()
    checkpoint.sweep(tmp_path, keep=["01-train"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-train", "04-photos", "mine", "notes.txt"]
    assert not list((tmp_path / "01-train").glob(".*"))
    assert (tmp_path / "01-train" / "model.keras").exists()


def test_a_step_folder_appears_whole_or_not_at_all(tmp_path):
    with checkpoint.step_folder(tmp_path, "01-train") as folder:
        (folder / "a").touch()
        assert not (tmp_path / "01-train").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["01-train"]
    with pytest.raises(RuntimeError), checkpoint.step_folder(tmp_path, "02-export") as folder:
        (folder / "a").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["01-train"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    checkpoint.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoint.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KpipeError, match=r"Cannot write into the run directory .*file/run.*--output"):
        checkpoint.open_directory(tmp_path / "file" / "run")


def test_the_digest_tells_content_and_not_order():
    assert checkpoint.digest({"a": 1, "b": 2}) == checkpoint.digest({"b": 2, "a": 1})
    assert checkpoint.digest({"a": 1}) != checkpoint.digest({"a": 2})


def test_the_fingerprint_of_a_model_tells_weights_and_graph():
    def made(seed, units=3):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(units, name="y")], name="net")

    assert checkpoint.model_fingerprint(made(0)) == checkpoint.model_fingerprint(made(0))
    assert checkpoint.model_fingerprint(made(0)) != checkpoint.model_fingerprint(made(1))
    assert checkpoint.model_fingerprint(made(0)) != checkpoint.model_fingerprint(made(0, units=4))


def test_the_fingerprint_of_data_tells_every_split():
    from dataclasses import replace

    from kpipe.data import load

    data = load("digits")
    seen = checkpoint.data_fingerprint(data)
    assert seen == checkpoint.data_fingerprint(load("digits"))
    x, y = data.test
    for changed in (
        replace(data, test=(x, (y + 1) % 10)),
        replace(data, calibration=data.calibration[::-1]),
        replace(data, train=(data.train[0].astype(np.float64), data.train[1])),
    ):
        assert checkpoint.data_fingerprint(changed) != seen
