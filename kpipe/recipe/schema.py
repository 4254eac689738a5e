"""A recipe as a value: what it says, and how it runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import keras
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from kpipe.data import Dataset, load
from kpipe.errors import KpipeError, RecipeError
from kpipe.pipeline import ModelSource, Plan, Progress, Stage
from kpipe.pipeline import run as run_plan
from kpipe.pipeline.checkpoint import digest
from kpipe.pipeline.source import fingerprint, importable, locate, make_model
from kpipe.stages import Export


class DataSource(BaseModel):
    """Name the data.

    Args:
        source: "digits", "mnist", "fashion_mnist", "cifar10", a path to a .npz file, or "module:function".
        validation_fraction: Fraction of the training data held out, in (0, 1).
        calibration_samples: Training samples kept for calibration.
        limit: Most samples of each split; None for all.
        options: Arguments of a "module:function" source, or of a pair of CSV files: tokens and vocabulary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    calibration_samples: Annotated[int, Field(ge=1)] = 256
    limit: Annotated[int, Field(ge=1)] | None = None
    options: dict[str, Any] = {}


class Head(BaseModel):
    """The keys of a recipe other than its stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataSource
    model: ModelSource


class Recipe(BaseModel):
    """Hold a valid recipe. `load_recipe` and `parse_recipe` make one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Head
    stages: tuple[SerializeAsAny[Stage], ...]
    folder: Path
    """Where files and modules that the recipe names are looked for, besides the working directory."""

    @property
    def name(self) -> str:
        """Give the recipe's name."""
        return self.head.name

    def resolved(self) -> dict[str, Any]:
        """Give the recipe as plain data with every default written out."""
        return {**self.head.model_dump(mode="json"), "stages": [stage.model_dump(mode="json") for stage in self.stages]}

    def load_data(self) -> Dataset:
        """Load the data.

        Raises:
            RecipeError: When it is not found, or does not fit together.
        """
        given = self.head.data
        source = given.source
        with importable(self.folder):
            try:
                if source.endswith(".npz"):
                    source = str(locate(source, self.folder))
                data = load(
                    source,
                    validation_fraction=given.validation_fraction,
                    calibration_samples=given.calibration_samples,
                    seed=self.head.seed,
                    **given.options,
                )
            except KpipeError as error:
                raise RecipeError(f"data.source: {error}") from error
        return data if given.limit is None else _cut(data, given.limit)

    def make_model(self, data: Dataset) -> keras.Model:
        """Build or load the model that the run starts from.

        Raises:
            RecipeError: When it is not found, fails, or is no built Keras model.
        """
        try:
            return make_model(self.head.model, data, self.folder)
        except KpipeError as error:
            raise RecipeError(f"model: {error}") from error

    def run(
        self, directory: str | Path | None = None, resume: bool = True, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Run the recipe.

        Args:
            directory: The run directory; None for `exported/<name>`.
            resume: Whether to take over the steps that an earlier run finished; False starts afresh.
            progress: Who is told how it goes; None for nobody.

        Returns:
            The content of `metrics.json`.

        Raises:
            KpipeError: When the data or the model is not found, a stage fails, or the directory cannot be written.
        """
        directory = Path("exported", self.name) if directory is None else Path(directory)
        return run_plan(self.plan(), directory, resume, progress)

    def plan(self) -> Plan:
        """Give the recipe as what the pipeline runs."""
        return Plan(
            name=self.name,
            seed=self.head.seed,
            config=self.resolved(),
            load_data=self.load_data,
            make_model=self.make_model,
            stages=self.stages,
            stage_keys=[_stage_key(stage, self.folder) for stage in self.stages],
            folder=self.folder,
            formats=_formats(self.stages),
        )


def model_sources(stage: Stage) -> list[tuple[str, ModelSource]]:
    """Give the fields of a stage that name a model, with what they name."""
    return [(field, value) for field, value in stage if isinstance(value, ModelSource)]


def _formats(stages: Sequence[Stage]) -> list[str]:
    """Give the formats that every step is measured in: those that the recipe delivers; LiteRT if it delivers none."""
    asked = [suffix for stage in stages if isinstance(stage, Export) for suffix in stage.formats]
    return list(dict.fromkeys(asked)) or ["tflite"]


def _stage_key(stage: Stage, folder: Path) -> str:
    files = {field: fingerprint(source, folder) for field, source in model_sources(stage)}
    return digest(stage.model_dump(mode="json"), files)


def _cut(data: Dataset, limit: int) -> Dataset:
    splits = {name: tuple(part[:limit] for part in getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, calibration=data.calibration[:limit], **splits)
