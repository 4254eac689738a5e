"""The end of a run: the files at the top of its directory, their timing, and `metrics.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from kpipe.data import Dataset
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


def withdraw(directory: Path) -> None:
    """Remove what an earlier run delivered, as `metrics.json` lists it, before something else is made."""
    metrics = checkpoint.read_json(directory / "metrics.json")
    if not isinstance(metrics, dict):
        return
    delivered = [Path(file["path"]).name for file in metrics.get("delivery", ())]
    for name in ("metrics.json", "latency.json", "report.md", "report.html", *delivered):
        (directory / name).unlink(missing_ok=True)


def deliver(plan: Planned, directory: Path, data: Dataset, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Copy the exported files to the top, time all files, and write `metrics.json`.

    Timing is taken over from an earlier run of the same steps, so that a run that is repeated changes nothing.

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
    for entry, file in exported:
        checkpoint.copy(directory / entry["name"] / file["path"], directory / file["path"])
    delivered = ledger.reductions([file for _, file in exported], timed[0]["files"])
    metrics = {
        "name": plan.name,
        "kpipe": checkpoint.own_version(),
        "recipe_key": key,
        "data": {
            "source": plan.config["data"]["source"],
            **{split: len(getattr(data, split)[0]) for split in ("train", "validation", "test")},
            "calibration": len(data.calibration),
        },
        "environment": examine.environment(),
        "stages": timed,
        "delivery": delivered,
        "summary": ledger.summary(timed, delivered),
    }
    checkpoint.write_json(directory / "metrics.json", metrics)
    return metrics


def _latency(directory: Path, key: str, paths: list[str]) -> dict[str, Any]:
    known = checkpoint.read_json(directory / "latency.json")
    if isinstance(known, dict) and known.get("key") == key and set(paths) <= set(known["files"]):
        return known
    measured = {"key": key, **examine.latencies(directory, paths)}
    checkpoint.write_json(directory / "latency.json", measured)
    return measured


def _with_latency(entry: dict[str, Any], latency: dict[str, Any]) -> dict[str, Any]:
    files = [{**file, "latency": latency[f"{entry['name']}/{file['path']}"]} for file in entry["files"]]
    return {**entry, "files": files}
