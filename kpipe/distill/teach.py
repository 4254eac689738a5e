"""Teach a small model with a large one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.checks import is_number, is_whole
from kpipe.copies import check_built, copy_model
from kpipe.data import batches, samples
from kpipe.distill.answers import Answers, SoftAnswers, answers_of, ask
from kpipe.distill.features import Feature, FeatureAnswers, Pupil, feature_losses
from kpipe.errors import KpipeError
from kpipe.projections import hold_zeros


def distill(
    teacher: keras.Model,
    student: keras.Model,
    data: Any,
    temperature: float = 3.0,
    alpha: float = 0.5,
    epochs: int = 1,
    *,
    features: Sequence[str | Feature] = (),
    feature_weight: float = 1.0,
    optimizer: Any = None,
    loss: Any = None,
    validation_data: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    batch_size: int = 32,
    verbose: Any = "auto",
) -> keras.Model:
    """Train a copy of the student on the labels and on the teacher's answers.

    loss = alpha * labels + (1 - alpha) * (T^2 * KL(teacher / T || student / T) + feature_weight * features), where
    features is the mean over the layers of the squared difference of the outputs, as a part of the teacher's mean
    square. Exact zeros in the student's kernels stay zero. Teacher and student stay as they are.

    Args:
        teacher: A trained classifier that answers with logits or with a softmax.
        student: A classifier of the same inputs and classes.
        data: Labelled training data: what `model.fit` takes.
        temperature: Softens both answers before they are compared; above 0.
        alpha: Share of the labels in the loss, in [0, 1]; 0 needs no labels.
        epochs: Passes over the data.
        features: Layers whose outputs are compared too: names that both models have, or `Feature`s, which say which of
            the teacher's channels the student has. Where the student's channels are fewer and nobody says which, a
            learned linear map of them is compared.
        feature_weight: Of the features, beside the answers; above 0.
        optimizer: A Keras optimizer or its name; None for Adam with a rate of 0.001.
        loss: Loss on the labels; None for the cross-entropy that fits the labels and the student's answers.
        validation_data: Data to validate on after every epoch, with labels.
        callbacks: Keras callbacks. Their `model` is a `keras.distillation.Distiller`; its `student` is being trained.
        batch_size: Samples an update, for arrays.
        verbose: What `model.fit` takes.

    Returns:
        The trained copy of the student: a plain model, not compiled.

    Raises:
        KpipeError: When the models do not fit each other or the data, or an argument is out of range.

    Example:
        >>> make = lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> taught = distill(make(), make(), (np.ones((8, 2)), np.zeros(8, int)), verbose=0)
        >>> type(taught).__name__, taught.output_shape
        ('Sequential', (None, 3))

    References:
        Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (2015), https://arxiv.org/abs/1503.02531
        Romero et al., FitNets: hints for thin deep nets (2015), https://arxiv.org/abs/1412.6550
    """
    check_built(teacher)
    check_built(student)
    _check(temperature, alpha, epochs, features, feature_weight, batch_size)
    x, y = _first_batch(data, alpha)
    for model in (teacher, student):
        samples(x, model, what="training")
    answers: tuple[Answers, Answers] = (answers_of(teacher, x), answers_of(student, x))
    loss = loss if loss is not None else _loss_for(y, ask(student, x).ndim, answers[1])
    taught = copy_model(student)
    with _unchanged(teacher):
        hints = feature_losses(teacher, taught, features)
        try:
            distiller = _distiller(teacher, taught, SoftAnswers(temperature, *answers), hints, alpha, feature_weight)
        except ValueError as error:
            raise KpipeError(f"{student.name!r} cannot learn from {teacher.name!r}: {error}") from error
        distiller.compile(
            optimizer="adam" if optimizer is None else optimizer,
            loss=loss,
            metrics=None if y is None else ["accuracy"],
        )
        with hold_zeros(distiller):
            distiller.fit(
                **_arguments(data, batch_size),
                epochs=epochs,
                validation_data=validation_data,
                callbacks=list(callbacks),
                verbose=verbose,
            )
    return taught


def _distiller(
    teacher: keras.Model,
    student: keras.Model,
    answers: SoftAnswers,
    hints: Sequence[FeatureAnswers],
    alpha: float,
    feature_weight: float,
) -> keras.distillation.Distiller:
    weights = [1.0, *([feature_weight / len(hints)] * len(hints) if hints else [])]
    return Pupil(teacher, student, [answers, *hints], weights, student_loss_weight=float(alpha))


def _check(
    temperature: Any, alpha: Any, epochs: Any, features: Sequence[str | Feature], feature_weight: Any, batch_size: Any
) -> None:
    if not is_number(temperature) or temperature <= 0:
        raise KpipeError(f"temperature is {temperature!r}; expected a number above 0, such as 3.0.")
    if not is_number(alpha) or not 0 <= alpha <= 1:
        raise KpipeError(f"alpha is {alpha!r}; expected the labels' share of the loss, in [0, 1].")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not is_whole(value, 1):
            raise KpipeError(f"{name} is {value!r}; expected a whole number of at least 1.")
    if not is_number(feature_weight) or feature_weight <= 0:
        raise KpipeError(f"feature_weight is {feature_weight!r}; expected a number above 0.")
    if features and alpha == 1:
        raise KpipeError("alpha is 1, so the teacher has no say and features would do nothing. Give a lower alpha.")


def _first_batch(data: Any, alpha: float) -> tuple[Any, Any]:
    if isinstance(data, Iterator):
        raise KpipeError("data is an iterator, which is used up after one look. Give the function that makes it.")
    first = next(batches(data, 32), None)
    if first is None:
        raise KpipeError("The training data is empty; expected at least one batch.")
    if first[1] is None and alpha > 0:
        raise KpipeError(f"The training data has no labels and alpha is {alpha}. Give (x, y), or alpha=0.")
    return first


def _loss_for(y: Any, rank: int, answers: Answers) -> keras.losses.Loss:
    """Give the cross-entropy for labels y and answers of `rank` dimensions (batch, ..., classes).

    One-hot labels have the shape of the answers; numbers of classes have it without its last axis, or with 1 there.
    """
    from_logits = answers == "logits"
    if y is not None and np.ndim(y) == rank and np.shape(y)[-1] > 1:
        return keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _arguments(data: Any, batch_size: int) -> dict[str, Any]:
    """Say the data in the arguments of `fit`; a generator function is gathered into arrays, for many epochs."""
    if isinstance(data, tf.data.Dataset):
        return {"x": data, "shuffle": False}  # it says its order itself, and fit warns of a True
    if isinstance(data, keras.utils.PyDataset):
        return {"x": data}
    if callable(data):
        parts = list(batches(data))
        data = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts, none_is_leaf=False)
    if isinstance(data, tuple):
        return dict(zip(("x", "y", "sample_weight"), data, strict=False)) | {"batch_size": batch_size}
    return {"x": data, "batch_size": batch_size}


@contextmanager
def _unchanged(teacher: keras.Model) -> Iterator[None]:
    """Give every layer its own `trainable` back: the Distiller freezes the teacher."""
    before = [(layer, layer.trainable) for layer in teacher._flatten_layers()]
    try:
        yield
    finally:
        for layer, trainable in before:  # from the outside in: a model sets all that it holds
            layer.trainable = trainable
