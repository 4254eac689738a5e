"""A stage: a frozen recipe entry that turns one artifact into the next; its annotations are the wiring."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import keras
from pydantic import BaseModel, ConfigDict

from kpipe.errors import KpipeError, RecipeError
from kpipe.pipeline.artifact import FloatModel
from kpipe.pipeline.context import Context
from kpipe.registry import Registry

Misfit = tuple[str, str]
"""A field of a stage, and why it does not fit a model; `stage` where it is the stage as a whole."""

STAGES: Registry[type["Stage"]] = Registry("stage")
"""Name -> stage class, which is the schema of the stage in a recipe."""


class Stage(BaseModel, ABC):
    """Describe one step of a run. A subclass adds its fields, which are the keys of the recipe, and `run`.

    The annotations of `run` tell which kinds of artifact the stage takes and gives, so that an order that cannot work
    is found before anything runs. A type variable stands for a stage that gives on the kind it takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    leaves_zeros: ClassVar[bool] = False
    """Whether the stage sets weights to zero that every later stage must keep."""
    leaves_clusters: ClassVar[bool] = False
    """Whether the stage gives weights common values that later trainings must keep common."""
    delivers: ClassVar[bool] = False
    """Whether what the stage writes bears the run's name."""

    @abstractmethod
    def run(self, artifact: Any, context: Context) -> Any:
        """Turn the artifact into the next one; files go into `context.folder`."""

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what must fail on a model of these layers, whatever its weights and the numbers of its channels.

        Nothing is named that is not sure: the run finds the rest.
        """
        return []

    def keeps_layers(self) -> bool:
        """Tell whether the model that it gives has the layers of the one it takes, under the same names; False: unsure.

        What stands behind a stage that is unsure is not held against the model that the run starts from.
        """
        return False


@dataclass(frozen=True)
class Wiring:
    """Hold the kinds that a stage takes, and the kinds it gives; `gives` is None where it gives what it took."""

    takes: tuple[type, ...]
    gives: tuple[type, ...] | None


def wiring(stage: type[Stage]) -> Wiring:
    """Read from the annotations of `run` what a stage takes and gives.

    Args:
        stage: The stage class.

    Returns:
        The kinds of artifact.

    Raises:
        KpipeError: When `run` is not annotated.

    Example:
        >>> class Same(Stage):
        ...     stage: str = "same"
        ...     def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        ...         return artifact
        >>> [kind.kind for kind in wiring(Same).takes]
        ['float']
    """
    hints = get_type_hints(stage.run)
    if not {"artifact", "return"} <= set(hints):
        raise KpipeError(f"{stage.__name__}.run is not annotated; annotate `artifact` and the result with their kinds.")
    takes, gives = hints["artifact"], hints["return"]
    if isinstance(takes, TypeVar):
        return Wiring(takes.__constraints__, None if gives is takes else _kinds(gives))
    return Wiring(_kinds(takes), _kinds(gives))


def _kinds(hint: Any) -> tuple[type, ...]:
    return get_args(hint) or (hint,)


def order_faults(stages: Sequence[Stage]) -> list[tuple[int, str]]:
    """Find the stages that cannot take what the stage before them gives.

    Args:
        stages: The stages in their order.

    Returns:
        `(index, fault)` for each stage that cannot stand where it stands.
    """
    faults = []
    kind: type = FloatModel
    giver = -1
    for index, stage in enumerate(stages):
        wires = wiring(type(stage))
        if kind not in wires.takes:
            takes = " or ".join(taken.kind for taken in wires.takes)
            faults.append(
                (index, f"{stage.stage} takes a {takes} model, but {_giver(stages, giver, kind, stage.stage)}")
            )
        elif wires.gives is not None and kind not in wires.gives:
            kind, giver = wires.gives[0], index
    return faults


def check_fit(stages: Sequence[Stage], model: keras.Model) -> None:
    """Refuse stages that must fail on the model that a run starts from, before anything trains.

    Args:
        stages: The stages in their order.
        model: The model that the run starts from.

    Raises:
        RecipeError: With all that is sure not to fit, each with its stage and field.
    """
    faults = []
    for index, stage in enumerate(stages):
        try:
            misfits = stage.misfits(model)
        except KpipeError as error:  # what its layers are cannot be found out
            misfits = [("stage", str(error))]
        faults += [f"  stages[{index}].{field}: {why}" for field, why in misfits]
        if not stage.keeps_layers():
            break
    if faults:
        raise RecipeError("\n".join([f"Stages do not fit the model {model.name!r}:", *faults]))


def _giver(stages: Sequence[Stage], giver: int, kind: Any, wanted: str) -> str:
    if giver < 0:
        return f"a recipe starts with a {kind.kind} model. Put a stage that makes another kind before it."
    name = stages[giver].stage
    return f"stages[{giver}] ({name}) gives a {kind.kind} model. Move {wanted} before {name}."
