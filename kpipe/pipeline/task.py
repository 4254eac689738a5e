"""What the network is for: which loss its output and the labels ask for, and how well it does."""

from collections.abc import Callable

import keras
import numpy as np

from kpipe import graph
from kpipe.errors import KpipeError
from kpipe.fake_quant import ROUNDING
from kpipe.registry import nearest
from kpipe.saliency.metrics import hits_of

LOSSES: dict[str, tuple[Callable[..., keras.losses.Loss], bool]] = {
    "sparse_categorical_crossentropy": (keras.losses.SparseCategoricalCrossentropy, True),
    "categorical_crossentropy": (keras.losses.CategoricalCrossentropy, True),
    "binary_crossentropy": (keras.losses.BinaryCrossentropy, True),
    "mean_squared_error": (keras.losses.MeanSquaredError, False),
    "mean_absolute_error": (keras.losses.MeanAbsoluteError, False),
    "huber": (keras.losses.Huber, False),
}
"""Name -> the loss, and whether it is to be told that it sees logits."""

ENTROPIES = tuple(name for name in LOSSES if name.endswith("crossentropy"))


def loss_for(model: keras.Model, labels: np.ndarray, name: str = "auto") -> keras.losses.Loss:
    """Choose the loss that fits the model's output and the labels.

    Integer labels take the sparse categorical cross-entropy, or the binary one for a single output; one-hot labels take
    the categorical one; other labels the mean squared error. Outputs are logits unless the model ends in a softmax or
    a sigmoid.

    Args:
        model: A model with one output.
        labels: The labels, `(n,)` or `(n, classes)`.
        name: "auto", or a name of `LOSSES`.

    Returns:
        The loss.

    Raises:
        KpipeError: When the model has several outputs, there is no such loss, or labels lie outside the classes that
            the output can tell.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> loss_for(net, np.array([0, 2])).name
        'sparse_categorical_crossentropy'
    """
    if len(model.outputs) != 1:
        raise KpipeError(
            f"The model {model.name!r} has {len(model.outputs)} outputs; a recipe trains models with one output. "
            "Train it with model.fit and the callbacks of kpipe instead."
        )
    name = _fitting(model.outputs[0].shape[-1], labels) if name == "auto" else name
    if name not in LOSSES:
        raise KpipeError(f"Unknown loss {name!r}. Known: auto, {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
    _check_labels(model, labels, name)
    kind, asks = LOSSES[name]
    return kind(from_logits=not gives_probabilities(model)) if asks else kind()


def _check_labels(model: keras.Model, labels: np.ndarray, name: str) -> None:
    units = model.outputs[0].shape[-1]
    classes = {"sparse_categorical_crossentropy": units, "binary_crossentropy": 2 if units == 1 else None}.get(name)
    if classes is None or not labels.size or (labels.min() >= 0 and labels.max() < classes):
        return
    raise KpipeError(
        f"The labels run from {labels.min()} to {labels.max()}, but to {name} the model {model.name!r} with {units} "
        f"output{'s' if units > 1 else ''} tells {classes} classes, 0 to {classes - 1}. Give its last layer more "
        "units, or name the loss of a regression, such as mean_squared_error."
    )


def _fitting(units: int | None, labels: np.ndarray) -> str:
    if labels.dtype.kind in "iub" and labels.ndim == 1:
        return "binary_crossentropy" if units == 1 else "sparse_categorical_crossentropy"
    if labels.ndim == 2 and units == labels.shape[1] > 1 and np.allclose(labels.sum(axis=1), 1):
        return "categorical_crossentropy"
    return "mean_squared_error"


def gives_probabilities(model: keras.Model) -> bool:
    """Tell whether a model ends in a softmax or a sigmoid; a quantized one is looked through.

    Args:
        model: A model with one output, float or quantized.

    Returns:
        False for logits, and for a last layer that is not known; see `kpipe.graph.gives_probabilities`.

    Example:
        >>> gives_probabilities(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")]))
        True
    """
    return graph.gives_probabilities(model, passing=ROUNDING)


def classifies(labels: np.ndarray, loss: str = "auto") -> bool:
    """Tell whether labels name classes, so that an accuracy can be told.

    Args:
        labels: `(n,)` or `(n, classes)`.
        loss: "auto" goes by the labels; to a cross-entropy whole numbers and one-hot rows are classes, to any other
            loss nothing is.

    Example:
        >>> classifies(np.array([0, 3])), classifies(np.array([0.5, 1.5]))
        (True, False)
        >>> classifies(np.array([0, 3]), "mean_squared_error")
        False
    """
    if labels.ndim == 2:
        one_hot = labels.shape[1] > 1 and bool(np.allclose(labels.sum(axis=1), 1))
        return one_hot and (loss == "auto" or loss in ENTROPIES)
    if loss == "auto":
        return labels.ndim == 1 and labels.dtype.kind in "iub"
    return labels.ndim == 1 and loss in ENTROPIES and bool(np.all(np.mod(labels, 1) == 0))


def accuracy(outputs: np.ndarray, labels: np.ndarray, probabilities: bool = False, loss: str = "auto") -> float | None:
    """Give the fraction of samples put into the right class.

    Args:
        outputs: `(n, classes)`, or `(n, 1)` or `(n,)` for two classes.
        labels: `(n,)` classes or `(n, classes)` one-hot.
        probabilities: Whether a single output is a probability rather than a logit.
        loss: The loss that the outputs were trained with.

    Returns:
        The fraction in [0, 1]; None for labels that are no classes to the loss.

    Raises:
        KpipeError: When there are not as many labels as outputs.

    Example:
        >>> accuracy(np.array([[0.1, 2.0], [3.0, 0.5]]), np.array([1, 1]))
        0.5
        >>> accuracy(np.array([[0.7], [-0.2]]), np.array([1, 0]))
        1.0
    """
    if not classifies(labels, loss):
        return None
    truth = labels.argmax(axis=-1) if labels.ndim == 2 else labels
    answers = outputs[:, None] if outputs.ndim == 1 else outputs
    return float(np.mean(hits_of(answers, truth, 0.5 if probabilities else 0.0)))
