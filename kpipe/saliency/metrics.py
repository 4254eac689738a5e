"""How good the answers of a changed model are: a figure over data, of a function from inputs to outputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.data import samples, weighted_batches
from kpipe.errors import KpipeError
from kpipe.graph import answer_at_rest, functional, gives_probabilities
from kpipe.registry import nearest
from kpipe.saliency.losses import loss_of

BATCH = 256
"""Samples a batch, for arrays."""

Answer = Callable[[list[np.ndarray]], Sequence[Any]]
"""One array for each input of a model -> one for each output."""

Labelled = tuple[Any, Any, Sequence[Any], Any]
"""(x, y, outputs, sample weights) of one batch."""

Own = Callable[[Any, Any], float]
"""(labels, outputs) of all the data -> a figure, higher: better."""

METRICS = ("accuracy", "loss")


@dataclass(frozen=True)
class Metric:
    """A figure of a model's answers.

    Args:
        name: "accuracy", "loss" or the name of a function.
        higher_is_better: Whether a higher figure is better.
        measure: From the answers batch by batch to the figure.
    """

    name: str
    higher_is_better: bool
    measure: Callable[[Iterable[Labelled]], float]

    def of(self, answer: Answer, model: keras.Model, data: Any) -> float:
        """Measure what a function answers on labelled data of a model."""
        return self.measure((x, y, answer(inputs), w) for inputs, x, y, w in labelled_batches(model, data, self.name))


def labelled_batches(model: keras.Model, data: Any, what: str) -> Iterator[tuple[list[np.ndarray], Any, Any, Any]]:
    """Go through labelled data in batches of (one array for each input, x, y, sample weights).

    Raises:
        KpipeError: When there are no data, no labels, or inputs that the model does not take.
    """
    for inputs, x, y, weights in input_batches(model, data, what):
        if y is None:
            raise KpipeError(f"{what} needs labels. Received: inputs alone. Pass data=(x, y).")
        yield inputs, x, y, weights


def input_batches(model: keras.Model, data: Any, what: str) -> Iterator[tuple[list[np.ndarray], Any, Any, Any]]:
    """Go through data as `labelled_batches` does; y is None where there are no labels.

    Raises:
        KpipeError: When there are no data, or inputs that the model does not take.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> [(x.shape, y) for (x,), _, y, _ in input_batches(net, np.zeros((300, 2)), "loss")]
        [((256, 2), None), ((44, 2), None)]
    """
    if data is None:
        raise KpipeError(f"{what} needs data. Received: data=None.")
    empty = True
    for x, y, weights in weighted_batches(data, BATCH):
        empty = False
        yield samples(list(x) if isinstance(x, tuple) else x, model, None, what), x, y, weights
    if empty:
        raise KpipeError(f"{what} needs data. Received: no batch at all.")


def metric_of(metric: str | Own, model: keras.Model, data: Any, loss: Any = None, who: str = "metric='loss'") -> Metric:
    """Give a metric for a model.

    Args:
        metric: "accuracy", the fraction of samples (or of places, such as pixels) put into the right class; "loss"; or
            a function of all the labels and all the outputs, of which higher is better.
        model: The model; one with a single output value a sample is asked here whether it gives probabilities, where
            its last layer does not tell.
        data: Labelled data.
        loss: For "loss": what `compile` takes. None: the one that the model is compiled with.
        who: Asks for the loss, named in the error.

    Raises:
        KpipeError: When there is no such metric, or it does not fit the model.
    """
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(name, True, lambda batches: _own(metric, model, batches))
    if metric == "loss":
        function = loss_of(model, loss, who)
        return Metric("loss", False, lambda batches: _loss(function, model, batches))
    if metric != "accuracy":
        hint = nearest(metric, METRICS)
        raise KpipeError(f"metric is {metric!r}; expected one of {METRICS} or a function of (labels, outputs).{hint}")
    if len(model.outputs) != 1:
        raise KpipeError(
            f"The model {model.name!r} has {len(model.outputs)} outputs, and accuracy is about one. Use metric='loss', "
            "or a function of (labels, outputs)."
        )
    threshold = _threshold(model, data)
    return Metric("accuracy", True, lambda batches: _accuracy(batches, threshold))


def _threshold(model: keras.Model, data: Any) -> float:
    """Give the value from which on a single output means the second class: of a probability, or of a logit."""
    if model.outputs[0].shape[-1] != 1:
        return 0.5

    def ask() -> np.ndarray:
        inputs, *_ = next(labelled_batches(model, data, "accuracy"))
        return np.asarray(answer_at_rest(model, inputs)[0])

    return 0.5 if gives_probabilities(model, ask) else 0.0


def _accuracy(batches: Iterable[Labelled], threshold: float) -> float:
    right = total = 0.0
    for _, y, (outputs,), weights in batches:
        hits = hits_of(np.asarray(outputs), np.asarray(y), threshold)
        each = np.ones(hits.shape) if weights is None else _spread(np.asarray(weights), hits.shape)
        right, total = right + (hits * each).sum(), total + each.sum()
    if total == 0:
        raise KpipeError("Accuracy is a mean over samples, and their weights sum to 0. Give others, or none.")
    return float(right / total)


def _spread(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give a weight for each place, shape `shape`, from one for each sample or place, with or without a last axis."""
    while weights.ndim > len(shape) and weights.shape[-1] == 1:
        weights = weights[..., 0]
    if weights.shape != shape[: weights.ndim]:
        raise KpipeError(f"Accuracy expects sample weights of shape {shape[:1]} or {shape}. Received: {weights.shape}.")
    return np.broadcast_to(weights.reshape(*weights.shape, *[1] * (len(shape) - weights.ndim)), shape)


def hits_of(outputs: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Say of each sample, or of each place in it, whether it was put into the right class.

    Args:
        outputs: (..., classes), or (..., 1) for two classes.
        labels: (...) or (..., 1) numbers of classes, or (..., classes) one-hot.
        threshold: The value from which on a single output means the second class.

    Returns:
        Shape (...), bool.

    Raises:
        KpipeError: When the labels do not fit the outputs.

    Example:
        >>> hits_of(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])).tolist()
        [True, False]
        >>> hits_of(np.array([[0.7], [0.2]]), np.array([[1], [1]])).tolist()
        [True, False]
    """
    places, classes = outputs.shape[:-1], outputs.shape[-1]
    if labels.shape == (*places, 1):
        labels = labels[..., 0]
    elif labels.shape == outputs.shape:
        labels = labels.argmax(-1)
    if labels.shape != places:
        raise KpipeError(f"Accuracy expects labels of shape {places} or {outputs.shape}. Received: {labels.shape}.")
    found = outputs[..., 0] > threshold if classes == 1 else outputs.argmax(-1)
    return np.asarray(found == labels)


def _loss(function: Callable[..., Any], model: keras.Model, batches: Iterable[Labelled]) -> float:
    total = count = 0.0
    for x, y, outputs, weights in batches:
        size = len(keras.tree.flatten(x)[0])
        total += size * float(function(x, y, _packed(model, outputs), weights))
        count += size
    return total / count


def _own(metric: Own, model: keras.Model, batches: Iterable[Labelled]) -> float:
    labels, answers = [], []
    for _, y, outputs, _ in batches:
        labels.append(y)
        answers.append(_packed(model, [np.asarray(output) for output in outputs]))
    whole = [keras.tree.map_structure(lambda *parts: np.concatenate(parts), *parts) for parts in (labels, answers)]
    return float(metric(*whole))


def _packed(model: keras.Model, outputs: Sequence[Any]) -> Any:
    return keras.tree.pack_sequence_as(functional(model)._outputs_struct, list(outputs))
