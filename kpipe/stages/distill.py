"""Let the baseline teach a student."""

from typing import Annotated, Literal, Self

import keras
from pydantic import Field, model_validator

from kpipe.pipeline import STAGES, Context, FloatModel, Misfit, ModelSource
from kpipe.pipeline.source import make_model
from kpipe.stages.fields import Expressions, Teaching, TrainingEpochs
from kpipe.stages.fitting import feature_misfits
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import TrainingStage, train


@STAGES("distill")
class Distill(TrainingStage):
    """Train a student on the labels and on the baseline's answers.

    Args:
        student: Another model, {factory: "module:function"} or {load: "small.keras"}; None for the model as the stage
            before left it.
        temperature: Softens both answers before they are compared.
        alpha: Share of the labels in the loss, in [0, 1]; the rest is the teacher's.
        features: Patterns of the names of layers whose outputs are compared too; where the student's has another number
            of channels, a learned linear map of them is.
        feature_weight: Of the features, beside the teacher's answers.
        epochs: Passes over the training data.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
    """

    stage: Literal["distill"] = "distill"
    student: ModelSource | None = None
    temperature: Annotated[float, Field(gt=0)] = 3.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    features: Expressions = ()
    feature_weight: Annotated[float, Field(gt=0)] = 1.0
    epochs: TrainingEpochs = 10

    def teaching(self) -> Teaching:
        """Say how the baseline teaches."""
        return Teaching(
            temperature=self.temperature,
            alpha=self.alpha,
            features=self.features,
            feature_weight=self.feature_weight,
        )

    @model_validator(mode="after")
    def _can_teach(self) -> Self:
        self.teaching()
        return self

    def keeps_layers(self) -> bool:
        """Tell whether the model itself is taught, and no other."""
        return self.student is None

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name the features that no layer of the teacher gives."""
        return feature_misfits("features", self.features, model)

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Teach."""
        student = artifact.model
        if self.student is not None:
            student = make_model(self.student, context.data, context.recipe_folder)
        teacher = teacher_of(self.teaching(), context, artifact.model)
        return FloatModel(train(self, student, context, teacher=teacher))
