"""The end of a run: the files at the top of its directory, their timing, and `metrics.json`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from kpipe.atomic import replace_together
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
"""The list of the files at the top, and of those that a run that is cut off may leave there."""


TOLD = ("metrics.json", "latency.json", "recipe.yaml")
"""What a run tells of its delivery: the three are always of one run. The first counts, and is written last."""


REPORTS = ("report.html", "report.md")
"""What is written of a delivery later; it goes with the delivery."""


def _delivered(directory: Path) -> list[str]:
    listed = checkpoint.read_json(directory / DELIVERED)
    return [Path(name).name for name in listed] if isinstance(listed, list) else []


def deliver(plan: Planned, directory: Path, data: Dataset, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Copy the exported files to the top, time all files, and write `recipe.yaml`, `latency.json` and `metrics.json`.

    Until all of it is written beside its place, what an earlier run delivered stays as it is; then the new takes its
    place, and what is delivered no more is removed. Whoever finds `metrics.json` finds what it tells of. Timing, and
    the environment that it was taken in, are taken over where the steps are those that were timed, so that a run that
    is repeated changes nothing.

    Args:
        plan: The plan that was run.
        directory: The run directory.
        data: The data set.
        entries: The entries of all the steps.

    Returns:
        The content of `metrics.json`.
    """
    paths = [f"{entry['name']}/{file['path']}" for entry in entries for file in entry["files"]]
    latency, known = _latency(directory, checkpoint.digest(entries), paths)
    timed = [_with_latency(entry, latency["files"]) for entry in entries]
    exported = [(entry, file) for entry in timed if entry["artifact"]["kind"] == "file" for file in entry["files"]]
    places = {name: entry["name"] for entry, file in exported for name in (*file.get("beside", ()), file["path"])}
    metrics = _metrics(plan, data, timed, [file for _, file in exported], latency)
    told = (checkpoint.as_json(metrics), checkpoint.as_json(latency), as_yaml(plan.config))
    stale = {*_delivered(directory), *(() if known else REPORTS)} - set(places)
    new, old = ([directory / name for name in names] for names in ((*TOLD, *places, DELIVERED), sorted(stale)))
    with replace_together(new, without=old) as (*written, listed):
        for path, text in zip(written, told, strict=False):
            path.write_text(text, encoding="utf-8")
        for path, (name, folder) in zip(written[len(told) :], places.items(), strict=True):
            shutil.copyfile(directory / folder / name, path)
        checkpoint.write_json(listed, sorted({*stale, *places}))
    checkpoint.write_json(directory / DELIVERED, sorted(places))
    return metrics


def _metrics(
    plan: Planned,
    data: Dataset,
    timed: list[dict[str, Any]],
    exported: list[dict[str, Any]],
    latency: Mapping[str, Any],
) -> dict[str, Any]:
    delivered = ledger.reductions(exported, timed[0]["files"])
    return {
        "name": plan.name,
        "kpipe": own_version(),
        "recipe_key": checkpoint.digest([entry["key"] for entry in timed]),
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


def _latency(directory: Path, key: str, paths: list[str]) -> tuple[dict[str, Any], bool]:
    """Give the timing of the files, and whether it is that of an earlier run of the very same entries."""
    known = checkpoint.read_json(directory / "latency.json")
    whole = isinstance(known, dict) and {"environment", "files"} <= set(known)
    if whole and known.get("key") == key and set(paths) <= set(known["files"]):
        return known, True
    return {"key": key, "environment": examine.environment(), **examine.latencies(directory, paths)}, False


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
