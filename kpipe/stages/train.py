"""Train the model on the data."""

from typing import Annotated, Literal

import keras
from pydantic import Field

from kpipe.pipeline import STAGES, Context, FloatModel
from kpipe.stages.fields import TrainingEpochs
from kpipe.stages.training import TrainingStage, train


@STAGES("train")
class Train(TrainingStage):
    """Train the model on the data; as the first stage it makes the baseline.

    Args:
        epochs: Passes over the training data.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        patience: Stop after so many epochs without a better validation loss, and go back to the best weights; None to
            train all the epochs.
    """

    stage: Literal["train"] = "train"
    epochs: TrainingEpochs = 10
    patience: Annotated[int, Field(ge=1)] | None = None

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Train."""
        callbacks = []
        if self.patience is not None:
            callbacks.append(keras.callbacks.EarlyStopping(patience=self.patience, restore_best_weights=True))
        return FloatModel(train(self, artifact.model, context, callbacks))
