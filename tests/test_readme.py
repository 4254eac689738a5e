"""The README's blocks, as a reader would type them."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import kpipe
from kpipe.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent


def blocks(language, page="README.md"):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run(page):
    """Run the Python blocks of a page in one namespace, and give it."""
    names = {}
    for block in blocks("python", page):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.slow
def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = run("README.md")
    printed = capsys.readouterr().out
    assert "conv1" in printed and "macs:" in printed

    sparse, model, small = names["sparse"], names["model"], names["small"]
    kernel = np.asarray(sparse.get_layer("conv3").kernel)
    assert np.count_nonzero(kernel == 0) == round(0.8 * kernel.size)
    for layer in names["clustered"].layers:
        for value, before in zip(layer.get_weights(), sparse.get_layer(layer.name).get_weights(), strict=True):
            if value.ndim > 1:
                assert len(np.unique(value)) <= 16 and ((value == 0) == (before == 0)).all()
    assert kpipe.measure(small).macs <= 0.4 * kpipe.measure(model).macs
    assert names["smaller"].count_params() < model.count_params()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("small.tflite", "small.onnx", "small_f16.tflite", "small_w8.onnx", "small_w4.tflite", "small_16.tflite"),
    }
    assert (tmp_path / "small.tflite").stat().st_size < (tmp_path / "small_f16.tflite").stat().st_size


@pytest.mark.slow
def test_the_page_on_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = run("docs/weight_pruning.md")
    assert "of the weights are left" in capsys.readouterr().out
    for net, expected in (("looped", 0.8), ("plain", 0.5), ("net", 1 - 0.7**3)):
        for layer in names[net].layers:
            if layer.get_weights() and "kernel" in layer.weights[0].path:
                kernel = layer.get_weights()[0]
                assert abs((kernel == 0).mean() - expected) <= 2 / kernel.size, (net, layer.name)


@pytest.mark.slow
def test_the_page_on_channels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = run("docs/structured_pruning.md")
    assert "[2, 2]" in capsys.readouterr().out
    model = names["model"]
    for smaller in ("small", "careful", "smaller"):
        assert kpipe.measure(names[smaller]).macs < kpipe.measure(model).macs, smaller
    assert len(names["shallow"].layers) < len(names["transformer"].layers)
    (stage,) = yaml.safe_load(blocks("yaml", "docs/structured_pruning.md")[0])
    recipe = yaml.safe_load(blocks("yaml")[0])
    recipe["stages"][1] = stage
    assert parse_recipe(recipe, ROOT).stages[1].stage == "prune_filters"


@pytest.mark.slow
def test_the_page_on_quantization(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = run("docs/quantization.md")
    *agreements, figures = capsys.readouterr().out.splitlines()[:6]  # those of five files come first
    assert [" dB below the float model's outputs" in line for line in agreements] == [False] * 3 + [True] * 2
    plain, better = figures.split()
    assert float(better) < 0.8 * float(plain)
    assert float(names["quantized"].layers[1].left) == 0
    assert names["plan"].value >= names["plan"].baseline - 0.005
    (stage,) = yaml.safe_load(blocks("yaml", "docs/quantization.md")[0])
    recipe = yaml.safe_load(blocks("yaml")[0])
    recipe["stages"][3] = stage
    assert parse_recipe(recipe, ROOT).stages[3].stage == "quantize"


def test_the_yaml_block_is_a_valid_recipe(tmp_path):
    (recipe,) = blocks("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(recipe)
    assert [stage.stage for stage in load_recipe(path).stages] == [
        "train", "prune_filters", "prune_weights", "quantize", "export",
    ]  # fmt: skip


def test_commands_are_those_of_the_command_line():
    from kpipe.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    shown = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("kpipe ")}
    assert shown and shown <= known
