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
        assert effect.smaller_zstd == pytest.approx(before["zstd_bytes"] / after["zstd_bytes"])
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
        "Made the file only smaller once compressed: 03-prune_weights (gzip 1.98×, zstd 1.98×).",
    ]
    for figure in ("median_ms", "p90_ms"):
        metrics["stages"][2]["files"][0]["latency"][figure] /= 3
    assert "03-prune_weights" in turning_points(record(metrics))[0]
    metrics["stages"][3]["files"][0]["latency"]["median_ms"] = 0.0309 / 3
    assert turning_points(record(metrics))[1] == "Made the file only smaller: 04-quantize (3.31×)."


def test_what_changed_a_file_is_told_with_where_it_pays(metrics):
    sentences = {effect.stage: effect.sentence for effect in effects(record(metrics))}
    assert sentences == {
        "02-prune_filters": "made the file 3.74× smaller and 2.39× faster (parameters 93,322 → 24,170)",
        "03-prune_weights": "left size and speed as they were; only the compressed file is 1.98× smaller with gzip and "
        "1.98× smaller with zstd (zeros 0 % → 60.0 %, which pay only compressed)",
        "04-quantize": "made the file 3.31× smaller and 1.90× faster (float32 → int8)",
        "05-export": "left size and speed as they were",
    }
    metrics["stages"][2]["stage"] = "cluster_weights"
    assert "a few values, which pay only compressed" in effects(record(metrics))[1].sentence


def test_a_speed_within_the_scatter_of_single_runs_is_uncertain(metrics):
    """The second stage is 0.0742 / 0.0311 = 2.39 times as fast; its single runs scatter by less, or by more."""
    latency = metrics["stages"][1]["files"][0]["latency"]
    for p90, uncertain in ((2.3 * latency["median_ms"], False), (2.5 * latency["median_ms"], True)):
        latency["p90_ms"] = p90
        run = record(metrics)
        assert effects(run)[0].uncertain == uncertain
        assert ("within the scatter of single runs" in effects(run)[0].sentence) == uncertain
        told = [line for line in turning_points(run) if "02-prune_filters (2.39×)" in line]
        assert [line.startswith("Made the file perhaps faster") for line in told] == [uncertain]


def test_a_run_of_before_zstd_was_measured_says_nothing_of_it(metrics):
    for stage in metrics["stages"]:
        for file in stage["files"]:
            del file["zstd_bytes"]
    told = " ".join([*turning_points(record(metrics)), *(effect.sentence for effect in effects(record(metrics)))])
    assert "gzip 1.98×" in told and "zstd" not in told
