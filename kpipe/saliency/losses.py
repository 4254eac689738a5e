"""The loss that evidence is about, and what it takes to differentiate it and leave the model as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss

from kpipe.errors import KpipeError

Loss = Callable[[Any, Any, Any, Any], Any]
"""(x, y, outputs, sample weights) of one batch -> the loss, a scalar tensor."""

LOG_LOSSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.KLDivergence,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.kl_divergence,
)
"""The losses of Keras that are convex in the logits before a softmax or sigmoid, and not in its probabilities."""


def loss_of(model: keras.Model, loss: Any = None, who: str = "A criterion that needs gradients") -> Loss:
    """Give the loss of a model's outputs as a function of one batch.

    Args:
        model: The model.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with, along with its loss weights
            and the penalties that its layers add, as in training.
        who: Asks for it, named in the error.

    Raises:
        KpipeError: When neither is there.
    """
    if loss is not None:
        # The losses by name, by output and in nested structures mean what they mean in `compile`.
        chosen = CompileLoss(loss, output_names=getattr(model, "output_names", None))
        return lambda x, y, outputs, weights: chosen(y, outputs, weights)
    if not model.compiled:
        raise KpipeError(
            f"{who} needs a loss. Received: a model ({model.name!r}) that is not compiled, "
            "and no loss. Compile the model, or pass loss='sparse_categorical_crossentropy' or the like."
        )
    return lambda x, y, outputs, weights: model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weights)


def log_losses(model: keras.Model, loss: Any, outputs: Any) -> list[bool]:
    """Say for each output of a model, flat, whether its loss is one of `LOG_LOSSES`.

    Args:
        model: The model.
        loss: As in `loss_of`.
        outputs: The model's outputs.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> log_losses(net, "mse", 0), log_losses(net, "sparse_categorical_crossentropy", 0)
        ([False], [True])
        >>> log_losses(net, {"a": "mse", "b": keras.losses.BinaryCrossentropy()}, {"a": 0, "b": 0})
        [False, True]
    """
    count = len(keras.tree.flatten(outputs))
    losses = model.loss if loss is None else loss
    if isinstance(losses, Mapping):
        names = sorted(outputs) if isinstance(outputs, Mapping) else getattr(model, "output_names", None)
        losses = [losses.get(name) for name in names or losses]
    if not isinstance(losses, Sequence) or isinstance(losses, str):
        losses = [losses] * count
    return [_is_log_loss(one) for one in losses]


def _is_log_loss(loss: Any) -> bool:
    if loss in ("crossentropy", "ce"):  # Keras chooses the kind by the shape of the labels
        return True
    found: Any = keras.losses.get(loss) if isinstance(loss, str) else loss
    return found in LOG_LOSSES or type(found) in LOG_LOSSES


@contextmanager
def undisturbed(model: keras.Model) -> Iterator[None]:
    """Put everything back that a call of the model or of its loss may change: states, seeds, metrics.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
        >>> with undisturbed(net):
        ...     _ = net(np.ones((3, 2)), training=True)
        >>> net.layers[0].moving_mean.numpy().tolist()
        [0.0, 0.0]
    """
    moving = [variable for variable in model.variables if not variable.trainable]
    moving += [variable for metric in model.metrics for variable in metric.variables]
    before = {id(variable): variable.numpy() for variable in moving}
    try:
        yield
    finally:
        for variable in moving:
            if not np.array_equal(variable.numpy(), before[id(variable)]):
                variable.assign(before[id(variable)])
        for metric in model.metrics:  # the means of several losses are made in the first call
            if any(id(variable) not in before for variable in metric.variables):
                metric.reset_state()


def traced(function: Callable[..., Any], reduce_retracing: bool = True) -> Any:
    """Trace a function as a TensorFlow graph, without advice on how to trace less: each new pass traces.

    Example:
        >>> traced(lambda x: x + 1)(tf.constant(1)).numpy().item()
        2
    """
    made: Any = tf.function(function, autograph=False, reduce_retracing=reduce_retracing)
    made._omit_frequent_tracing_warning = True
    return made


def zeros_like(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    """Make a float32 sum of zeros for each variable.

    Example:
        >>> [tuple(total.shape) for total in zeros_like([keras.Variable([1.0, 2.0])])]
        [(2,)]
    """
    return [tf.Variable(tf.zeros(variable.shape, "float32"), trainable=False) for variable in variables]


def means(
    variables: Sequence[keras.Variable], learning: Sequence[keras.Variable], sums: Sequence[tf.Variable], count: int
) -> list[np.ndarray]:
    """Divide sums by a count: an array for each variable, zeros for those that are not learning.

    Example:
        >>> held, free = keras.Variable([1.0]), keras.Variable([2.0])
        >>> [mean.tolist() for mean in means([held, free], [free], [tf.Variable([6.0])], 4)]
        [[0.0], [1.5]]
    """
    found = {id(variable): total.numpy() / np.float32(count) for variable, total in zip(learning, sums, strict=True)}
    return [found.get(id(variable), np.zeros(variable.shape, "float32")) for variable in variables]
