"""Adaptive rounding: which way each weight goes is chosen by what its layer answers, not by what is nearest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.graph import Flow, Site
from kpipe.quantize.bias import shift_bias, shifted
from kpipe.quantize.rows import grouped, rows_of, ungrouped
from kpipe.quantize.side_by_side import Pair, side_by_side

MOST_ROWS = 2**14
"""Places at which a layer is looked at, evenly over the samples."""
MOST_INPUTS = 4608
"""Of one output: in a layer with more, each weight goes to the nearest level. The time grows with their square."""
SWEEPS = 6
"""Times that each weight is looked at; fewer where nothing moves any more."""
BLOCK = 128
"""Weights of a channel that move before all others are told: the moves are the same, and most of the work is done by
products of matrices."""
SHARES = np.linspace(1.0, 0.5, 11)
"""Shares of the greatest weight of a channel that are tried as the end of its grid."""
DAMPING = 0.01
"""How much a weight is drawn to its value, in relation to its inputs' mean square: what few samples say of inputs that
vary together is not believed to the end."""


def adapt_rounding(model: keras.Model, inputs: Sequence[np.ndarray]) -> keras.Model:
    """Round kernels so that each layer answers to rounded inputs as it does in the float model.

    Layer by layer, for each output channel with weights w, E (w·x - w'·x' - mean)² over the samples is made small for
    w' on a grid: first by the end of the grid, at most max|w|, then by moving one weight at a time to the level that is
    best while all others stay, over and over. The greatest weight keeps the outermost level and zeros stay zeros: so
    the grid is the one that all else derives from the kernel, and lasts through training, files and exports. What is
    left of the mean is taken off by `shift_bias`.

    It looks at dense layers, convolutions (grouped, depthwise and 1-D ones too), and einsums that are matrix products;
    elsewhere, and with more than `MOST_INPUTS` inputs, each weight goes to its nearest level and the bias is corrected.

    Args:
        model: A model with calibrated ranges; its kernels and biases are set in place.
        inputs: One array for each input, (samples, ...); no labels are used.

    Returns:
        The model.

    References:
        Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020: what is made small.
        Behdin et al., QuantEase: Optimization-based Quantization for Language Models, arXiv:2309.01885: by which moves.
    """
    side_by_side(model, inputs, _adapt)
    return model


def _adapt(flow: Flow, site: Site, given: Pair) -> None:
    """Choose the levels of one layer, and correct its bias."""
    wrapper: Any = site.operation
    if wrapper.bits > 8:  # those are floats, and each is near enough
        return
    layer = wrapper.layer
    rows: list[Any] = [rows_of(layer, each, MOST_ROWS) for each in (given.exact, given.rounded)]
    (kernel,) = (weight.variable for weight in wrapper.kernels())
    before = tf.identity(kernel.value)
    if rows[0] is not None and rows[0].shape[-1] <= MOST_INPUTS:
        moments = Moments.of(*rows, centred=shifted(flow, site) is not None)
        kernel.assign(ungrouped(layer, on_best_levels(grouped(layer, np.asarray(kernel)), moments, wrapper.bits)))
    shift_bias(flow, site, given, before)


@dataclass(frozen=True)
class Moments:
    """Hold what the squared error of any rounded weights depends on.

    Args:
        gram: E x'ᵢ x'ⱼ of the rounded inputs, (groups, in, in).
        cross: E x'ᵢ xⱼ of the rounded and the exact ones, (groups, in, in).
    """

    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, exact: Any, rounded: Any, damping: float = DAMPING, centred: bool = True) -> "Moments":
        """Take them of rows, (rows, groups, in); centred, without their means, which a bias makes good.

        Example:
            >>> x = np.array([[[1.0, 0.0]], [[-1.0, 0.0]]])
            >>> Moments.of(x, x, damping=0.0).gram.tolist()
            [[[1.0, 0.0], [0.0, 0.0]]]
        """
        x, seen = (np.moveaxis(np.asarray(each), 1, 0) for each in (exact, rounded))  # (groups, rows, in)
        if centred:
            x, seen = (each - each.mean(1, keepdims=True) for each in (x, seen))
        gram, cross = (np.swapaxes(seen, 1, 2) @ other / x.shape[1] for other in (seen, x))
        drawn = damping * np.einsum("gii->g", gram)[:, None, None] / x.shape[2] * np.eye(x.shape[2])
        return cls(gram + drawn, cross + drawn)


def on_best_levels(matrices: np.ndarray, moments: Moments, bits: int) -> np.ndarray:
    """Put weights on grids so that the squared error of the outputs is small.

    Args:
        matrices: The weights, (groups, in, out); each (group, out) is a channel with a grid of its own.
        moments: Of the inputs.
        bits: Of a level's number.

    Returns:
        The weights on their grids, float32: level · step, with a level of ±(2^(bits - 1) - 1) in every channel that is
        not all zeros.

    Example:
        >>> alike = np.ones((1, 4, 4)) + np.eye(4) / 9
        >>> found = on_best_levels(np.array([[[3.0], [0.4], [0.4], [0.4]]]), Moments(alike, alike), bits=3)
        >>> found.round(1).ravel().tolist()
        [3.0, 1.0, 0.0, 0.0]
    """
    end, weights = 2 ** (bits - 1) - 1, matrices.astype(np.float64)
    importance = np.einsum("gii->gi", moments.gram)[:, :, None]
    importance = np.where(importance > 0, importance, 1.0)
    step = _best_steps(weights, importance, end)
    levels = nearest(weights, step, end)
    greatest = np.abs(weights).argmax(1)[:, None] == np.arange(weights.shape[1])[None, :, None]
    held = greatest | (weights == 0)
    slope = moments.gram @ (levels * step) - moments.cross @ weights
    for _ in range(SWEEPS):
        before = levels.copy()
        for begin in range(0, weights.shape[1], BLOCK):
            block = slice(begin, begin + BLOCK)
            gram, start = moments.gram[:, block, block], levels[:, block].copy()
            local = (slope[:, block], importance[:, block], step[:, 0], held[:, block])
            levels[:, block] = _swept(start, gram, *local, end)
            slope += moments.gram[:, :, block] @ ((levels[:, block] - start) * step)
        if (levels == before).all():
            break
    return (levels * step).astype(np.float32)


def _swept(
    levels: np.ndarray,
    gram: np.ndarray,
    slope: np.ndarray,
    importance: np.ndarray,
    step: np.ndarray,
    held: np.ndarray,
    end: int,
) -> np.ndarray:
    """Move each of some weights, (groups, block, out), to its best level in turn; `slope` is of half the error."""
    levels, slope = levels.copy(), slope.copy()
    for place in range(levels.shape[1]):
        ideal = levels[:, place] - slope[:, place] / (importance[:, place] * step)
        best = np.where(held[:, place], levels[:, place], np.clip(np.floor(ideal + 0.5), -end, end))
        change = (best - levels[:, place]) * step
        if change.any():
            slope += gram[:, :, place, None] * change[:, None, :]
            levels[:, place] = best
    return levels


def nearest(weights: np.ndarray, step: np.ndarray, end: int) -> np.ndarray:
    """Give the nearest levels, from -end to end."""
    return np.clip(np.floor(weights / step + 0.5), -end, end)


def _best_steps(weights: np.ndarray, importance: np.ndarray, end: int) -> np.ndarray:
    """Give for each channel the step with the least squared error of nearest levels, (groups, 1, out)."""
    largest = np.abs(weights).max(axis=1, keepdims=True)
    steps = np.stack([share * np.where(largest > 0, largest, 1.0) / end for share in SHARES])
    errors = [
        (importance * (nearest(weights, step, end) * step - weights) ** 2).sum(1, keepdims=True) for step in steps
    ]
    return np.take_along_axis(steps, np.argmin(errors, 0)[None], 0)[0]
