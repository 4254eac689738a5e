"""What a stage may use besides its artifact: the data, the baseline, its folder, and who is to be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from kpipe.data import Dataset
from kpipe.loading import load_model
from kpipe.pipeline.ledger import Record
from kpipe.pipeline.progress import Progress, Quiet


@dataclass(frozen=True)
class Baseline:
    """Hold the model that everything is compared with, and that teaches: its entry, where it lies, how it is loaded."""

    entry: dict[str, Any]
    path: Path
    safe_mode: bool = True

    def load(self) -> keras.Model:
        """Load the model."""
        return load_model(self.path, self.safe_mode)


@dataclass(frozen=True)
class Context:
    """Hold what a stage may use.

    Args:
        name: The run's name.
        data: The data set.
        seed: Of everything that is random.
        folder: Where the step's files go.
        recipe_folder: Where files that the recipe names may lie.
        baseline: The model that everything is compared with; None for the first step, which makes it.
        loss: The loss that the step is measured by: labels are classes where it is a cross-entropy.
        holds_zeros: Whether the run started from a pruned model or an earlier stage pruned weights: a training must
            keep the zeros that it finds.
        holds_clusters: Whether an earlier stage clustered weights: a training must keep equal what it finds equal.
        key: The digest of all that the step rests on, the recipe up to it included.
        steps: The names of the steps up to this one.
        progress: Who is told how it goes.
        record: Where a stage puts what it has to say.
    """

    name: str
    data: Dataset
    seed: int
    folder: Path
    recipe_folder: Path
    baseline: Baseline | None = None
    loss: str = "auto"
    holds_zeros: bool = False
    holds_clusters: bool = False
    key: str = ""
    steps: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Quiet)
    record: Record = field(default_factory=Record)
