"""The record of a step, as plain data: what a stage says of itself, and the entry that is kept of it."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kpipe.errors import NoEffectWarning


@dataclass
class Record:
    """Collect what a stage says while it runs; it ends up in the step's `entry.json`."""

    notes: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a sentence for the report."""
        self.notes.append(text)

    def skip(self, layer: str, reason: str) -> None:
        """Keep that a layer was left alone, and why."""
        self.skipped.append({"layer": layer, "reason": reason})

    def add_history(self, history: Mapping[str, Any]) -> None:
        """Append the curves of a training."""
        for name, values in history.items():
            self.history.setdefault(name, []).extend(float(value) for value in values)


@contextmanager
def noting(record: Record) -> Iterator[None]:
    """Note what the block warns its user of; every warning goes on to whoever listens, also when the block raises.

    Noted are `NoEffectWarning` and plain `UserWarning`; other kinds speak to developers.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for warning in caught:
            users = warning.category is UserWarning or issubclass(warning.category, NoEffectWarning)
            if users and str(warning.message) not in record.notes:
                record.note(str(warning.message))
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: NumPy numbers and arrays, tuples, paths, NaN as None.

    Example:
        >>> plain({"a": np.float64(0.5), "b": (np.int64(2), float("nan"))})
        {'a': 0.5, 'b': [2, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def reductions(files: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say of each file how many times smaller and faster it is than the baseline's file of the same format.

    Args:
        files: File entries with "format", "bytes", "gzip_bytes", "zstd_bytes" and "latency".
        baseline: The file entries of the baseline.

    Returns:
        The entries with "smaller", "smaller_gzip", "smaller_zstd" and "faster"; None where there is nothing to
        compare with.

    Example:
        >>> old = {"format": "onnx", "bytes": 100, "gzip_bytes": 90, "latency": {"median_ms": 2.0}}
        >>> new = {"format": "onnx", "bytes": 20, "gzip_bytes": 30, "latency": {"median_ms": 0.5}}
        >>> [file["smaller"], file["faster"]] if (file := reductions([new], [old])[0]) else None
        [5.0, 4.0]
    """
    first = {file["format"]: file for file in reversed(baseline)}
    return [{**file, **_ratios(file, first.get(file["format"]))} for file in files]


def _ratios(file: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, float | None]:
    reference = reference or {}
    then, now = (entry.get("latency") or {} for entry in (reference, file))
    return {
        "smaller": _ratio(reference.get("bytes"), file.get("bytes")),
        "smaller_gzip": _ratio(reference.get("gzip_bytes"), file.get("gzip_bytes")),
        "smaller_zstd": _ratio(reference.get("zstd_bytes"), file.get("zstd_bytes")),
        "faster": _ratio(then.get("median_ms"), now.get("median_ms")),
    }


def _ratio(then: float | None, now: float | None) -> float | None:
    return then / now if then and now else None


def summary(entries: list[dict[str, Any]], delivery: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what is delivered with the baseline, the first entry.

    The comparison is of the first file of the last export; without one, of the first file of the last step.

    Args:
        entries: The entries of all the steps, their files with "latency".
        delivery: The delivered files with the ratios of `reductions`.

    Returns:
        The figures that a reader wants first.
    """
    baseline = entries[0]
    exports = [entry for entry in entries if entry["artifact"]["kind"] == "file"]
    paths = {file["path"] for file in (exports[-1]["files"] if exports else ())}
    last = [file for file in delivery if file["path"] in paths]
    last = last or reductions(entries[-1]["files"], baseline["files"])
    before = baseline["metrics"]["accuracy"]
    after = last[0]["accuracy"] if last else entries[-1]["metrics"]["accuracy"]
    return {
        "baseline": baseline["name"],
        "file": last[0]["path"] if last else None,
        "smaller": last[0]["smaller"] if last else None,
        "smaller_gzip": last[0]["smaller_gzip"] if last else None,
        "smaller_zstd": last[0]["smaller_zstd"] if last else None,
        "faster": last[0]["faster"] if last else None,
        "accuracy_baseline": before,
        "accuracy_delivered": after,
        "accuracy_drop": None if before is None or after is None else before - after,
    }
