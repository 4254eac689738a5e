"""Run the stages of a plan one after another, each from what the one before left on disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.pipeline import checkpoint, delivery, examine
from kpipe.pipeline.artifact import KINDS, Artifact, FloatModel
from kpipe.pipeline.context import Baseline, Context, load_model
from kpipe.pipeline.determinism import deterministic_operations
from kpipe.pipeline.ledger import Record, noting, plain
from kpipe.pipeline.progress import Progress, Quiet
from kpipe.pipeline.stage import Stage

GIVEN = "model"
"""The name of the step that measures the model as it came, where no training comes first."""


@dataclass(frozen=True)
class Plan:
    """Hold all that a run needs, ready to be called.

    Args:
        name: The run's name, and the delivery's.
        seed: Of everything that is random.
        config: The resolved recipe, as plain data.
        load_data: Gives the data set.
        make_model: Gives the model that the run starts from.
        stages: The stages in their order.
        stage_keys: What identifies each stage besides its place: its configuration and the files it names.
        folder: The recipe's folder, where files that it names may lie.
        formats: The file formats in which every step is measured.
    """

    name: str
    seed: int
    config: dict[str, Any]
    load_data: Callable[[], Dataset]
    make_model: Callable[[Dataset], keras.Model]
    stages: Sequence[Stage]
    stage_keys: Sequence[str]
    folder: Path = Path()
    formats: Sequence[str] = ("tflite",)


@dataclass(frozen=True)
class Step:
    """Hold one step of a run: its place, its folder's name, its key, and its stage (None: the model as it came)."""

    index: int
    name: str
    key: str
    stage: Stage | None


@deterministic_operations()
def run(plan: Plan, directory: Path, resume: bool = True, progress: Progress | None = None) -> dict[str, Any]:
    """Run a plan into a directory and deliver.

    Steps that an earlier run finished under the same key are taken over; others are run. Every step starts from seeds
    of its own and from the model file of the step before, so that a run that was killed and resumed ends like one that
    was not.

    Args:
        plan: What to run.
        directory: The run directory.
        resume: Whether to take over finished steps.
        progress: Who is told; None for nobody.

    Returns:
        The content of `metrics.json`.

    Raises:
        KpipeError: When the directory cannot be written, or a stage fails; finished steps stay.
    """
    progress = progress or Quiet()
    data = plan.load_data()
    _begin(plan.seed, 0)
    start = plan.make_model(data)
    steps = _steps(plan, data, start)
    fresh = not directory.exists()
    checkpoint.open_directory(directory)
    try:
        done = _finished(directory, steps) if resume else []
        checkpoint.sweep(directory, keep=[entry["name"] for entry in done])
        if len(done) < len(steps):
            delivery.withdraw(directory)
        checkpoint.write_text(directory / "recipe.yaml", delivery.as_yaml(plan.config))
        entries = _go(_Run(plan, directory, data, progress), steps, done, start)
    except KpipeError:
        if fresh:
            _remove_if_empty(directory)
        raise
    return delivery.deliver(plan, directory, data, entries)


def _steps(plan: Plan, data: Dataset, model: keras.Model) -> list[Step]:
    key = checkpoint.digest(
        {
            "kpipe": checkpoint.own_version(),
            "seed": plan.seed,
            "data": checkpoint.data_fingerprint(data),
            "model": checkpoint.model_fingerprint(model),
        }
    )
    steps = []
    if not plan.stages or plan.stages[0].stage != "train":
        steps.append(Step(0, f"00-{GIVEN}", key, None))
    for index, (stage, stage_key) in enumerate(zip(plan.stages, plan.stage_keys, strict=True), start=1):
        key = checkpoint.digest(index, stage_key, key)
        steps.append(Step(index, f"{index:02d}-{stage.stage}", key, stage))
    return steps


def _finished(directory: Path, steps: Sequence[Step]) -> list[dict[str, Any]]:
    found = []
    for step in steps:
        entry = checkpoint.finished(directory / step.name, step.key)
        if entry is None:
            break
        found.append(entry)
    return found


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
            entry = _complete(run, done[len(entries)])
        else:
            try:
                entry = _take(run, step, entries, start)
            except KpipeError as error:
                raise type(error)(f"{step.name}: {error}") from error
        entries.append(entry)
        run.progress.end(entry, reused)
    return entries


def _begin(seed: int, index: int) -> None:
    """Start a step from the same state in every process: seeds, and the counters behind automatic layer names."""
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed((seed * 1009 + index) % 2**32)


def _model_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    held = [entry for entry in entries if entry["artifact"]["kind"] in KINDS]
    return held[-1] if held else None


def _take(run: _Run, step: Step, entries: Sequence[dict[str, Any]], start: keras.Model) -> dict[str, Any]:
    began = time.perf_counter()
    before = _model_entry(entries)
    _begin(run.plan.seed, step.index)
    artifact: Artifact = FloatModel(start)
    baseline = None
    if before is not None:
        artifact = KINDS[before["artifact"]["kind"]](
            load_model(run.directory / before["name"] / before["artifact"]["path"])
        )
        baseline = Baseline(entries[0], run.directory / entries[0]["name"] / entries[0]["artifact"]["path"])
    with checkpoint.step_folder(run.directory, step.name) as folder:
        context = Context(
            name=run.plan.name,
            data=run.data,
            seed=run.plan.seed,
            folder=folder,
            recipe_folder=run.plan.folder,
            baseline=baseline,
            holds_zeros=any(stage.leaves_zeros for stage in run.plan.stages[: max(step.index - 1, 0)]),
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
        metrics = examine.evaluate(after.model, run.data)
        files = [
            examine.export_file(after.model, context.folder / f"model.{suffix}", run.data)
            for suffix in run.plan.formats
        ]
    return {
        "index": step.index,
        "stage": GIVEN if step.stage is None else step.stage.stage,
        "name": step.name,
        "key": step.key,
        "config": run.plan.config["model"] if step.stage is None else step.stage.model_dump(mode="json"),
        "artifact": artifact,
        "metrics": metrics,
        "measure": examine.counted(after.model),
        "files": files,
        "notes": record.notes,
        "skipped": record.skipped,
        "history": record.history,
        "details": record.details,
    }


def _complete(run: _Run, entry: dict[str, Any]) -> dict[str, Any]:
    """Add the formats that this run asks for and the run that made the step did not."""
    folder = run.directory / entry["name"]
    missing = [suffix for suffix in run.plan.formats if suffix not in {file["format"] for file in entry["files"]}]
    if entry["artifact"]["kind"] == "file" or not missing:
        return entry
    model = load_model(folder / entry["artifact"]["path"])
    entry["files"] += [examine.export_file(model, folder / f"model.{suffix}", run.data) for suffix in missing]
    checkpoint.write_json(folder / "entry.json", plain(entry))
    return entry


def _remove_if_empty(directory: Path) -> None:
    """Leave nothing behind of a run that finished no step."""
    left = list(directory.iterdir())
    if all(path.name == "recipe.yaml" for path in left):
        for path in left:
            path.unlink()
        directory.rmdir()
