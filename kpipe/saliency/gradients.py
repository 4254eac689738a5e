"""Evidence from gradients: the mean over the batches, and the mean square over the samples."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.saliency.losses import labelled, loss_of, traced, undisturbed, zeros_like
from kpipe.saliency.samples import mean_squares


def mean_gradients(model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any) -> list[np.ndarray]:
    """Take the mean over the batches of dL/dw, where L is the loss of a batch.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        data: What `model.fit` takes, with labels.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with, penalties of layers too.

    Returns:
        An array for each variable, of its shape; zeros for one that is frozen or that the loss does not depend on.

    Raises:
        KpipeError: When labels, data or a loss are missing.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.set_weights([np.array([[2.0]])])
        >>> mean_gradients(net, net.weights, (np.array([[1.0], [3.0]]), np.zeros((2, 1))), "mse")[0].tolist()
        [[20.0]]
    """
    batches, compute = labelled(data), loss_of(model, loss)
    learning = [variable for variable in variables if variable.trainable]
    values, sums = [variable.value for variable in learning], zeros_like(learning)

    @traced
    def add(x: Any, y: Any, weights: Any) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            total = compute(x, y, model(x, training=False), weights)
        found: Any = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        for entry, gradient in zip(sums, found, strict=True):
            entry.assign_add(tf.cast(gradient, "float32"))  # dense also where an Embedding's gradient is sparse

    count = 0
    with undisturbed(model):
        for x, y, weights in batches:
            add(x, y, weights)
            count += 1
    means = {id(variable): total.numpy() / np.float32(count) for variable, total in zip(learning, sums, strict=True)}
    return [means.get(id(variable), np.zeros(variable.shape, "float32")) for variable in variables]


def mean_squared_gradients(
    model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any
) -> list[np.ndarray]:
    """Take the mean over the samples of (dl/dw)², where l is the loss of one sample: the empirical Fisher diagonal.

    The loss of a sample is that of a batch with this sample alone, penalties of layers left out.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        data: What `model.fit` takes, with labels.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.

    Returns:
        An array for each variable, of its shape; zeros for one that is frozen or that the loss does not depend on.

    Raises:
        KpipeError: When labels, data or a loss are missing, or the model cannot run on one sample.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.set_weights([np.array([[2.0]])])
        >>> data = (np.array([[1.0], [3.0]]), np.zeros((2, 1)))  # gradients 4 and 36
        >>> mean_squared_gradients(net, net.weights, data, "mse")[0].tolist()
        [[656.0]]
    """

    def row(sample_loss: Any, point: tf.Tensor) -> tf.Tensor:
        tape: Any = tf.GradientTape()
        with tape:
            tape.watch(point)
            total = sample_loss(point)
        return tape.gradient(total, point, unconnected_gradients=tf.UnconnectedGradients.ZERO)[None]

    return mean_squares(model, variables, data, loss, row)
