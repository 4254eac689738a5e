import json
import re
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import keras
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from kpipe.cli import app, main
from kpipe.cli.bench import rows
from kpipe.cli.console import WIDTH
from kpipe.cli.run import table
from kpipe.export import Latency, export, join_signatures
from kpipe.patterns import PATTERNS, SCOPES
from kpipe.pipeline import STAGES
from kpipe.schedules import SCHEDULES

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


def only_onnx(classes):
    x = keras.Input((6,), name="x")
    y = keras.ops.arccos(keras.layers.Dense(8, activation="tanh", name="hidden")(x))
    return keras.Model(x, keras.layers.Dense(classes, name="logits")(y), name="only_onnx")
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
    trained = json.loads((delivered / "metrics.json").read_text())["stages"][0]
    shown = re.search(r"01-train ([\d.]+) %.*? tflite float32 ([\d.]+) ", output)
    assert shown, output
    assert float(shown[1]) == pytest.approx(100 * trained["files"][0]["accuracy"], abs=0.01)
    assert float(shown[2]) == pytest.approx(trained["files"][0]["bytes"] / 1000, rel=0.01)  # three digits of KB

    code, output = call("run", "tiny.yaml")
    assert code == 0
    assert output.count("done before") == 2
    code, output = call("run", "tiny.yaml", "--fresh")
    assert code == 0
    assert "done before" not in output

    document = yaml.safe_load(Path("tiny.yaml").read_text())
    document["stages"].insert(1, {"stage": "prune_filters", "target": {"bytes": 1.5}})
    Path("edited.yaml").write_text(yaml.safe_dump(document))
    code, output = call("run", "edited.yaml")
    assert code == 2
    assert "nothing is delivered; the files and the report in exported/tiny are those of an earlier run" in output
    assert (delivered / "tiny.tflite").is_file()
    assert "nothing is delivered" not in call("run", "edited.yaml", "--output", "elsewhere")[1]

    (delivered / "report.md").unlink()
    code, output = call("report", "exported/tiny")
    assert code == 0
    assert (delivered / "report.md").is_file()


@pytest.mark.slow
def test_a_recipe_of_onnx_alone_runs_where_litert_cannot():
    """An inverse cosine has an ONNX operation and no LiteRT one."""
    document = yaml.safe_load(Path("tiny.yaml").read_text())
    document["model"]["factory"] = "cli_source:only_onnx"
    document["stages"][1]["formats"] = ["onnx"]
    Path("tiny.yaml").write_text(yaml.safe_dump(document))
    code, output = call("run", "tiny.yaml")
    assert code == 0, output
    assert re.search(r"01-train .*onnx float32", output)
    assert "delivered: exported/tiny/tiny.onnx report:" in output
    assert not list(Path("exported").rglob("*.tflite"))
    document["stages"][1]["formats"] = ["tflite"]
    Path("tiny.yaml").write_text(yaml.safe_dump(document))
    code, output = call("run", "tiny.yaml", "--output", "other")
    assert code == 2, output


def test_a_large_run_fits_into_the_columns_of_a_pipe():
    file = {"path": "m.tflite", "format": "tflite", "precision": "float32", "bytes": 123_456_789}
    file |= {"gzip_bytes": 98_765_432, "zstd_bytes": 97_654_321, "accuracy": 1.0}
    file |= {"latency": {"median_ms": 1234.5, "p90_ms": 2345.6}}
    stage = {"name": "10-prune_weights", "metrics": {"accuracy": 1.0}, "seconds": 12_345.0, "files": [file]}
    stage["measure"] = {"params": 1_123_456_789, "nonzeros": 1_123_456_789, "macs": 123_456_789_012}
    with StringIO() as text:
        Console(file=text, width=WIDTH).print(table({"name": "large", "stages": [stage]}))
        printed = text.getvalue()
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= WIDTH
    (line,) = [line for line in printed.splitlines() if "10-prune_weights" in line]
    for figure in ("100.00 %", "1,123,456,789", "tflite float32", "123,457", "98,765", "97,654", "1,234"):
        assert figure in line


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


def test_ls_tells_the_keys_of_every_stage():
    code, output = call("ls", "stages")
    words = output.replace(",", " ").split()
    assert code == 0
    assert all(key in words for name in STAGES for key in STAGES[name].model_fields if key != "stage")
    assert "nosuchkey" not in words


def test_ls_says_how_schedules_patterns_and_scopes_are_written():
    code, output = call("ls", "schedules", "patterns", "scopes")
    assert code == 0
    words = output.replace(",", " ").split()
    assert all(name in words for name in (*SCHEDULES, *PATTERNS, *SCOPES, "2:4", "block:4x1", "end_epoch", "stages"))
    assert "taylor" not in words


def test_check():
    code, output = call("check", "tiny.yaml")
    assert code == 0
    assert "tiny.yaml: good" in output
    assert "74 parameters" in output  # 6 * 8 + 8 + 8 * 2 + 2
    code, output = call("check", "tini.yaml")
    assert code == 2
    assert "There is no recipe tini.yaml" in output
    assert "Did you mean 'tiny.yaml'?" in output


def test_check_holds_the_stages_against_the_model():
    document = yaml.safe_load(Path("tiny.yaml").read_text())
    document["stages"].insert(1, {"stage": "prune_filters", "ratio": {"zzz": 0.5}, "ignore": "nothing"})
    Path("unfit.yaml").write_text(yaml.safe_dump(document))
    code, output = call("check", "unfit.yaml", "tiny.yaml")
    assert code == 2
    assert "The recipe unfit.yaml cannot run. Stages do not fit the model" in output
    assert "stages[1].ignore: ignore='nothing' matches no layer." in output
    assert "stages[1].ratio: ratio['zzz'] = 'zzz' finds no group" in output
    assert "tiny.yaml: good" in output


def test_check_goes_on_behind_a_bad_recipe():
    code, output = call("check", "tini.yaml", "tiny.yaml")
    assert code == 2 and "tini.yaml" in output and "tiny.yaml: good." in output


def test_ls():
    code, output = call("ls", "criteria", "stages")
    assert code == 0
    assert "taylor weights, channels Score" in output and "fpgm channels Score" in output
    assert "float -> quantized" in output
    code, output = call("ls")
    assert code == 0
    for name in ("Conv2D", "polynomial_decay", "tflite", "fashion_mnist", "unstructured"):
        assert name in output
    code, output = call("ls", "criterias")
    assert code == 2
    assert "Did you mean 'criteria'?" in output


def lines_of(what):
    code, _ = call("ls", what)
    assert code == 0
    return [line.split() for line in CliRunner().invoke(app, ["ls", what]).output.splitlines()]


def test_ls_layers_says_what_is_known_of_each():
    known = lines_of("layers")
    assert ["Conv2D", "yes", "kernel", "yes"] in known
    assert ["Conv1D", "yes", "kernel", "yes"] in known
    assert ["DepthwiseConv2D", "yes", "kernel", "(if", "asked", "for)", "yes"] in known
    assert ["LSTMCell", "yes", "kernel,", "recurrent_kernel", "in", "float"] in known
    assert ["LSTM", "yes", "of", "the", "layers", "inside", "in", "float"] in known
    assert ["STFTSpectrogram", "no", "–", "in", "float"] in known


def test_ls_operations_says_what_becomes_of_channels():
    lines = lines_of("operations")
    (clip,) = [words for words in lines if words[:1] == ["Clip"]]
    assert "bounds" in clip
    assert {"Add,", "Multiply,", "Matmul"} <= {word for words in lines for word in words}
    assert "Conv2D" not in {word.rstrip(",") for words in lines for word in words}


def test_ls_formats_says_the_precisions_and_the_runtime():
    assert ["litert_compiled", "tflite"] in [words[:2] for words in lines_of("engines")]
    (row,) = [words for words in lines_of("formats") if words[:1] == ["onnx"]]
    assert row[1:3] == [".onnx", "float32,"] and {"int8,", "int8_dynamic,"} & set(row)
    assert "onnxruntime," in row


def test_ls_schemes_says_who_rounds_into_which_files():
    rows = {words[0]: words[1:8] for words in lines_of("schemes") if len(words) > 6}
    assert rows["int8"] == ["8", "bits", "8", "bits", ".tflite,", ".onnx", ".tflite"]
    assert rows["int16x8"][:6] == ["8", "bits", "16", "bits", "-", ".tflite"]
    assert rows["w4a8"][4:7] == [".tflite,", ".onnx", "-"]


def test_ls_recipes_gives_the_first_sentence_of_the_head():
    Path("recipes").mkdir()
    Path("recipes/a.yaml").write_text("#!/usr/bin/env -S kpipe run\n# Toys: small\n# ones. And more.\nname: a\n")
    assert ["recipes/a.yaml", "Toys:", "small", "ones."] in lines_of("recipes")


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
    assert "says of itself:" in output and 'precision: "float32"' in output
    shown = json.loads(output_of("show", "small.tflite", "--json"))
    assert shown["nodes"][0]["name"] == "FULLY_CONNECTED" and shown["metadata"]["model"] == "small"
    code, output = call("show", "small.keras", "--json")
    assert code == 2 and "--json is for" in output
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
    for name in ("a.tflite", "b.onnx"):
        shown = re.search(rf"{re.escape(name)} (?:litert|onnxruntime) ([\d.]+) ", output)
        assert shown and float(shown[1]) == pytest.approx(Path(name).stat().st_size / 1000, rel=0.005)
    code, output = call("bench", "absent.tflite")
    assert code == 2
    assert "There is no file absent.tflite" in output


def test_bench_for_scripts(model):
    export(model, "a.tflite")
    export(model, "b.onnx")
    code, _ = call("bench", "a.tflite", "b.onnx", "--runs", "5", "--json", "--compare", "--per-op")
    assert code == 0
    found = json.loads(output_of("bench", "a.tflite", "b.onnx", "--runs", "5", "--json", "--compare", "--per-op"))
    assert [file["engine"] for file in found["files"]] == ["litert", "onnxruntime"]
    for file in found["files"]:
        assert file["bytes"] == Path(file["path"]).stat().st_size > file["gzip_bytes"] > 0 < file["zstd_bytes"]
        assert file["cold"]["load_ms"] > 0 and file["operations"] and file["median_ms"] > 0
    assert found["compared"][1]["max_relative_error"] < 1e-5
    plain = json.loads(output_of("bench", "a.tflite", "--runs", "5", "--json", "--no-cold"))
    assert plain["files"][0]["cold"] is None and "compared" not in plain


def output_of(*words):
    return CliRunner().invoke(app, list(words)).stdout


def test_bench_tables_of_engines_ratios_and_operations(model):
    export(model, "a.tflite")
    words = ["a.tflite", "--runs", "5", "--engine", "litert", "--engine", "litert_builtin"]
    code, output = call("bench", *words, "--compare", "--per-op")
    assert code == 0
    for title in ("Engine", "load", "first", "MB", "compared with a.tflite", "Outputs differ", "Same argmax", "Share"):
        assert title in output
    assert output.count("FULLY_CONNECTED") == 2 and "a.tflite in litert_builtin" in output
    code, output = call("bench", "a.tflite", "--engine", "litter")
    assert code == 2 and "Did you mean 'litert'?" in output


def test_bench_runs_one_of_several_signatures(model):
    files = {name: export(model, f"{name}.tflite") for name in ("one", "two")}
    join_signatures(files, "both.tflite")
    code, output = call("bench", "both.tflite", "--runs", "3", "--no-cold", "--signature", "two")
    assert code == 0 and "both.tflite" in output
    code, output = call("bench", "both.tflite", "--runs", "3", "--no-cold")
    assert code == 2 and "one, two" in output and "signature" in output
    code, output = call("show", "both.tflite")
    assert code == 0 and "one/" in output and "two/" in output


def test_bench_compares_each_file_with_the_first():
    Path("m.tflite").touch()
    timed = [latency(0.5, 0.75), latency(0.125, 0.25)]
    assert [(row["ms"], row["ms p90"], row["Faster"]) for row in rows(timed)] == [
        ("0.500", "0.750", "1.00×"),
        ("0.125", "0.250", "4.00×"),
    ]


def latency(median, p90):
    return Latency(Path("m.tflite"), median, p90, median, median, p90, threads=1, runs=5, warmup=1, repeats=1)


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
    assert "Did you mean 'run'?" in output
    code, output = call("zzzzzz")
    assert code == 2
    assert "Did you mean" not in output


def test_the_version():
    code, output = call("--version")
    assert code == 0
    assert output == f"kpipe {version('kpipe')}"


@pytest.mark.parametrize("name", ["kpipe", "kpipe_cli.py", "__main__.py"])
def test_the_program_is_called_kpipe_however_it_was_started(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "run", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Usage: kpipe run [OPTIONS]" in capsys.readouterr().out
