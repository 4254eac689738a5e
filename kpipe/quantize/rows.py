"""Layers with a kernel as products of matrices: what each kernel multiplies, row by row."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

Rows = Callable[[Any, Any], Any]
"""(layer, x) -> (rows, groups, in): what the kernel of each group multiplies."""


MOST_BYTES = 2**27
"""Of the rows of one layer."""


def rows_of(layer: Any, x: Any, most: int) -> np.ndarray | None:
    """Give what the kernel of a layer multiplies, (rows, groups, in).

    Args:
        layer: A built layer with a kernel.
        x: What goes into it, (samples, ...).
        most: Rows, or little more than so many: of all, evenly apart.

    Returns:
        The rows; None for layers that are no such product.
    """
    if type(layer) not in ROWS:
        return None
    overlap = np.prod(getattr(layer, "kernel_size", 1)) / np.prod(getattr(layer, "strides", 1))
    step = int(np.ceil(4 * overlap * np.prod(x.shape) / MOST_BYTES))
    rows = ROWS[type(layer)](layer, x[:: max(1, step)])
    if rows is None:
        return None
    most = max(1, min(most, MOST_BYTES // (4 * int(np.prod(rows.shape[1:])))))
    return np.asarray(rows[:: max(1, len(rows) // most)], np.float32)


def grouped(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Write a kernel as the matrices of its groups, (groups, in, out), so that rows · matrices gives the output.

    Example:
        >>> layer = L.Conv2D(6, 3, groups=2)
        >>> layer.build((None, 8, 8, 4))
        >>> grouped(layer, layer.kernel.numpy()).shape
        (2, 18, 3)
    """
    if isinstance(layer, DEPTHWISE):
        return np.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1)  # (..., c, m) -> (c, places, m)
    groups = getattr(layer, "groups", 1)
    inputs = kernel.shape[: layer.kernel.ndim - len(_outputs(layer))]
    matrix = kernel.reshape(int(np.prod(inputs)), groups, -1)  # (..., in, groups · out) -> (places · in, groups, out)
    return np.moveaxis(matrix, 1, 0)


def ungrouped(layer: Any, matrices: np.ndarray) -> np.ndarray:
    """Write matrices of groups as the kernel again: the inverse of `grouped`."""
    if isinstance(layer, DEPTHWISE):
        return np.moveaxis(matrices, 1, 0).reshape(layer.kernel.shape)
    return np.moveaxis(matrices, 0, 1).reshape(layer.kernel.shape)


DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)


def _outputs(layer: Any) -> tuple[int, ...]:
    """Give the sizes of a kernel's last axes, which are those of the output."""
    shape: tuple[int, ...] = tuple(layer.kernel.shape)
    if isinstance(layer, L.EinsumDense):
        _, kernel = layer.equation.split("->")[0].split(",")
        new = [letter for letter in kernel if letter in layer.equation.split("->")[1]]
        return shape[-len(new) :]
    return shape[-1:]


def _dense(layer: Any, x: Any) -> Any:
    return tf.reshape(x, (-1, 1, x.shape[-1]))


def _einsum(layer: Any, x: Any) -> Any | None:
    """Give the rows of an einsum whose kernel sums over the last axes of the input, in their order."""
    left, out = layer.equation.split("->")
    given, kernel = left.split(",")
    summed = [letter for letter in given if letter not in out]
    new = [letter for letter in kernel if letter not in summed]
    plain = given.endswith("".join(summed)) and kernel == "".join(summed + new) and out.endswith("".join(new))
    if not plain or "..." in given:
        return None
    return tf.reshape(x, (-1, 1, int(np.prod(x.shape[-len(summed) :]))))


def _windows(layer: Any, x: Any) -> Any:
    """Give the windows that a convolution looks at, (batch · places, groups, window · channels)."""
    if x.shape.rank == 3:  # (batch, steps, c) -> (batch, 1, steps, c)
        x = x[:, None]
    sizes, strides, dilations = ((1, *each)[-2:] for each in (layer.kernel_size, layer.strides, layer.dilation_rate))
    padding = layer.padding
    if padding == "causal":
        x, padding = tf.pad(x, ((0, 0), (0, 0), ((sizes[1] - 1) * dilations[1], 0), (0, 0))), "valid"
    found = tf.image.extract_patches(x, (1, *sizes, 1), (1, *strides, 1), (1, *dilations, 1), padding.upper())
    depthwise = isinstance(layer, DEPTHWISE)
    groups = x.shape[-1] if depthwise else layer.groups
    # (batch, h, w, places · c) -> (rows, places, groups, c / groups) -> (rows, groups, places, c / groups)
    split = tf.reshape(found, (-1, int(np.prod(sizes)), groups, x.shape[-1] // groups))
    return tf.reshape(tf.transpose(split, (0, 2, 1, 3)), (-1, groups, int(np.prod(sizes)) * (x.shape[-1] // groups)))


ROWS: dict[type[keras.Layer], Rows] = {
    L.Dense: _dense,
    L.EinsumDense: _einsum,
    **{cls: _windows for cls in (L.Conv1D, L.Conv2D, *DEPTHWISE)},
}
