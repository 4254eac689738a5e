"""Evidence of second order: the diagonal of the Gauss-Newton matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.saliency.batches import Pass
from kpipe.saliency.samples import ZERO, mean_squares

MOST_OUTPUTS = 1024
"""Outputs a sample up to which the matrix is taken: each costs a pass back through the network."""


def gauss_newton_diagonal(model: keras.Model, variables: Sequence[keras.Variable], loss: Any) -> Pass:
    """Prepare to take the diagonal of the Gauss-Newton matrix of the mean loss: h, the mean of diag(J' H J).

    The mean is over the samples. J is the Jacobian of a sample's outputs z by the weights, H the Hessian of its loss by
    z. With H = Σ_k v_k v_k' (its eigenvectors, scaled) the diagonal is the sum of the squared gradients J'v_k, exactly.
    It leaves the curvature of the network itself out and is never negative. It is the diagonal of the Hessian where z
    is linear in each single weight (layers with ReLU, linear or pooling alone, almost everywhere), and where every
    sample's loss is at its minimum in z.

    z are the outputs; with a cross-entropy or Kullback-Leibler divergence of Keras after a softmax or sigmoid they are
    the logits, so that both ways to write a classifier give the same. A weight that is used at many places, as in a
    convolution, is one weight. Penalties that layers add are no part of it.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.

    Returns:
        From labelled data, what `model.fit` takes, to an array for each variable, of its shape; zeros for one that is
        frozen or that the loss does not depend on. It raises `KpipeError` when the loss is not convex in the outputs,
        there are too many outputs, data or labels are missing, or the model cannot run on one sample.

    Raises:
        KpipeError: When a loss is missing.

    Example:
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> data = (np.array([[1.0], [3.0]]), np.zeros((2, 1)))  # loss (3w)², second derivative 2 · 3²
        >>> gauss_newton_diagonal(net, net.weights, "mse")(data)[0].round(4).tolist()
        [[10.0]]

    References:
        LeCun, Denker and Solla, Optimal Brain Damage (1990); Schraudolph, Fast curvature matrix-vector products (2002)
    """
    lowest, highest = (tf.Variable(tf.zeros((), "float64"), trainable=False) for _ in range(2))

    def rows(sample_loss: Callable[[tf.Tensor], tf.Tensor], point: tf.Tensor) -> tf.Tensor:
        _check_width(model, point.shape[0])
        eigenvalues, eigenvectors = tf.linalg.eigh(_hessian(sample_loss, point))
        lowest.assign(tf.minimum(lowest, eigenvalues[0]))
        highest.assign(tf.maximum(highest, eigenvalues[-1]))
        factors = eigenvectors * tf.sqrt(tf.maximum(eigenvalues, 0))
        return tf.cast(tf.transpose(factors), "float32")

    squares = mean_squares(model, variables, loss, rows, strict=True)

    def through(data: Any) -> list[Any]:
        for extreme in (lowest, highest):
            extreme.assign(0)
        found = squares(data)
        _check_convex(model, float(lowest), float(highest))
        return found

    return through


def _check_convex(model: keras.Model, lowest: float, highest: float) -> None:
    if lowest < -1e-4 * highest - 1e-6:  # more than the rounding of float32
        raise KpipeError(
            f"The loss of {model.name!r} is not convex in its outputs: its Hessian has eigenvalues from "
            f"{lowest:.3g} to {highest:.3g}, so there is no Gauss-Newton matrix. Give a loss that is, such as 'mse' or "
            "a cross-entropy on logits or on a last softmax layer, or use criterion='fisher'."
        )


def _check_width(model: keras.Model, width: int | None) -> None:
    if width is not None and width > MOST_OUTPUTS:
        raise KpipeError(
            f"The model {model.name!r} has {width} outputs a sample, and the Gauss-Newton matrix takes a pass back for "
            f"each; at most {MOST_OUTPUTS}. Use criterion='fisher', which takes one."
        )


def _hessian(function: Callable[[tf.Tensor], tf.Tensor], point: tf.Tensor) -> tf.Tensor:
    """Differentiate a function of a vector twice: (C, C), symmetric, float64."""
    second, first = tf.GradientTape(), tf.GradientTape()
    with second:
        second.watch(point)
        with first:
            first.watch(point)
            total = function(point)
        gradient = first.gradient(total, point, unconnected_gradients=ZERO)
    found: Any = tf.cast(second.jacobian(gradient, point, unconnected_gradients=ZERO), "float64")
    return (found + tf.transpose(found)) / 2
