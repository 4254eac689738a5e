"""Every recipe of the project runs, in a tiny form."""

import os
from pathlib import Path

import pytest
import yaml

from kpipe.pipeline import STAGES
from kpipe.recipe import load_recipe, parse_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_an_executable_file_that_says_what_it_does(path):
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "#!/usr/bin/env -S kpipe run"
    assert second.startswith("# ")
    assert os.access(path, os.X_OK)
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_in_a_tiny_form(path, tmp_path):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = document["data"]["source"]
    if source != "digits" and not (Path(os.environ.get("KPIPE_DATA", "/nowhere")) / f"{source}.npz").is_file():
        pytest.skip(f"{source}.npz is not in the folder of KPIPE_DATA, and tests download nothing")
    document["data"] |= {"limit": 128, "calibration_samples": 64}
    for stage in document["stages"]:
        if stage.get("epochs"):
            stage["epochs"] = 1
        if stage["stage"] == "export":
            stage["max_accuracy_drop"] = None  # a net that has hardly trained has no accuracy to lose
    metrics = parse_recipe(document, path.parent).run(tmp_path / "run")
    assert [entry["stage"] for entry in metrics["stages"]] == [stage["stage"] for stage in document["stages"]]
    assert all(entry["stage"] in STAGES for entry in metrics["stages"])
    assert all((tmp_path / "run" / file["path"]).is_file() for file in metrics["delivery"])
    assert metrics["summary"]["smaller"] > 5
