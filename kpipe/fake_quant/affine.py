"""Affine 8-bit grids: the scales and ranges that the runtimes use."""

from typing import Any

import numpy as np
import tensorflow as tf

from kpipe.layers.layout import Layout

SMALLEST_RANGE = 1e-6
"""A tensor that spans less than this says nothing of its range: it gets one of width 1 instead."""
HALF = 16
"""Bits of a float of half the size."""
ACCURACY = 1e-5
"""Of a kernel on its grid, in units of its greatest weight."""


def widen(low: float, high: float) -> tuple[float, float]:
    """Make a range hold zero, which padding and ReLU need exactly, and have a width.

    Example:
        >>> widen(0.5, 2.0), widen(-3.0, -1.0), widen(0.0, 0.0)
        ((0.0, 2.0), (-3.0, 0.0), (0.0, 1.0))
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return (low, high) if high - low > SMALLEST_RANGE else (low, low + 1.0)


def through_zero(low: Any, high: Any, bits: int = 8) -> tuple[Any, Any]:
    """Stretch a range so that 0 is one of its levels, as both ends are.

    TensorFlow shifts a range by up to half a step for that. The range (-1, 1) of images made by k / 127.5 - 1 it shifts
    by just half a step, and then each pixel lies in the middle between two levels: one runtime rounds it up, the next
    one down.

    Args:
        low: At most 0; a number or a tensor.
        high: At least 0, and more than `low`.
        bits: Of a level's number.

    Returns:
        (-z · s, (2**bits - 1 - z) · s), z a whole number, s the least step with which `low` and `high` are inside.

    Example:
        >>> [[round(float(end), 5) for end in through_zero(*ends)] for ends in ((-1.0, 1.0), (0.0, 2.0), (-3.0, 0.0))]
        [[-1.0, 1.00787], [0.0, 2.0], [-3.0, 0.0]]
    """
    low, high = (tf.convert_to_tensor(end, tf.float32) for end in (low, high))
    most = float(2**bits - 1)
    below = tf.clip_by_value(tf.floor(-low * most / (high - low)), 0.0, most - 1)
    zeros = tf.stack([below, below + 1])  # the levels of 0 that come into question
    steps = tf.maximum(_step_to(high, most - zeros), _step_to(-low, zeros))
    best = tf.argmin(steps)
    zero, step = tf.gather(zeros, best), tf.gather(steps, best)
    return -zero * step, (most - zero) * step


def _step_to(end: Any, levels: Any) -> Any:
    """Give the step with which so many levels reach an end; there is none where no levels are to reach beyond 0."""
    without = tf.where(end > 0, np.float32(np.inf), np.float32(0.0))
    return tf.where(levels > 0, tf.math.divide_no_nan(end, levels), without)


def nearest_level(x: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """Round to the nearest level of a range, and to the even one in the middle between two, as integer kernels do.

    TensorFlow's operation for it subtracts the least level and adds a half before it cuts off, in single precision. So
    it takes some of 10⁵ values, which lie next to the middle, to the other level, mostly the upper one, and deep
    networks drift away from their files.

    Args:
        x: A tensor of any shape.
        low: The least level, with 0 among the levels, as `through_zero` gives it.
        high: The greatest level.
        bits: Of a level's number.

    Returns:
        min(max(round(x / s), -z), 2**bits - 1 - z) · s; gradients reach what lies inside the range unchanged.

    Example:
        >>> nearest_level(tf.constant([-9.0, 0.5, 1.5, 2.6]), -127.0, 128.0).numpy().tolist()
        [-9.0, 0.0, 2.0, 3.0]
    """
    low, high = (tf.cast(end, tf.float64) for end in (low, high))
    step = (high - low) / float(2**bits - 1)
    zero = tf.round(-low / step)
    step, zero = tf.cast(step, x.dtype), tf.cast(zero, x.dtype)
    inside = tf.clip_by_value(x / step, -zero, 2.0**bits - 1 - zero)
    return tf.grad_pass_through(tf.round)(inside) * step


def channel_axes(layout: Layout, rank: int) -> tuple[int, ...]:
    """Say along which axes of a kernel each channel has a scale of its own: those that become channels of the output.

    Example:
        >>> from kpipe.layers.layout import DEPTHWISE, NATURAL
        >>> channel_axes(NATURAL, 4), channel_axes(DEPTHWISE, 4), channel_axes(Layout((-1,), (-2,)), 4)
        ((3,), (2, 3), (2,))
    """
    return tuple(sorted(axis % rank for axis in layout.outputs))


def channel_scales(kernel: np.ndarray, axes: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """Give the step of each channel, shaped to broadcast with the kernel: s = max|w| / (2**(bits - 1) - 1).

    A channel of zeros only gets the greatest step of the others: any grid holds it, and its bias keeps a fine one.

    Example:
        >>> channel_scales(np.array([[1.27, 0.0], [-2.54, 0.0]]), axes=(1,))
        array([[0.02, 0.02]])
    """
    rest = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    largest = np.abs(np.asarray(kernel, np.float64)).max(axis=rest, keepdims=True)
    return np.where(largest > 0, largest, largest.max() or 1.0) / (2 ** (bits - 1) - 1)


def to_levels(kernel: np.ndarray, scales: np.ndarray, bits: int = 8) -> np.ndarray:
    """Give the whole numbers round(w / s), symmetric and narrow (-127 to 127 at 8 bits); zeros stay zeros.

    Example:
        >>> to_levels(np.array([[1.27, 0.0], [-2.54, 0.0]]), np.array([[0.02, 0.02]]))
        array([[  64,    0],
               [-127,    0]], dtype=int8)
    """
    end = 2 ** (bits - 1) - 1
    return np.clip(np.floor(np.asarray(kernel, np.float64) / scales + 0.5), -end, end).astype(np.int8)


def on_grid(kernel: np.ndarray, axes: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """Put a kernel on its per-channel grid: round(w / s) * s. Doing it again changes nothing.

    Of 16 bits there is no grid: those are floats of half the size.

    Example:
        >>> on_grid(np.array([[1.0], [0.4], [0.0]], np.float32), axes=(1,), bits=3)
        array([[1.        ],
               [0.33333334],
               [0.        ]], dtype=float32)
    """
    if bits == HALF:
        return np.asarray(kernel).astype(np.float16).astype(np.asarray(kernel).dtype)
    scales = channel_scales(kernel, axes, bits)
    return (to_levels(kernel, scales, bits) * scales).astype(np.asarray(kernel).dtype)


def grid_of(kernel: np.ndarray, axis: int) -> int | None:
    """Find the bits of the grid of whole numbers on which a kernel lies; None when it is on none that files know.

    No kernel lies on both that of 8 bits and that of 4, but one of greatest entries and zeros alone, which counts as 8.

    Args:
        kernel: A float kernel.
        axis: That of its channels.

    Example:
        >>> kernel = np.random.default_rng(0).normal(size=(9, 4))
        >>> [grid_of(on_grid(kernel, (1,), bits), axis=1) for bits in (4, 8)], grid_of(kernel, axis=1)
        ([4, 8], None)
    """
    largest = np.abs(kernel).max()
    for bits in (8, 4):
        if np.abs(on_grid(kernel, (axis,), bits) - kernel).max() <= ACCURACY * largest:
            return bits
    return None
