"""What layers within teacher and student compute, compared channel by channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.registry import nearest


@dataclass(frozen=True)
class Feature:
    """Name a layer of the teacher and the one of the student whose output is compared with its own.

    Args:
        teacher: Name of the teacher's layer.
        student: Name of the student's layer; None: the same.
        kept: The places of those of the teacher's channels that the student has, in its order; None: all of them, or
            where the student has fewer, not known.
        axis: Along which the channels lie, the batch axis counted.
    """

    teacher: str
    student: str | None = None
    kept: tuple[int, ...] | None = None
    axis: int = -1


class FeatureAnswers(keras.distillation.DistillationLoss):
    """Compare the outputs of two layers: the mean squared difference, as a part of the teacher's mean square.

    Args:
        feature: The layers, and which channels the student has.
        projection: A layer that maps the student's output to the teacher's channels; None where they match.

    Example:
        >>> one = FeatureAnswers(Feature("conv", kept=(0, 2)))
        >>> float(one.compute_loss(np.array([[1.0, 5.0, 3.0]]), np.array([[1.0, 2.0]])))  # (0 + 1) / (1 + 9)
        0.1...
    """

    def __init__(self, feature: Feature, projection: keras.Layer | None = None):
        self.feature, self.projection = feature, projection
        self.teacher_layer_name, self.student_layer_name = feature.teacher, feature.student or feature.teacher
        compare: Any = _relative_square  # Keras says that it takes a name alone
        self._compare = keras.distillation.FeatureDistillation(compare)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch; outputs of shape (batch, ..., channels)."""
        theirs, ours = (keras.ops.cast(outputs, "float32") for outputs in (teacher_outputs, student_outputs))
        if self.feature.kept is not None:
            theirs = keras.ops.take(theirs, np.asarray(self.feature.kept), axis=self.feature.axis)
        if self.projection is not None:
            ours = self.projection(keras.ops.moveaxis(ours, self.feature.axis, -1))
            ours = keras.ops.moveaxis(ours, -1, self.feature.axis)
        return self._compare.compute_loss(theirs, ours, **kwargs)


def _relative_square(theirs: Any, ours: Any) -> Any:
    away, scale = (keras.ops.mean(keras.ops.square(values)) for values in (theirs - ours, theirs))
    return keras.ops.divide(away, keras.ops.maximum(scale, 1e-12))


class Pupil(keras.distillation.Distiller):
    """Take the student's features from the very pass that its answers come from; Keras would run it a second time."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        hints = [one for one in self.distillation_losses if isinstance(one, FeatureAnswers)]
        self.projections = [one.projection for one in hints if one.projection is not None]  # so they are trained
        self._passed = _Passed()

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Give the student's answers, and keep the features for the loss."""
        if self._student_feature_extractor is None:
            return super().call(inputs, training=training, **kwargs)
        found = self._student_feature_extractor(inputs, training=training, **kwargs)
        self._passed.features[id(found["final_output"])] = found
        return found["final_output"]

    def _extract_all_student_features(self, x: Any, y_pred: Any) -> Any:
        found = self._passed.features.pop(id(y_pred), None)  # by tensor: each of several devices has its own
        return super()._extract_all_student_features(x, y_pred) if found is None else found


class _Passed:
    """Hold features of passes whose loss has not been computed yet; Keras does not look inside."""

    def __init__(self) -> None:
        self.features: dict[int, Any] = {}


def feature_losses(
    teacher: keras.Model, student: keras.Model, features: Sequence[str | Feature]
) -> list[FeatureAnswers]:
    """Make the losses that compare layers of two models.

    Args:
        teacher: The teacher.
        student: The student.
        features: Names of layers that both have, or `Feature`s.

    Returns:
        A loss for each.

    Raises:
        KpipeError: When a layer is not there, or the outputs cannot be compared.
    """
    losses = []
    for one in features:
        feature = Feature(one) if isinstance(one, str) else one
        theirs, ours = _shape(teacher, feature.teacher), _shape(student, feature.student or feature.teacher)
        what = f"The output of {feature.teacher!r} has shape {theirs} in the teacher and {ours} in the student"
        if len(theirs) != len(ours) or len(theirs) < 2:
            raise KpipeError(f"{what}; features need one number of axes, with channels among them. Name other layers.")
        axis = feature.axis % len(theirs)
        if any(a != b for n, (a, b) in enumerate(zip(theirs, ours, strict=True)) if n != axis):
            raise KpipeError(f"{what}; they may differ in the number of channels alone. Name other layers.")
        all_of_theirs, mine = theirs[axis], ours[axis]
        if all_of_theirs is None or mine is None:
            raise KpipeError(f"{what}; the number of channels has to be known. Name other layers.")
        wanted = all_of_theirs if feature.kept is None else len(feature.kept)
        if feature.kept is not None and (wanted != mine or max(feature.kept, default=0) >= all_of_theirs):
            raise KpipeError(f"{what}, and kept is {feature.kept}; expected the place of each of the student's.")
        losses.append(FeatureAnswers(feature, None if wanted == mine else _projection(mine, wanted)))
    return losses


def _projection(ours: int, theirs: int) -> keras.Layer:
    layer = keras.layers.Dense(theirs, use_bias=False, name="projection", dtype="float32")
    layer.build((None, ours))
    return layer


def _shape(model: keras.Model, name: str) -> tuple[int | None, ...]:
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        raise KpipeError(
            f"The model {model.name!r} has no layer {name!r} whose output could be compared.{nearest(name, layers)}"
        )
    try:
        return tuple(layers[name].output.shape)
    except (AttributeError, ValueError) as fault:
        raise KpipeError(
            f"The layer {name!r} of {model.name!r} has no one output that could be compared: {fault}"
        ) from fault
