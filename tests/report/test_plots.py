"""The drawings hold the figures of the run at their places, and keep to the page's own colours."""

import re
from typing import Any

import numpy as np
import pytest

from kpipe.report.plots import (
    accuracy_against_latency,
    accuracy_against_size,
    channels,
    channels_per_layer,
    sparsity_per_layer,
    training_curves,
)
from kpipe.report.record import record

DRAWINGS = {
    "size": accuracy_against_size,
    "latency": accuracy_against_latency,
    "channels": channels_per_layer,
    "sparsity": sparsity_per_layer,
}


def drawn(name: str, metrics: dict[str, Any]) -> str:
    """Draw one drawing that is there to be drawn."""
    svg = DRAWINGS[name](record(metrics))
    assert svg is not None
    return svg


def markers(svg: str) -> np.ndarray:
    """Read the places (x, y) of the markers that stand alone, drawn by `use`, y upwards."""
    found = re.findall(r'<use href="#[^"]+" x="([\d.]+)" y="([\d.]+)"', svg)
    return np.array([(float(x), -float(y)) for x, y in found])


def test_the_path_lies_where_size_and_accuracy_say(metrics):
    for stage in metrics["stages"]:
        stage["files"] = stage["files"][:1]
        stage["config"] = {}
    places = markers(drawn("size", metrics))[-5:]
    sizes = np.log([stage["files"][0]["bytes"] for stage in metrics["stages"]])
    accuracies = np.array([stage["files"][0]["accuracy"] for stage in metrics["stages"]])
    for axis, values in enumerate((sizes, accuracies)):
        slope, offset = np.polyfit(values, places[:, axis], 1)
        assert slope > 0
        assert np.abs(slope * values + offset - places[:, axis]).max() < 0.01
    assert np.abs(np.polyval(np.polyfit(sizes[::-1], places[:, 0], 1), sizes[::-1]) - places[:, 0]).max() > 1


@pytest.mark.parametrize("name", ["size", "latency"])
def test_each_stage_is_named_in_the_path(metrics, name):
    svg = drawn(name, metrics)
    for stage in metrics["stages"]:
        assert stage["name"] in svg
    assert "LiteRT" in svg and "ONNX" in svg


@pytest.mark.parametrize("name", list(DRAWINGS))
def test_a_drawing_takes_its_colours_from_the_page_and_its_ids_from_its_name(metrics, name):
    svg = drawn(name, metrics)
    assert set(re.findall(r"#[0-9a-f]{6}\b(?=[;\"\s])", svg)) == set()
    assert "var(--ink)" in svg and "var(--first)" in svg
    assert all(found.startswith(name) for found in re.findall(r'\bid="([^"]+)"', svg))
    assert "http" not in svg
    assert not re.search(r"<svg[^>]*\b(width|height)=", svg)


def test_labels_do_not_cover_one_another(metrics):
    from matplotlib.figure import Figure

    from kpipe.report.svg import place_labels

    axes = Figure(figsize=(5, 4)).subplots()
    points = [(0.5 + 0.004 * index, 0.5 + 0.06 * (index % 3)) for index in range(6)]
    place_labels(axes, [(x, y, f"stage number {index}") for index, (x, y) in enumerate(points)], points)
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    overlaps = [a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index]]
    assert len(boxes) > 2 and not any(overlaps)
    axes.annotate("stage number 0", points[0])
    axes.annotate("stage number 0", points[0])
    assert axes.texts[-1].get_window_extent().overlaps(axes.texts[-2].get_window_extent())


def test_channels_go_from_the_first_to_the_last_float_model(metrics):
    kept = channels(record(metrics))
    assert kept == [
        ("conv1", 32, 16),
        ("conv2", 64, 28),
        ("a_long_layer_name_of_a_third_convolution", 64, 36),
        ("dense", 128, 64),
        ("logits", 10, 10),
    ]
    del metrics["stages"][2]["measure"]["layers"][2]
    assert channels(record(metrics))[1] == ("conv2", 64, 0)


def test_the_bars_are_labelled_with_what_was_counted(metrics):
    svg = drawn("channels", metrics)
    for label in ("16 of 32", "28 of 64", "36 of 64", "64 of 128", "10 of 10"):
        assert label in svg
    svg = drawn("sparsity", metrics)
    for layer in metrics["stages"][-1]["measure"]["layers"]:
        if layer["kind"] in ("Conv2D", "Dense"):
            assert f"{100 * (1 - layer['kernel_nonzeros'] / layer['kernel_params']):.1f} %" in svg


def test_nothing_is_drawn_where_nothing_changed(metrics):
    first = metrics["stages"][0]["measure"]
    for stage in metrics["stages"]:
        stage["measure"] = first
        stage["history"] = {}
    run = record(metrics)
    assert channels_per_layer(run) is None
    assert sparsity_per_layer(run) is None
    assert training_curves(run) == []
    assert channels_per_layer(record(metrics | {"stages": metrics["stages"][:1]})) is None
    assert accuracy_against_size(record(metrics | {"stages": []})) is None


def test_curves_run_over_all_stages_for_accuracy_and_loss(metrics):
    metrics["stages"][1]["history"]["learning_rate"] = [0.1, 0.1, 0.1]
    metrics["stages"][2]["history"]["loss"][1] = None
    curves = training_curves(record(metrics))
    assert [name for name, _ in curves] == ["accuracy", "loss"]
    epochs = sum(len(stage["history"].get("val_accuracy", ())) for stage in metrics["stages"])
    assert len(markers(curves[0][1])) >= 2 * epochs
    assert "training" in curves[0][1] and "validation" in curves[0][1]
