"""Batch normalization folded into the layer before it."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def norm_as_affine(layer: keras.layers.BatchNormalization) -> tuple[Any, Any]:
    """Write a batch norm in inference as x · m + b, as `multiplier_and_offset` does, in tensors of its weights."""
    variance, mean = (tf.cast(tf.convert_to_tensor(v), tf.float64) for v in (layer.moving_variance, layer.moving_mean))
    multiplier = 1.0 / tf.sqrt(variance + layer.epsilon)
    if layer.scale:
        multiplier = multiplier * tf.cast(tf.convert_to_tensor(layer.gamma), tf.float64)
    offset = -mean * multiplier
    if layer.center:
        offset = offset + tf.cast(tf.convert_to_tensor(layer.beta), tf.float64)
    return multiplier, offset


def multiplier_and_offset(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Write a batch norm in inference as x · m + b, with m = γ / √(σ² + ε) and b = β - μ · m, both shape (channels,).

    Example:
        >>> norm = keras.layers.BatchNormalization(epsilon=0.0)
        >>> norm.build((None, 2))
        >>> _ = norm.moving_mean.assign([1.0, 0.0]), norm.moving_variance.assign([4.0, 1.0])
        >>> m, b = multiplier_and_offset(norm)
        >>> m.tolist(), b.tolist()
        ([0.5, 1.0], [-0.5, 0.0])
    """
    multiplier, offset = norm_as_affine(layer)
    return np.asarray(multiplier), np.asarray(offset)


def fold(
    kernel: np.ndarray, bias: np.ndarray | None, multiplier: np.ndarray, offset: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Fold y · m + b into the kernel and bias that compute y.

    Each output channel is scaled as a whole, so a kernel on its per-channel grid stays on one: only the steps change.

    Args:
        kernel: (..., in, out), or depthwise (..., in, multiplier).
        bias: (out,), or None.
        multiplier: m, shape (out,).
        offset: b, shape (out,).
        axes: The kernel's channel axes.

    Returns:
        The new kernel and bias.

    Example:
        >>> kernel, bias = fold(np.ones((1, 2)), np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.5, 0.0]), (1,))
        >>> kernel.tolist(), bias.tolist()
        ([[3.0, 4.0]], [3.5, 8.0])
    """
    channels = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    folded = np.asarray(kernel, np.float64) * multiplier.reshape(channels)
    bias = np.zeros_like(multiplier) if bias is None else np.asarray(bias, np.float64)
    return folded.astype(np.float32), (bias * multiplier + offset).astype(np.float32)


def uneven(bias: np.ndarray) -> np.ndarray:
    """Move one entry of a bias that is the same in all channels by a millionth of itself.

    The LiteRT converter stores such a bias with a single scale, wrong for all channels whose weights have another.

    Example:
        >>> uneven(np.array([0.5, 0.5], np.float32)).tolist(), uneven(np.zeros(2)).tolist()
        ([0.5000004768371582, 0.5], [0.0, 0.0])
    """
    bias = np.array(bias)
    first = (0,) * bias.ndim
    if bias.size > 1 and bias[first] != 0 and (bias == bias[first]).all():
        bias[first] *= 1 + 1e-6
    return bias
