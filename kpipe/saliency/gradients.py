"""Evidence from gradients: the mean over the batches, and the mean square over the samples."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.saliency.batches import Pass, labelled
from kpipe.saliency.losses import loss_of, means, traced, undisturbed, zeros_like
from kpipe.saliency.samples import mean_squares


def mean_gradients(model: keras.Model, variables: Sequence[keras.Variable], loss: Any) -> Pass:
    """Prepare to take the mean over the batches of dL/dw, where L is the loss of a batch.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with, penalties of layers too.

    Returns:
        From labelled data, what `model.fit` takes, to an array for each variable, of its shape; zeros for one that is
        frozen or that the loss does not depend on. It raises `KpipeError` when data or labels are missing.

    Raises:
        KpipeError: When a loss is missing.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.set_weights([np.array([[2.0]])])
        >>> mean_gradients(net, net.weights, "mse")((np.array([[1.0], [3.0]]), np.zeros((2, 1))))[0].tolist()
        [[20.0]]
    """
    compute = loss_of(model, loss)
    learning = [variable for variable in variables if variable.trainable]
    values = [variable.value for variable in learning]

    @traced
    def add(sums: Sequence[tf.Variable], x: Any, y: Any, weights: Any) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            total = compute(x, y, model(x, training=False), weights)
        found: Any = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        for entry, gradient in zip(sums, found, strict=True):
            entry.assign_add(tf.cast(gradient, "float32"))  # dense also where an Embedding's gradient is sparse

    def through(data: Any) -> list[np.ndarray]:
        batches, sums, count = labelled(data), zeros_like(learning), 0
        with undisturbed(model):
            for x, y, weights in batches:
                add(sums, x, y, weights)
                count += 1
        return means(variables, learning, sums, count)

    return through


def mean_squared_gradients(model: keras.Model, variables: Sequence[keras.Variable], loss: Any) -> Pass:
    """Prepare to take the mean over the samples of (dl/dw)², l the loss of one sample: the empirical Fisher diagonal.

    The loss of a sample is that of a batch with this sample alone, penalties of layers left out.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.

    Returns:
        From labelled data, what `model.fit` takes, to an array for each variable, of its shape; zeros for one that is
        frozen or that the loss does not depend on. It raises `KpipeError` when data or labels are missing, or the model
        cannot run on one sample.

    Raises:
        KpipeError: When a loss is missing.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.set_weights([np.array([[2.0]])])
        >>> data = (np.array([[1.0], [3.0]]), np.zeros((2, 1)))  # gradients 4 and 36
        >>> mean_squared_gradients(net, net.weights, "mse")(data)[0].tolist()
        [[656.0]]
    """

    def row(sample_loss: Any, point: tf.Tensor) -> tf.Tensor:
        tape: Any = tf.GradientTape()
        with tape:
            tape.watch(point)
            total = sample_loss(point)
        return tape.gradient(total, point, unconnected_gradients=tf.UnconnectedGradients.ZERO)[None]

    return mean_squares(model, variables, loss, row)
