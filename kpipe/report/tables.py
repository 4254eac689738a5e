"""The tables of a report, as rows of text: one place for the command line, the markdown and the page."""

import re
from collections.abc import Mapping
from typing import Any

from kpipe.report.details import Row, facts_table, single, words, written
from kpipe.report.record import FileRecord, RunRecord, StageRecord, number, record
from kpipe.report.units import (
    DASH,
    count,
    kilobytes,
    milliseconds,
    percent,
    plain,
    points,
    scaled,
    seconds,
    share,
    times,
)

FORMAT_NAMES = {"tflite": "LiteRT", "onnx": "ONNX"}
FIGURE = re.compile(r"–|NaN|−?(∞|[\d,.]+(e[−+]\d+)?)×?( [kMG%])?")


def quotient(before: float | None, after: float | None) -> float | None:
    """Give how many times smaller `after` is than `before`, None where a figure is missing or zero.

    Example:
        >>> quotient(12, 3), quotient(None, 3), quotient(12, 0)
        (4.0, None, None)
    """
    return before / after if before is not None and after else None


def accuracy(stage: StageRecord, file: FileRecord | None) -> float | None:
    """Give the accuracy on the exported file where it was measured, else that of the Keras model."""
    return file.accuracy if file is not None and file.accuracy is not None else stage.accuracy


def baseline_accuracy(run: RunRecord) -> float | None:
    """Give the accuracy that drops are counted from: the summary's, else the baseline stage's own."""
    named = number(run.summary.get("accuracy_baseline"))
    if named is not None or run.baseline is None:
        return named
    return accuracy(run.baseline, run.baseline.file(run.format))


def drop(run: RunRecord, value: float | None) -> float | None:
    """Give how far an accuracy lies below the baseline's, as a fraction."""
    before = baseline_accuracy(run)
    return None if before is None or value is None else before - value


def result_table(metrics: Mapping[str, Any]) -> list[Row]:
    """Give the result of a run, one row a stage.

    The file figures are those of the stage's first file in the format in which the baseline was exported (LiteRT where
    there is one), so that they compare along the rows.

    Args:
        metrics: The content of a run's `metrics.json`.

    Returns:
        Rows with the same columns in the same order: column title -> text. A missing figure is a dash.

    Raises:
        KpipeError: `metrics` has no list of stages.

    Example:
        >>> file = {"path": "model.tflite", "format": "tflite", "bytes": 48264, "latency": {"median_ms": 0.042}}
        >>> rows = result_table({"stages": [{"name": "01-train", "metrics": {"accuracy": 0.975}, "files": [file]}]})
        >>> rows[0]["Accuracy"], rows[0]["KB"], rows[0]["ms"], rows[0]["MACs"]
        ('97.50 %', '48.3', '0.0420', '–')
    """
    return run_table(record(metrics))


def run_table(run: RunRecord) -> list[Row]:
    """Give the rows of `result_table` for a record."""
    return [_result(run, stage) for stage in run.stages]


def _result(run: RunRecord, stage: StageRecord) -> Row:
    file = stage.file(run.format)
    return {
        "Stage": stage.name,
        **_quality(run, stage, file),
        "Params": count(stage.params),
        "Nonzeros": count(stage.nonzeros),
        "MACs": scaled(stage.macs),
        "File": _kind(file),
        "KB": kilobytes(file and file.bytes),
        "KB gzip": kilobytes(file and file.gzip_bytes),
        "KB zstd": kilobytes(file and file.zstd_bytes),
        "ms": milliseconds(file and file.median_ms),
        "ms p90": milliseconds(file and file.p90_ms),
        "Seconds": seconds(stage.seconds),
    }


def _quality(run: RunRecord, stage: StageRecord, file: FileRecord | None) -> Row:
    """Give the accuracy and its drop; the loss where no stage of the run has an accuracy."""
    known = [accuracy(one, one.file(run.format)) for one in run.stages]
    if any(value is not None for value in known) or all(one.loss is None for one in run.stages):
        reached = accuracy(stage, file)
        return {"Accuracy": percent(reached), "Drop, points": points(drop(run, reached))}
    return {"Loss": plain(stage.loss)}


def _kind(file: FileRecord | None) -> str:
    if file is None:
        return DASH
    batch = f"batch {file.batch}" if file.batch is not None and file.batch > 1 else None
    return " ".join(word for word in (file.format, file.precision, file.recurrent, batch) if word) or DASH


def _file_row(run: RunRecord, path: str, file: FileRecord) -> Row:
    before = run.baseline.file(file.format) if run.baseline else None
    return {
        "File": path,
        "Kind": _kind(file),
        "Bytes": count(file.bytes),
        "KB": kilobytes(file.bytes),
        "KB gzip": kilobytes(file.gzip_bytes),
        "KB zstd": kilobytes(file.zstd_bytes),
        "Smaller": times(quotient(before and before.bytes, file.bytes)),
        "ms": milliseconds(file.median_ms),
        "ms p90": milliseconds(file.p90_ms),
        "Faster": times(quotient(before and before.median_ms, file.median_ms)),
        "Accuracy": percent(file.accuracy),
        "Drop, points": points(drop(run, file.accuracy)),
    }


def delivery_table(run: RunRecord) -> list[Row]:
    """Give the delivered files, one row each; Smaller and Faster are against the baseline's file of the same format."""
    return [_file_row(run, file.path, file) for file in run.delivery]


def file_table(run: RunRecord) -> list[Row]:
    """Give every file that any stage exported, one row each."""
    return [_file_row(run, f"{stage.name}/{file.path}", file) for stage in run.stages for file in stage.files]


def agreement_table(run: RunRecord) -> list[Row]:
    """Give how far the answers of the delivered files are from the Keras model's, one row a file."""
    figures = [(name, value) for file in run.delivery for name, value in file.agreement.items() if single(value)]
    names = dict.fromkeys(name for name, value in figures if value is not None)
    rows = [(file, {words(name): written(name, file.agreement.get(name)) for name in names}) for file in run.delivery]
    return [{"File": file.path, **row} for file, row in rows] if names else []


def layer_table(run: RunRecord) -> list[Row]:
    """Give the layers of the last float model that hold parameters, one row each, beside the first model's width.

    Quantization folds layers into one another and renames them, so its model does not compare layer by layer.
    """
    measured = run.measured()
    before = {layer.layer: layer.channels for layer in measured[0].layers} if measured else {}
    return [
        {
            "Layer": one.layer,
            "Kind": one.kind,
            "Channels at first": count(before.get(one.layer)),
            "Channels": count(one.channels),
            "Params": count(one.params),
            "Nonzeros": count(one.nonzeros),
            "Sparsity": share(one.sparsity),
            "MACs": scaled(one.macs),
        }
        for one in (measured[-1].layers if measured else ())
        if one.params
    ]


def setting_table(run: RunRecord) -> list[Row]:
    """Give what the figures depend on beside the recipe: the data, the machine and the versions."""
    return [
        {"Of": of, **row}
        for of, facts in (
            ("data", run.data),
            ("environment", {"kpipe": run.version, **run.environment}),
            ("latency", {name: value for name, value in run.latency.items() if name != "key"}),
            ("recipe", {"key": run.key}),
        )
        for row in facts_table(facts)
    ]


def is_numeric(rows: list[Row], column: str) -> bool:
    """Tell whether a column holds figures, to be set flush right.

    Example:
        >>> rows = [{"Stage": "01-train", "MACs": "1.23 M"}, {"Stage": "02-export", "MACs": "–"}]
        >>> is_numeric(rows, "Stage"), is_numeric(rows, "MACs")
        (False, True)
    """
    return all(FIGURE.fullmatch(row[column]) for row in rows)


def skipped_table(stage: StageRecord) -> list[Row]:
    """Give the layers that a stage left alone, one row a reason."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in stage.skipped:
        reasons.setdefault(reason, []).append(layer)
    return [{"Layers": ", ".join(layers), "Why": reason} for reason, layers in reasons.items()]
