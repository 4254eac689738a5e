"""Answers of a classifier: which kind they are, and how those of teacher and student are compared."""

from typing import Any, Literal

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.fake_quant import ROUNDING
from kpipe.graph import gives_probabilities, last_activation

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
    """Say whether a classifier answers with logits or with the probabilities of a softmax.

    Its last layer says it; where that is neither, as a sum of two models, its answers do.

    Args:
        model: A built model with one output of shape (batch, ..., classes).
        x: A batch of inputs.

    Returns:
        "probabilities" or "logits".

    Raises:
        KpipeError: When it has several outputs, or a single value a sample, or ends in a sigmoid.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> answers_of(net, np.ones((4, 2)))
        'probabilities'
    """
    answers = ask(model, x)
    squashed = last_activation(model, ROUNDING) is keras.activations.sigmoid
    if answers.ndim < 2 or answers.shape[-1] < 2 or squashed:
        raise KpipeError(
            f"The model {model.name!r} answers with shape {answers.shape}{' from a sigmoid' if squashed else ''}; "
            "distillation expects one logit, or one softmax probability, for each of at least 2 classes."
        )
    return "probabilities" if gives_probabilities(model, lambda: answers, ROUNDING) else "logits"


def ask(model: keras.Model, x: Any) -> np.ndarray:
    """Give the answers of a model on some inputs, as in inference.

    Raises:
        KpipeError: When it has several outputs.
    """
    outputs = keras.tree.flatten(model(keras.tree.map_structure(keras.ops.convert_to_tensor, x), training=False))
    if len(outputs) != 1:
        raise KpipeError(f"The model {model.name!r} has {len(outputs)} outputs; distillation expects one. Split it.")
    return np.asarray(keras.ops.convert_to_numpy(outputs[0]), "float32")
