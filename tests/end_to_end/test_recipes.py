"""Every recipe of the project runs, in a tiny form."""

import os
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import kpipe.models
from kpipe.data import load
from kpipe.pipeline import STAGES
from kpipe.recipe import load_recipe, parse_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


SHAPES = {
    "mnist": (28, 28),
    "fashion_mnist": (28, 28),
    "cifar10": (32, 32, 3),
    "spoken_digits_logmel": (61, 40),
    "japanese_vowels": (29, 12),
}


def draw(folder: Path) -> None:
    """Write noise in the shapes of the data that recipes name: tests download nothing."""
    rng = np.random.default_rng(0)
    labels = (np.arange(360) % 9).astype("uint8")
    for name, shape in SHAPES.items():
        x = rng.integers(0, 256, (360, *shape), dtype="uint8")
        x = x if len(shape) == 3 or shape[0] == shape[1] else x.astype("float32") / 255
        np.savez(folder / name, x_train=x[:200], y_train=labels[:200], x_test=x[200:], y_test=labels[200:])
    for part in ("train", "test"):
        rows = [f"{' '.join(rng.choice(list('abcdefgh'), 5))},class{number % 7}" for number in range(200)]
        (folder / f"snips_{part}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_an_executable_file_that_says_what_it_does(path, tmp_path, monkeypatch):
    draw(tmp_path)
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "#!/usr/bin/env -S kpipe run"
    assert second.startswith("# ")
    assert os.access(path, os.X_OK)
    assert load_recipe(path).name == path.stem


TINY = {
    "resnet": {"depth": 8, "filters": 8},
    "gru": {"units": 8},
    "text_transformer": {"width": 16, "heads": 2, "blocks": 2},
}
"""Model of a recipe -> what makes it small."""


LEAST = {"spoken_digits_pcqat": 1.8, "japanese_vowels": 1, "snips": 1}
"""How many times smaller the tiny form of a recipe at least becomes, where 3 is too much to ask of so small a net: of
the last two, which stay in float, most of the file is its graph."""


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_in_a_tiny_form(path, tmp_path, monkeypatch):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    draw(tmp_path)
    for name, arguments in TINY.items():
        monkeypatch.setattr(kpipe.models, name, partial(getattr(kpipe.models, name), **arguments))
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    document["data"] |= {"limit": 128, "calibration_samples": 64}
    for stage in document["stages"]:
        if stage.get("epochs"):
            stage["epochs"] = 1
        for schedule in stage.get("schedule", {}).values():
            schedule |= {"end_epoch": 1, "frequency": 1}
        if stage["stage"] == "export":
            stage["max_accuracy_drop"] = None  # a net that has hardly trained has no accuracy to lose
    metrics = parse_recipe(document, path.parent).run(tmp_path / "run")
    assert [entry["stage"] for entry in metrics["stages"]] == [stage["stage"] for stage in document["stages"]]
    assert all(entry["stage"] in STAGES for entry in metrics["stages"])
    assert all((tmp_path / "run" / file["path"]).is_file() for file in metrics["delivery"])
    assert metrics["summary"]["smaller"] > LEAST.get(path.stem, 3)


@pytest.mark.slow
def test_pruning_in_ones_own_fit_runs_on_a_few_samples(tmp_path, monkeypatch, capsys):
    digits = load("digits")
    few = replace(
        digits, **{split: tuple(part[:480] for part in getattr(digits, split)) for split in ("train", "test")}
    )
    monkeypatch.setattr("kpipe.data.load", lambda source: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prune_in_fit.py"])
    runpy.run_path(str(FOLDER / "prune_in_fit.py"), run_name="__main__")
    made = tmp_path / "exported" / "prune_in_fit"
    assert sorted(path.name for path in made.iterdir()) == ["dense.tflite", "sparse.keras", "sparse.tflite"]
    for layer in keras.models.load_model(made / "sparse.keras").layers:
        if layer.weights:
            kernel = np.asarray(layer.kernel)
            assert np.count_nonzero(kernel == 0) == round(0.8 * kernel.size)
    assert "sparse: test accuracy" in capsys.readouterr().out
