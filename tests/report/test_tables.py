"""The rows that the command line prints."""

import pytest

from kpipe.errors import KpipeError
from kpipe.report.details import details_tables
from kpipe.report.record import record
from kpipe.report.tables import layer_table, result_table


def test_rows_have_the_same_columns_in_the_same_order(metrics):
    rows = result_table(metrics)
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert list(rows[3].values()) == [
        "04-quantize",
        "97.22 %",
        "0.56",
        "24,170",
        "9,706",
        "391 k",
        "tflite int8",
        "30.5",
        "15.9",
        "15.1",
        "0.0163",
        "0.0196",
        "6.6",
    ]


def test_the_format_of_the_baseline_is_the_one_compared(metrics):
    for stage in metrics["stages"][:2]:
        stage["files"] = stage["files"][1:]
    assert {row["File"].split()[0] for row in result_table(metrics)} == {"onnx"}


def test_a_drop_is_counted_from_the_baseline_that_the_summary_names(metrics):
    metrics["summary"] = {"baseline": "02-prune_filters"}
    assert [row["Drop, points"] for row in result_table(metrics)] == ["−0.28", "0.00", "0.28", "0.28", "0.28"]


def test_a_file_says_how_many_samples_it_takes_and_how_it_steps_through_sequences(metrics):
    metrics["stages"][0]["files"][0] |= {"batch": 1, "recurrent": None}
    metrics["stages"][1]["files"][0] |= {"batch": None, "recurrent": "unrolled"}
    metrics["stages"][2]["files"][0] |= {"batch": 8, "recurrent": "loop"}
    kinds = [row["File"] for row in result_table(metrics)]
    assert kinds[:4] == ["tflite float32", "tflite float32 unrolled", "tflite float32 loop batch 8", "tflite int8"]


def test_what_is_no_metrics_is_refused():
    with pytest.raises(KpipeError, match="stages"):
        result_table({"name": "digits"})


def test_layers_are_those_of_the_last_float_model(metrics):
    metrics["stages"][3]["measure"]["layers"][0]["layer"] = "conv1_bn1"  # what quantization folded
    rows = {row["Layer"]: row for row in layer_table(record(metrics))}
    assert "conv1_bn1" not in rows
    assert list(rows["conv1"].values())[2:] == ["32", "16", "160", "64", "66.7 %", "1.44 k"]
    metrics["stages"][2]["artifact"]["kind"] = "quantized"
    assert {row["Layer"]: row for row in layer_table(record(metrics))}["conv1"]["Nonzeros"] == "160"


def test_details_of_any_shape_become_tables(metrics):
    plan = {"ratio": None, "target": {"macs": 0.5}, "groups": [{"name": "conv1", "removed": [1, 2]}, {"name": "b"}]}
    metrics["stages"][1]["details"] = {"plan": plan, "steps": 120}
    noted, flat, groups = details_tables(record(metrics).stages[1])
    assert noted == ("Noted", [{"Name": "steps", "Value": "120"}])
    assert flat == ("plan", [{"Name": "ratio", "Value": "–"}, {"Name": "target: macs", "Value": "0.500"}])
    assert groups == ("plan: groups", [{"name": "conv1", "removed": "1, 2"}, {"name": "b", "removed": "–"}])
