"""What the sentences of a report claim follows from the figures, and changes with them."""

import pytest

from kpipe.report.findings import effects, headline, shortfalls, turning_points
from kpipe.report.record import record


def test_the_headline_is_the_summary_s(metrics):
    assert [(one.figure, one.title, one.detail) for one in headline(record(metrics))] == [
        ("12.4×", "smaller", "379 → 30.5 KB"),
        ("4.52×", "faster", "0.0742 → 0.0164 ms"),
        ("0.56", "points of accuracy lost", "97.78 % → 97.22 %"),
    ]


def test_the_headline_follows_the_file_that_the_summary_names(metrics):
    metrics["summary"]["file"] = "digits.onnx"
    assert headline(record(metrics))[0].detail == "376 → 33.4 KB"


def test_a_loss_is_told_as_a_loss(metrics):
    metrics["summary"].update(smaller=0.5, faster=0.8, accuracy_drop=-0.01)
    assert [(one.figure, one.title) for one in headline(record(metrics))] == [
        ("2.00×", "bigger"),
        ("1.25×", "slower"),
        ("+1.00", "points of accuracy gained"),
    ]


def test_a_run_that_reached_its_goals_has_no_shortfall(metrics):
    assert shortfalls(record(metrics)) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"smaller": 0.8}, "is not smaller than the baseline's: it is 1.25× bigger"),
        ({"faster": 0.5}, "is not faster than the baseline's: it is 2.00× slower"),
        ({"faster": 1.0}, "is not faster than the baseline's: it is just the same"),
        ({"accuracy_drop": 0.0125}, "Accuracy fell by 1.25 points; the recipe allows 1.00."),
    ],
)
def test_a_goal_that_was_missed_is_told(metrics, change, expected):
    metrics["summary"].update(change)
    assert len(told := shortfalls(record(metrics))) == 1
    assert expected in told[0]


def test_a_target_that_was_missed_is_told(metrics):
    metrics["stages"][1]["measure"]["macs"] = round(0.62 * metrics["stages"][0]["measure"]["macs"])
    assert shortfalls(record(metrics)) == ["02-prune_filters was to leave 50.0 % of the MACs and left 62.0 %."]


def test_each_stage_is_told_by_its_own_ratios(metrics):
    found = effects(record(metrics))
    files = [stage["files"][0] for stage in metrics["stages"]]
    for effect, before, after in zip(found, files, files[1:], strict=False):
        assert effect.smaller == pytest.approx(before["bytes"] / after["bytes"])
        assert effect.smaller_gzip == pytest.approx(before["gzip_bytes"] / after["gzip_bytes"])
        assert effect.faster == pytest.approx(before["latency"]["median_ms"] / after["latency"]["median_ms"])
        assert effect.drop == pytest.approx(before["accuracy"] - after["accuracy"])
    assert [effect.stage for effect in found] == [stage["name"] for stage in metrics["stages"][1:]]


def test_a_format_has_ratios_of_its_own(metrics):
    metrics["stages"][3]["files"][1]["latency"]["median_ms"] = metrics["stages"][2]["files"][1]["latency"]["median_ms"]
    assert "04-quantize (1.90×)" in turning_points(record(metrics), "tflite")[0]
    faster, smaller, _ = turning_points(record(metrics), "onnx")
    assert "04-quantize" not in faster
    assert "04-quantize (2.96×)" in smaller


def test_scattered_zeros_and_cut_filters_are_told_apart(metrics):
    assert turning_points(record(metrics)) == [
        "Made the file faster: 02-prune_filters (2.39×), 04-quantize (1.90×).",
        "Made the file only smaller once compressed: 03-prune_weights (1.98×).",
    ]
    metrics["stages"][2]["files"][0]["latency"]["median_ms"] /= 3
    assert "03-prune_weights" in turning_points(record(metrics))[0]
    metrics["stages"][3]["files"][0]["latency"]["median_ms"] = 0.0309 / 3
    assert turning_points(record(metrics))[1] == "Made the file only smaller: 04-quantize (3.31×)."
