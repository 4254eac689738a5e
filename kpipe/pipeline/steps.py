"""What a run does step by step, and the key of each step: all that its result rests on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.export.metadata import own_version
from kpipe.pipeline import checkpoint
from kpipe.pipeline.source import ModelSource, make_model
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
    """Hold one step of a run.

    Args:
        index: Its place; 0 for the model as it came.
        name: Its folder's name.
        key: The digest of all that it rests on.
        stage: Its stage; None for the model as it came.
        loss: The loss that it is measured by.
    """

    index: int
    name: str
    key: str
    stage: Stage | None
    loss: str = "auto"


def begin(seed: int, index: int) -> None:
    """Start a step from the same state in every process: seeds, and the counters behind automatic layer names."""
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed((seed * 1009 + index) % 2**32)


def plan_steps(plan: Plan, data: Dataset, model: keras.Model) -> list[Step]:
    """Give the steps of a run with their keys.

    A key tells the version, the seed, the data, the model that the run starts from, and every stage up to its own: its
    configuration, the models that it builds, the loss that it is measured by, and the name that it delivers under.

    Args:
        plan: What is to be run.
        data: The data set.
        model: The model that the run starts from.

    Returns:
        The steps in their order.

    Raises:
        KpipeError: When a stage names a model that cannot be made.
    """
    key = checkpoint.digest(
        {
            "kpipe": own_version(),
            "seed": plan.seed,
            "data": checkpoint.data_fingerprint(data),
            "model": checkpoint.model_fingerprint(model),
        }
    )
    losses = losses_of(plan.stages)
    steps = []
    if not plan.stages or plan.stages[0].stage != "train":
        key = checkpoint.digest(key, losses[0])
        steps.append(Step(0, f"00-{GIVEN}", key, None, losses[0]))
    for index, (stage, stage_key) in enumerate(zip(plan.stages, plan.stage_keys, strict=True), start=1):
        name = f"{index:02d}-{stage.stage}"
        built = _built(plan, stage, data, index, name)
        key = checkpoint.digest(index, stage_key, key, losses[index], plan.name if stage.delivers else None, built)
        steps.append(Step(index, name, key, stage, losses[index]))
    return steps


def losses_of(stages: Sequence[Stage]) -> list[str]:
    """Give the loss that each step is measured by: the last one named before its end, else the first one after.

    Args:
        stages: The stages in their order.

    Returns:
        Names: first that of the model as it came, then one for each stage; "auto" where none is named.
    """
    own = [dict(stage).get("loss", "auto") for stage in stages]
    losses = [next((loss for loss in own if loss != "auto"), "auto")]
    for loss in own:
        losses.append(losses[-1] if loss == "auto" else loss)
    return losses


def _built(plan: Plan, stage: Stage, data: Dataset, index: int, name: str) -> dict[str, str]:
    """Build the models that a stage names by their functions, and give the fingerprint of each."""
    found = {}
    for field, source in stage:
        if isinstance(source, ModelSource) and source.factory is not None:
            begin(plan.seed, index)
            try:
                found[field] = checkpoint.model_fingerprint(make_model(source, data, plan.folder))
            except KpipeError as error:
                raise type(error)(f"{name}: {field}: {error}") from error
    return found


def finished_steps(directory: Path, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Give the entries of the first steps that an earlier run finished under the same keys."""
    found = []
    for step in steps:
        entry = checkpoint.finished(directory / step.name, step.key)
        if entry is None:
            break
        found.append(entry)
    return found
