"""The drawing of a schedule holds what was asked for and what was reached, at their places."""

import re

import numpy as np
import pytest

from kpipe.report import report
from kpipe.report.record import record
from kpipe.report.schedules import schedules_over_steps, ways

REACHED = [[0, 0.0], [10, 0.25], [20, 0.5], [30, 0.59]]
ASKED = [[step, min(0.6, 0.02 * step)] for step in range(0, 41, 5)]


@pytest.fixture
def noted(metrics):
    metrics["stages"][2]["details"]["schedules"] = [
        {"weights": "all", "schedule": "LinearSparsity(...)", "updates": 4, "asked": ASKED, "reached": REACHED}
    ]
    return metrics


def drawing_of(metrics):
    ((title, text, svg),) = schedules_over_steps(record(metrics))
    return title, text, svg


def dots(svg):
    """Read the places (x, y) of the dots, y upwards; the last one is the legend's."""
    found = re.findall(r'<use href="#[^"]+" x="([\d.]+)" y="([\d.]+)"[^>]*style="fill: var\(--second\)', svg)
    return np.array([(float(x), -float(y)) for x, y in found])[: len(REACHED)]


def distance(places, points):
    """Give how far the dots are from where a straight scale puts the points, in pixels."""
    away = 0.0
    for axis, values in enumerate(np.array(points).T):
        slope, offset = np.polyfit(values, places[:, axis], 1)
        away = max(away, np.abs(slope * values + offset - places[:, axis]).max())
    return away


def test_each_update_lies_where_it_was_reached(noted):
    title, text, svg = drawing_of(noted)
    assert title == "03-prune_weights: zeros." and "in 4 updates" in text
    assert distance(dots(svg), REACHED) < 0.01
    wrong = [[step, 0.6 if step == 20 else sparsity] for step, sparsity in REACHED]
    assert distance(dots(svg), wrong) > 1
    assert "59.0 %" in svg and "asked for" in svg and "Optimizer updates" in svg


def test_a_drawing_takes_its_colours_from_the_page_and_its_ids_from_its_name(noted):
    _, _, svg = drawing_of(noted)
    assert set(re.findall(r"#[0-9a-f]{6}\b(?=[;\"\s])", svg)) == set()
    assert all(found.startswith("schedule-03-prune-weights") for found in re.findall(r'\bid="([^"]+)"', svg))


def test_each_of_several_sets_of_weights_has_its_drawing(noted):
    stage = noted["stages"][2]["details"]
    (one,) = stage["schedules"]
    stage["schedules"] = [one | {"weights": "conv"}, one | {"weights": "a/very|long.*", "reached": [], "updates": 0}]
    first, second = schedules_over_steps(record(noted))
    assert (first[0], second[0]) == ("03-prune_weights: zeros of conv.", "03-prune_weights: zeros of a/very|long.*.")
    assert "59.0 %" in first[2] and "60.0 %" in second[2] and "in 0 updates" in second[1]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for _, _, svg in (first, second)]
    assert not ids[0] & ids[1]
    stage["schedules"] *= 4
    drawn = schedules_over_steps(record(noted))
    assert len(drawn) == 6 and ["2 more sets of weights are not drawn" in text for _, text, _ in drawn] == [
        False
    ] * 5 + [True]


def test_channels_are_called_channels(noted):
    noted["stages"][1]["details"] = noted["stages"][2].pop("details")
    title, _, svg = drawing_of(noted)
    assert title == "02-prune_filters: channels removed." and "Channels removed" in svg


def test_the_page_shows_the_drawing_and_the_tables_leave_the_points_out(noted, write):
    folder = write(noted)
    report(folder)
    html, text = (folder / "report.html").read_text("utf-8"), (folder / "report.md").read_text("utf-8")
    assert html.count('id="schedule-03-prune-weights-') > 5
    assert "What the schedule asks for, and what was reached in 4 updates." in html
    assert "| weights | schedule | updates |" in text and "LinearSparsity" in text
    assert "9 values" not in text + html


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "text",
        [],
        [None],
        [{}],
        [{"asked": [[0, 0.0]]}],
        [{"asked": "text"}],
        [{"asked": [[0, None], [1, "a"], [2], [3, float("nan")], 4]}],
    ],
)
def test_a_stage_without_points_has_no_drawing(metrics, broken):
    metrics["stages"][2]["details"]["schedules"] = broken
    run = record(metrics)
    assert ways(run.stages[2]) == [] and schedules_over_steps(run) == []


def test_a_run_without_histories_shows_its_schedules(noted, write):
    for stage in noted["stages"]:
        stage["history"] = {}
    folder = write(noted)
    report(folder)
    assert "03-prune_weights: zeros." in (folder / "report.html").read_text("utf-8")
