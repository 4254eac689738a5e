import json
import re
from pathlib import Path

import keras
import pytest
import yaml
from typer.testing import CliRunner

from kpipe.cli import app
from kpipe.export import export

SOURCE = """
import keras
import numpy as np


def data():
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = (rng.normal(size=(160, 6)) + 2 * y[:, None]).astype("float32")
    return x[:120], y[:120], x[120:], y[120:]


def net(classes):
    return keras.Sequential(
        [keras.Input((6,), name="x"), keras.layers.Dense(8, activation="relu", name="hidden"),
         keras.layers.Dense(classes, name="logits")], name="net")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("cli_source.py").write_text(SOURCE)
    document = {
        "name": "tiny",
        "data": {"source": "cli_source:data", "calibration_samples": 32},
        "model": {"factory": "cli_source:net"},
        "stages": [{"stage": "train", "epochs": 1}, {"stage": "export"}],
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(document))


def call(*words):
    result = CliRunner().invoke(app, list(words))
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def test_run_prints_the_table_and_where_the_delivery_lies():
    code, output = call("run", "tiny.yaml")
    assert code == 0
    assert "01-train" in output
    assert "delivered: exported/tiny/tiny.tflite" in output
    delivered = Path("exported/tiny")
    for name in ("tiny.tflite", "metrics.json", "report.md", "report.html", "recipe.yaml", "latency.json"):
        assert (delivered / name).is_file()
    accuracy = json.loads((delivered / "metrics.json").read_text())["stages"][0]["metrics"]["accuracy"]
    assert f"{accuracy:.4f}" in output

    code, output = call("run", "tiny.yaml")
    assert code == 0
    assert output.count("done before") == 2
    code, output = call("run", "tiny.yaml", "--fresh")
    assert code == 0
    assert "done before" not in output

    (delivered / "report.md").unlink()
    code, output = call("report", "exported/tiny")
    assert code == 0
    assert (delivered / "report.md").is_file()


def test_run_refuses_a_faulty_recipe_and_leaves_nothing():
    Path("bad.yaml").write_text(Path("tiny.yaml").read_text().replace("epochs", "epoch"))
    code, output = call("run", "bad.yaml")
    assert code == 2
    assert "stages[0].epoch: unknown key." in output
    assert not Path("exported").exists()


def test_run_refuses_a_folder_that_cannot_be_written():
    Path("file").touch()
    code, output = call("run", "tiny.yaml", "--output", "file/run")
    assert code == 2
    assert "Cannot write into the run directory file/run" in output


def test_check():
    code, output = call("check", "tiny.yaml")
    assert code == 0
    assert "tiny.yaml: good" in output
    assert "74 parameters" in output  # 6 * 8 + 8 + 8 * 2 + 2
    code, output = call("check", "tini.yaml")
    assert code == 2
    assert "There is no recipe tini.yaml" in output
    assert "Did you mean 'tiny.yaml'?" in output


def test_ls():
    code, output = call("ls", "criteria", "stages")
    assert code == 0
    assert "taylor" in output
    assert "float -> quantized" in output
    code, output = call("ls")
    assert code == 0
    for name in ("Conv2D", "polynomial_decay", "tflite", "fashion_mnist", "unstructured"):
        assert name in output
    code, output = call("ls", "criterias")
    assert code == 2
    assert "Did you mean 'criteria'?" in output


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="logits")], name="small")


def test_show(model):
    model.save("small.keras")
    export(model, "small.tflite")
    code, output = call("show", "small.keras")
    assert code == 0
    assert re.search(r"logits Dense 3 15", output)
    code, output = call("show", "small.tflite")
    assert code == 0
    assert "FULLY_CONNECTED" in output
    assert "float32" in output
    code, output = call("show", "absent.keras")
    assert code == 2
    assert "There is no file absent.keras" in output
    code, output = call("show", "tiny.yaml")
    assert code == 2
    assert "'.yaml'" in output
    Path("broken.keras").write_text("no")
    code, output = call("show", "broken.keras")
    assert code == 2


def test_bench(model):
    export(model, "a.tflite")
    export(model, "b.onnx")
    code, output = call("bench", "a.tflite", "b.onnx", "--runs", "5")
    assert code == 0
    assert "a.tflite" in output
    assert "b.onnx" in output
    assert "1.00" in output
    code, output = call("bench", "absent.tflite")
    assert code == 2
    assert "There is no file absent.tflite" in output


def test_report_of_a_folder_that_is_no_run():
    code, output = call("report", ".")
    assert code == 2
    assert "metrics.json" in output


@pytest.mark.parametrize("verb", ["run", "check", "ls", "show", "bench", "report"])
def test_every_verb_has_examples(verb):
    code, output = call(verb, "--help")
    assert code == 0
    assert "Examples" in output
    assert f"$ kpipe {verb}" in output


def test_an_unknown_verb_names_the_nearest():
    code, output = call("rum")
    assert code == 2
    assert "run" in output
