from typing import Any, Literal

import pytest
from pydantic import ValidationError

from kpipe.errors import KpipeError
from kpipe.pipeline import STAGES, AnyModel, Context, FloatModel, QuantizedModel, Stage, order_faults, wiring
from kpipe.stages import Export, PruneFilters, Quantize, Train


class Polish(Stage):
    stage: Literal["polish"] = "polish"

    def run(self, artifact: QuantizedModel, context: Context) -> QuantizedModel:
        return artifact


class Either(Stage):
    stage: Literal["either"] = "either"

    def run(self, artifact: FloatModel | QuantizedModel, context: Context) -> FloatModel:
        return FloatModel(artifact.model)


class Same(Stage):
    stage: Literal["same"] = "same"

    def run(self, artifact: AnyModel, context: Context) -> AnyModel:
        return artifact


class Silent(Stage):
    stage: Literal["silent"] = "silent"

    def run(self, artifact, context) -> Any:
        return artifact


@pytest.mark.parametrize(
    ("stage", "takes", "gives"),
    [
        (Polish, (QuantizedModel,), (QuantizedModel,)),
        (Either, (FloatModel, QuantizedModel), (FloatModel,)),
        (Same, (FloatModel, QuantizedModel), None),
        (Quantize, (FloatModel,), (QuantizedModel,)),
        (Export, (FloatModel, QuantizedModel), None),
    ],
)
def test_annotations_are_the_wiring(stage, takes, gives):
    assert wiring(stage).takes == takes
    assert wiring(stage).gives == gives


def test_a_stage_without_annotations_is_refused():
    with pytest.raises(KpipeError, match=r"Silent\.run is not annotated"):
        wiring(Silent)


@pytest.mark.parametrize(
    ("stages", "faulty"),
    [
        ([Train(), Export(), PruneFilters(ratio=0.5), Quantize(), Export()], []),
        ([Train(), Quantize(), PruneFilters(ratio=0.5)], [2]),
        ([Quantize(), Export(), Quantize(), Train()], [2, 3]),
        ([Polish()], [0]),
        ([Quantize(), Polish(), Either(), Train()], []),
    ],
)
def test_an_order_that_cannot_work_is_found(stages, faulty):
    assert [index for index, _ in order_faults(stages)] == faulty


def test_the_fault_says_what_to_do():
    ((_, fault),) = order_faults([Train(), Quantize(), PruneFilters(ratio=0.5)])
    assert "takes a float model" in fault
    assert "stages[1] (quantize) gives a quantized model" in fault
    assert "before quantize" in fault


def test_a_first_stage_that_needs_another_kind_is_told_what_a_recipe_starts_with():
    ((_, fault),) = order_faults([Polish()])
    assert "a recipe starts with a float model" in fault


@pytest.mark.parametrize("name", list(STAGES))
def test_every_stage_is_frozen_and_refuses_unknown_keys(name):
    amounts = {
        "find_ticket": {"rounds": 1},
        "prune_filters": {"ratio": 0.5},
        "prune_heads": {"ratio": 0.5},
        "prune_weights": {"sparsity": 0.5},
        "remove_layers": {"count": 1},
    }
    needed = amounts.get(name, {})
    stage = STAGES[name].model_validate(needed)
    assert stage.stage == name
    with pytest.raises(ValidationError):
        STAGES[name].model_validate({**needed, "nonsense": 1})
    with pytest.raises(ValidationError):
        stage.stage = "other"
    assert STAGES[name].model_validate(stage.model_dump(mode="json")) == stage
