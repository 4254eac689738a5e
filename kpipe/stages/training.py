"""The training that stages share: one `fit`, taught or not, that keeps earlier zeros and tells how it goes."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from pydantic import model_validator

from kpipe.cluster import HoldClusters
from kpipe.data import augmented
from kpipe.distill import distill
from kpipe.errors import KpipeError
from kpipe.follow import Follower
from kpipe.pipeline import Misfit, Stage
from kpipe.pipeline.context import Context
from kpipe.pipeline.task import loss_for
from kpipe.projections import hold_zeros
from kpipe.stages.fields import OPTIMIZERS, Augmentation, BatchSize, Epochs, LossName, Optimizer, Teaching
from kpipe.stages.fitting import feature_misfits
from kpipe.stages.teaching import Teacher

EVIDENCE_SAMPLES = 1024


class TrainingStage(Stage):
    """Describe a stage that trains: the fields of its `fit`.

    Args:
        epochs: Passes over the training data.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
    """

    epochs: Epochs = 5
    batch_size: BatchSize = 64
    optimizer: Optimizer = Optimizer()
    loss: LossName = "auto"
    augment: Augmentation | None = None

    def keeps_layers(self) -> bool:
        """Tell that a training leaves the layers as they are, and so do cuts of channels."""
        return True


class RetrainingStage(TrainingStage):
    """Describe a stage that changes the model and may train it on, taught by another or not.

    Args:
        distill: Let the baseline teach, or the model as it came, such as {temperature: 3.0, teacher: input}.
    """

    distill: Teaching | None = None

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains."""
        return ("batch_size", "optimizer", "loss", "augment", "distill")

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name the features that no layer of the teacher gives."""
        return feature_misfits("distill.features", self.distill.features if self.distill else (), model)

    @model_validator(mode="after")
    def _trains_where_it_is_told_how(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in self.only_for_training() if getattr(self, name) != fields[name].default]
        if self.epochs == 0 and idle:
            raise KpipeError(
                f"epochs is 0: nothing trains, and {', '.join(idle)} would do nothing. Leave {', '.join(idle)} out, "
                "or give epochs"
            )
        return self


class Reporting(keras.callbacks.Callback):
    """Tell the run's listener how far a training is, at most five times a second, and keep the curves."""

    def __init__(self, context: Context, epochs: int, steps: int):
        super().__init__()
        self.context = context
        self.epochs = epochs
        self.steps = steps
        self._epoch = 0
        self._told = 0.0
        self._last = ""

    def on_epoch_begin(self, epoch, logs=None):
        """Keep the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Tell the fraction done."""
        if time.monotonic() - self._told < 0.2:
            return
        self._told = time.monotonic()
        done = (self._epoch + (batch + 1) / self.steps) / self.epochs
        self.context.progress.tell(f"epoch {self._epoch + 1}/{self.epochs}{self._last}", min(done, 1.0))

    def on_epoch_end(self, epoch, logs=None):
        """Tell the validation accuracy, and keep what the epoch came to."""
        self.context.record.add_history({name: [value] for name, value in (logs or {}).items()})
        reached = (logs or {}).get("val_accuracy")
        self._last = "" if reached is None else f", validation accuracy {reached:.4f}"
        self.context.progress.tell(f"epoch {epoch + 1}/{self.epochs}{self._last}", (epoch + 1) / self.epochs)


def steps_in(training: TrainingStage, context: Context) -> int:
    """Give the number of optimizer updates of a stage's training."""
    return training.epochs * math.ceil(len(context.data.train[0]) / training.batch_size)


def make_optimizer(optimizer: Optimizer, steps: int) -> keras.optimizers.Optimizer:
    """Make a Keras optimizer whose rate decays over a number of updates.

    Example:
        >>> made = make_optimizer(Optimizer(name="sgd", learning_rate=0.5, decay="none"), steps=10)
        >>> type(made).__name__, float(made.learning_rate)
        ('SGD', 0.5)
    """
    rate = optimizer.learning_rate
    if optimizer.decay == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=max(1, steps))
    given = {"weight_decay": optimizer.weight_decay, "momentum": optimizer.momentum}
    extra: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if optimizer.name == "sgd" and optimizer.momentum:
        extra["nesterov"] = True
    return getattr(keras.optimizers, OPTIMIZERS[optimizer.name])(learning_rate=rate, **extra)


def train(
    training: TrainingStage,
    model: keras.Model,
    context: Context,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    teacher: Teacher | None = None,
) -> keras.Model:
    """Train a model as a stage says; zeros of earlier stages stay zero, and their clusters together.

    Args:
        training: The stage.
        model: The model; it belongs to the stage, and may be the one that is trained.
        context: The run's context. The curves go into its record.
        callbacks: More callbacks.
        teacher: Who teaches, as `teacher_of` gives it; None for labels alone.

    Returns:
        The trained model.

    Raises:
        KpipeError: When the teacher does not fit.
    """
    if training.epochs == 0:
        return model
    steps = steps_in(training, context)
    told = [
        *_holding_clusters(context, callbacks),
        *callbacks,
        Reporting(context, training.epochs, steps // training.epochs),
    ]
    optimizer = make_optimizer(training.optimizer, steps)
    loss = loss_for(model, context.data.train[1], training.loss)
    with hold_zeros(model) if context.holds_zeros else nullcontext():
        if teacher is not None:
            return distill(
                teacher=teacher.model,
                student=model,
                data=_data(training, context),
                temperature=teacher.teaching.temperature,
                alpha=teacher.teaching.alpha,
                epochs=training.epochs,
                features=teacher.features(model),
                feature_weight=teacher.teaching.feature_weight,
                optimizer=optimizer,
                loss=loss,
                validation_data=context.data.validation,
                callbacks=told,
                batch_size=training.batch_size,
                verbose=0,
            )
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)  # type: ignore[arg-type]
        data = _data(training, context)
        varied = isinstance(data, tf.data.Dataset)  # its batches and order are its own
        model.fit(
            *((data,) if varied else data),
            epochs=training.epochs,
            batch_size=None if varied else training.batch_size,
            shuffle=not varied,
            validation_data=context.data.validation,
            callbacks=told,
            verbose=0,  # type: ignore[arg-type]
        )
    return model


def _holding_clusters(context: Context, callbacks: Sequence[keras.callbacks.Callback]) -> list[HoldClusters]:
    """Hold the clusters of earlier stages, unless the stage clusters anew, or prunes what they are made of."""
    following = [callback for callback in callbacks if isinstance(callback, Follower)]
    if not context.holds_clusters:
        return []
    if any(not isinstance(callback, HoldClusters) for callback in following):
        context.record.note("Clusters of an earlier stage are not held while the model is pruned: prune first.")
    return [] if following else [HoldClusters()]


def _data(training: TrainingStage, context: Context) -> tf.data.Dataset | tuple[np.ndarray, np.ndarray]:
    if training.augment is None:
        return context.data.train
    return augmented(
        *context.data.train,
        training.batch_size,
        flip=training.augment.flip,
        shift=training.augment.shift,
        seed=context.seed,
    )


def evidence(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Give the labelled training samples that criteria with a gradient look at."""
    x, y = context.data.train
    return x[:EVIDENCE_SAMPLES], y[:EVIDENCE_SAMPLES]
