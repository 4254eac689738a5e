"""Run the stages of a plan one after another, each from what the one before left on disk."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.atomic import PARTIAL
from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.export import FORMATS
from kpipe.loading import load_model
from kpipe.measure import measure
from kpipe.pipeline import checkpoint, delivery, examine
from kpipe.pipeline.artifact import KINDS, Artifact, FloatModel
from kpipe.pipeline.context import Baseline, Context
from kpipe.pipeline.determinism import deterministic_operations
from kpipe.pipeline.ledger import Record, noting, plain
from kpipe.pipeline.progress import Progress, Quiet
from kpipe.pipeline.stage import check_fit
from kpipe.pipeline.steps import GIVEN, Plan, Step, begin, finished_steps, plan_steps
from kpipe.pipeline.task import loss_for
from kpipe.projections import kernels


@deterministic_operations()
def run(plan: Plan, directory: Path, resume: bool = True, progress: Progress | None = None) -> dict[str, Any]:
    """Run a plan into a directory and deliver.

    Steps that an earlier run finished under the same key are taken over; others are run. Every step starts from seeds
    of its own and from the model file of the step before, so that a run that was killed and resumed ends like one that
    was not. What an earlier run delivered stays at the top of the directory until this one delivers.

    Args:
        plan: What to run.
        directory: The run directory.
        resume: Whether to take over finished steps.
        progress: Who is told; None for nobody.

    Returns:
        The content of `metrics.json`.

    Raises:
        KpipeError: When a stage does not fit the model, before anything trains; when the directory cannot be written,
            or a stage fails: finished steps stay.
    """
    progress = progress or Quiet()
    data = plan.load_data()
    begin(plan.seed, 0)
    start = plan.make_model(data)
    check_fit(plan.stages, start)
    steps = plan_steps(plan, data, start)
    fresh = not directory.exists()
    checkpoint.open_directory(directory)
    try:
        done = finished_steps(directory, steps) if resume else []
        checkpoint.sweep(directory, keep=[entry["name"] for entry in done])
        entries = _go(_Run(plan, directory, data, progress), steps, done, start)
    except BaseException:
        if fresh:
            _remove_if_empty(directory)
        raise
    return delivery.deliver(plan, directory, data, entries)


@dataclass(frozen=True)
class _Run:
    plan: Plan
    directory: Path
    data: Dataset
    progress: Progress


def _go(run: _Run, steps: Sequence[Step], done: Sequence[dict[str, Any]], start: keras.Model) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for step in steps:
        run.progress.begin(step.name, len(entries) + 1, len(steps))
        reused = len(entries) < len(done)
        if reused:
            entry = _complete(run, done[len(entries)], step)
        else:
            try:
                entry = _take(run, step, entries, start)
            except KpipeError as error:
                raise type(error)(f"{step.name}: {error}") from error
        entries.append(entry)
        run.progress.end(entry, reused)
    return entries


def _model_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    held = [entry for entry in entries if entry["artifact"]["kind"] in KINDS]
    return held[-1] if held else None


def _has_zeros(model: keras.Model) -> bool:
    """Tell whether a model came pruned: with a kernel of which a part is exactly zero."""
    return any(0 < np.count_nonzero(kernel.numpy()) < np.size(kernel) for kernel in kernels(model))


def _safe_mode(run: _Run) -> bool:
    """Tell whether functions that are stored as code are refused."""
    return run.plan.config["model"].get("safe_mode", True)


def _take(run: _Run, step: Step, entries: Sequence[dict[str, Any]], start: keras.Model) -> dict[str, Any]:
    began = time.perf_counter()
    before = _model_entry(entries)
    begin(run.plan.seed, step.index)
    artifact: Artifact = FloatModel(start)
    baseline = None
    if before is not None:
        artifact = KINDS[before["artifact"]["kind"]](
            load_model(run.directory / before["name"] / before["artifact"]["path"], _safe_mode(run))
        )
        path = run.directory / entries[0]["name"] / entries[0]["artifact"]["path"]
        baseline = Baseline(entries[0], path, _safe_mode(run))
    for _, labels in (run.data.validation, run.data.test):  # before hours of training, not after
        loss_for(artifact.model, labels, step.loss)
    earlier = run.plan.stages[: step.index][:-1]
    with checkpoint.step_folder(run.directory, step.name) as folder:
        context = Context(
            name=run.plan.name,
            data=run.data,
            seed=run.plan.seed,
            folder=folder,
            recipe_folder=run.plan.folder,
            baseline=baseline,
            loss=step.loss,
            holds_zeros=_has_zeros(start) or any(stage.leaves_zeros for stage in earlier),
            holds_clusters=any(stage.leaves_clusters for stage in earlier),
            key=step.key,
            steps=(*(entry["name"] for entry in entries), step.name),
            progress=run.progress,
        )
        with noting(context.record):
            after = artifact if step.stage is None else step.stage.run(artifact, context)
        run.progress.tell("measuring", 1.0)
        entry = _entry(run, step, artifact, after, context)
        entry["seconds"] = round(time.perf_counter() - began, 3)
        checkpoint.write_json(folder / "entry.json", plain(entry))
    return plain(entry)


def _entry(run: _Run, step: Step, before: Artifact, after: Artifact, context: Context) -> dict[str, Any]:
    record: Record = context.record
    passed = step.stage is not None and after is before and bool(record.files)
    if passed:
        artifact = {"kind": "file", "path": record.files[0]["path"]}
        metrics = {"accuracy": record.files[0]["accuracy"], "loss": None}
        files = record.files
    else:
        after.model.save(context.folder / "model.keras")
        artifact = {"kind": after.kind, "path": "model.keras"}
        metrics = examine.evaluate(after.model, run.data, step.loss)
        files = [_measured_file(run, after.model, context.folder, suffix, step.loss) for suffix in run.plan.formats]
    return {
        "index": step.index,
        "stage": GIVEN if step.stage is None else step.stage.stage,
        "name": step.name,
        "key": step.key,
        "config": run.plan.config["model"] if step.stage is None else step.stage.model_dump(mode="json"),
        "artifact": artifact,
        "metrics": metrics,
        "measure": plain(measure(after.model).to_dict()),
        "files": files,
        "notes": record.notes,
        "skipped": record.skipped,
        "history": record.history,
        "details": record.details,
    }


def _complete(run: _Run, entry: dict[str, Any], step: Step) -> dict[str, Any]:
    """Give a finished step the files in the formats that this run asks for, and no others."""
    if entry["artifact"]["kind"] == "file":
        return entry
    folder = run.directory / entry["name"]
    held = {file["format"]: file for file in entry["files"]}
    if list(held) != list(run.plan.formats):
        missing = set(run.plan.formats) - set(held)
        if missing:
            model = load_model(folder / entry["artifact"]["path"], _safe_mode(run))
            held |= {suffix: _measured_file(run, model, folder, suffix, step.loss) for suffix in sorted(missing)}
        entry = plain({**entry, "files": [held[suffix] for suffix in run.plan.formats]})
        checkpoint.write_json(folder / "entry.json", entry)
    for suffix in set(FORMATS) - set(run.plan.formats):
        (folder / f"model.{suffix}").unlink(missing_ok=True)
    return entry


def _measured_file(run: _Run, model: keras.Model, folder: Path, suffix: str, loss: str) -> dict[str, Any]:
    return examine.export_file(model, folder / f"model.{suffix}", run.data, loss=loss)


def _remove_if_empty(directory: Path) -> None:
    """Leave nothing behind of a run that finished no step."""
    if all(path.name.startswith(PARTIAL) for path in directory.iterdir()):
        shutil.rmtree(directory)
