"""Teach a small model with a large one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kpipe.copies import check_built, copy_model
from kpipe.data import batches, samples
from kpipe.errors import KpipeError
from kpipe.projections import hold_zeros

Answers = Literal["logits", "probabilities"]


@keras.saving.register_keras_serializable(package="kpipe")
class SoftAnswers(keras.distillation.DistillationLoss):
    """Compare the answers of teacher and student, both softened by a temperature.

    T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, where t and s are logits. A model that ends in a
    softmax answers with probabilities p; log(p) are logits of the same softmax, so they are taken.

    Args:
        temperature: T, above 0.
        teacher: Whether the teacher answers with "logits" or "probabilities".
        student: The same of the student.

    Example:
        >>> logits = np.array([[1.0, 2.0]], "float32")
        >>> probabilities = np.exp(logits) / np.exp(logits).sum()
        >>> loss = SoftAnswers(3.0, "logits", "probabilities").compute_loss(logits, probabilities)
        >>> bool(abs(loss) < 1e-6)
        True

    References:
        Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (2015), https://arxiv.org/abs/1503.02531
    """

    def __init__(self, temperature: float = 3.0, teacher: Answers = "logits", student: Answers = "logits"):
        self.temperature = temperature
        self.teacher: Answers = teacher
        self.student: Answers = student
        divergence: Any = keras.losses.KLDivergence()  # by name it would be taken for a plain function
        self._compare = keras.distillation.LogitsDistillation(temperature, loss=divergence)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch; both outputs have shape (batch, ..., classes)."""
        return self._compare.compute_loss(
            _logits(teacher_outputs, self.teacher), _logits(student_outputs, self.student), **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        """Give all the arguments."""
        return {"temperature": self.temperature, "teacher": self.teacher, "student": self.student}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SoftAnswers":
        """Make the loss from what `get_config` gave."""
        return cls(**config)


def _logits(outputs: Any, answers: Answers) -> Any:
    outputs = keras.ops.cast(outputs, "float32")
    return outputs if answers == "logits" else keras.ops.log(keras.ops.clip(outputs, 1e-7, 1.0))


def answers_of(model: keras.Model, x: Any) -> Answers:
    """Say whether a classifier answers with logits or with the probabilities of a softmax, by asking it.

    Args:
        model: A built model with one output of shape (batch, ..., classes).
        x: A batch of inputs.

    Returns:
        "probabilities" when all answers are at least 0 and sum to 1, else "logits".

    Raises:
        KpipeError: When it has several outputs, or a single value a sample, or ends in a sigmoid.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> answers_of(net, np.ones((4, 2)))
        'probabilities'
    """
    answers = _ask(model, x)
    squashed = _last_activation(model) is keras.activations.sigmoid
    if answers.ndim < 2 or answers.shape[-1] < 2 or squashed:
        raise KpipeError(
            f"The model {model.name!r} answers with shape {answers.shape}{' from a sigmoid' if squashed else ''}; "
            "distillation expects one logit, or one softmax probability, for each of at least 2 classes."
        )
    sums = answers.sum(axis=-1)
    return "probabilities" if answers.min() >= 0 and np.allclose(sums, 1, atol=0.02) else "logits"


def _ask(model: keras.Model, x: Any) -> np.ndarray:
    outputs = keras.tree.flatten(model(keras.tree.map_structure(keras.ops.convert_to_tensor, x), training=False))
    if len(outputs) != 1:
        raise KpipeError(f"The model {model.name!r} has {len(outputs)} outputs; distillation expects one. Split it.")
    return np.asarray(keras.ops.convert_to_numpy(outputs[0]), "float32")


def _last_activation(model: keras.Model) -> Callable[..., Any] | None:
    last: Any = model
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    return getattr(last, "activation", None)


def distill(
    teacher: keras.Model,
    student: keras.Model,
    data: Any,
    temperature: float = 3.0,
    alpha: float = 0.5,
    epochs: int = 1,
    *,
    optimizer: Any = None,
    loss: Any = None,
    validation_data: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    batch_size: int = 32,
    verbose: Any = "auto",
) -> keras.Model:
    """Train a copy of the student on the labels and on the teacher's answers.

    loss = alpha * labels + (1 - alpha) * T^2 * KL(teacher / T || student / T). Exact zeros in the student's kernels
    stay zero. Teacher and student stay as they are.

    Args:
        teacher: A trained classifier that answers with logits or with a softmax.
        student: A classifier of the same inputs and classes.
        data: Labelled training data: what `model.fit` takes.
        temperature: Softens both answers before they are compared; above 0.
        alpha: Share of the labels in the loss, in [0, 1]; 0 needs no labels.
        epochs: Passes over the data.
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
    """
    check_built(teacher)
    check_built(student)
    _check(temperature, alpha, epochs)
    x, y = _first_batch(data, alpha)
    for model in (teacher, student):
        samples(x, model, what="training")
    answers: tuple[Answers, Answers] = (answers_of(teacher, x), answers_of(student, x))
    loss = loss if loss is not None else _loss_for(y, _ask(student, x).ndim, answers[1])
    taught = copy_model(student)
    with _unchanged(teacher):
        try:
            distiller = keras.distillation.Distiller(
                teacher, taught, SoftAnswers(temperature, *answers), student_loss_weight=float(alpha)
            )
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


def _check(temperature: float, alpha: float, epochs: int) -> None:
    if not 0 < temperature < float("inf"):
        raise KpipeError(f"temperature is {temperature!r}; expected a number above 0, such as 3.0.")
    if not 0 <= alpha <= 1:
        raise KpipeError(f"alpha is {alpha!r}; expected the labels' share of the loss, in [0, 1].")
    if epochs < 1:
        raise KpipeError(f"epochs is {epochs!r}; expected at least 1.")


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
