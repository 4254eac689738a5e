"""The end of a run: the files at the top of its directory, their timing, and `metrics.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from kpipe.data import Dataset
from kpipe.export.metadata import own_version
from kpipe.pipeline import checkpoint, examine, ledger


class Planned(Protocol):
    """What a delivery needs to know of the plan."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...


def as_yaml(config: dict[str, Any]) -> str:
    """Write a resolved recipe as YAML, its keys in their order."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


DELIVERED = ".delivered.json"
"""The list of the files at the top, written before the first of them: a killed run leaves none that is not listed."""


def withdraw(directory: Path) -> None:
    """Remove what an earlier run delivered, before something else is made.

    The list of what there was goes last, so that one killed in between is carried on by the next.
    """
    for name in (*_delivered(directory), "report.md", "report.html", "latency.json", "metrics.json", DELIVERED):
        (directory / name).unlink(missing_ok=True)


def _delivered(directory: Path) -> list[str]:
    listed = checkpoint.read_json(directory / DELIVERED)
    return [Path(name).name for name in listed] if isinstance(listed, list) else []


def deliver(plan: Planned, directory: Path, data: Dataset, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Copy the exported files to the top, time all files, and write `metrics.json`.

    Timing, and the environment that it was taken in, are taken over from an earlier run of the same steps, so that a
    run that is repeated changes nothing. What an earlier run of other steps delivered is removed.

    Args:
        plan: The plan that was run.
        directory: The run directory.
        data: The data set.
        entries: The entries of all the steps.

    Returns:
        The content of `metrics.json`.
    """
    key = checkpoint.digest([entry["key"] for entry in entries])
    paths = [f"{entry['name']}/{file['path']}" for entry in entries for file in entry["files"]]
    latency = _latency(directory, key, paths)
    timed = [_with_latency(entry, latency["files"]) for entry in entries]
    exported = [(entry, file) for entry in timed if entry["artifact"]["kind"] == "file" for file in entry["files"]]
    places = {name: entry["name"] for entry, file in exported for name in (*file.get("beside", ()), file["path"])}
    names = sorted(places)
    earlier = checkpoint.read_json(directory / "metrics.json")
    if set(_delivered(directory)) - set(names) or (isinstance(earlier, dict) and earlier.get("recipe_key") != key):
        withdraw(directory)
        checkpoint.write_json(directory / "latency.json", latency)
    checkpoint.write_json(directory / DELIVERED, names)
    for name, folder in places.items():
        checkpoint.copy(directory / folder / name, directory / name)
    delivered = ledger.reductions([file for _, file in exported], timed[0]["files"])
    metrics = {
        "name": plan.name,
        "kpipe": own_version(),
        "recipe_key": key,
        "data": {
            "source": plan.config["data"]["source"],
            **{split: len(getattr(data, split)[0]) for split in ("train", "validation", "test")},
            "calibration": len(data.calibration),
        },
        "environment": latency["environment"],
        "stages": timed,
        "delivery": delivered,
        "summary": ledger.summary(timed, delivered),
    }
    checkpoint.write_json(directory / "metrics.json", metrics)
    return metrics


def _latency(directory: Path, key: str, paths: list[str]) -> dict[str, Any]:
    known = checkpoint.read_json(directory / "latency.json")
    whole = isinstance(known, dict) and {"environment", "files"} <= set(known)
    if whole and known.get("key") == key and set(paths) <= set(known["files"]):
        return known
    measured = {"key": key, "environment": examine.environment(), **examine.latencies(directory, paths)}
    checkpoint.write_json(directory / "latency.json", measured)
    return measured


def _with_latency(entry: dict[str, Any], latency: dict[str, Any]) -> dict[str, Any]:
    files = [
        {**file, "latency": of_one_sample(latency[f"{entry['name']}/{file['path']}"], file.get("batch"))}
        for file in entry["files"]
    ]
    return {**entry, "files": files}


def of_one_sample(latency: dict[str, float], batch: int | None) -> dict[str, float]:
    """Give the time of one sample of a file that was timed on one batch; one whose batch is open was timed on one.

    Example:
        >>> of_one_sample({"median_ms": 8.0, "p90_ms": 10.0}, 4), of_one_sample({"median_ms": 8.0}, None)
        ({'median_ms': 2.0, 'p90_ms': 2.5}, {'median_ms': 8.0})
    """
    return {name: value / batch for name, value in latency.items()} if batch and batch > 1 else latency
