"""Rules of operations along axes: sums, means, maxima, softmax, sorting."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.operations.operands import BATCH, across_batch, axes_of, classes, frozen
from kpipe.layers.rule import Kept, Rule, rule

OVER_CHANNELS = classes("numpy", "Amax Amin Max Mean Min Std Sum Var") + classes("math", "Logsumexp")
"""Reductions that have a meaning over the kept channels alone, as the statistics of a norm do."""

REDUCTIONS = classes(
    "numpy",
    "All Any Argmax Argmin CountNonzero Median Nanargmax Nanargmin Nanmax Nanmean Nanmedian Nanmin Nanprod Nanstd "
    "Nansum Nanvar Prod Ptp",
) + classes("linalg", "Norm")
"""Reductions that leave channels alone when they run over other axes."""

ALONG = classes("numpy", "Argsort Cumprod Cumsum Nancumprod Nancumsum Roll Sort") + classes(
    "nn", "LogSoftmax Softmax Sparsemax"
)
"""Operations that mix the values along an axis, and leave channels alone when they run along another one."""


@rule(*OVER_CHANNELS, *REDUCTIONS)
def reduction(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Drop the axes that are reduced; channels pass, or are reduced over those that are kept alone."""
    axes, channel = axes_of(operation.axis, x.ndim + 1), varying(x)
    if BATCH in axes:
        return across_batch(ids, [x], "runs over the batch")
    if channel in axes:
        if type(operation) not in OVER_CHANNELS:
            return frozen(ids, [x], "runs over the channels")
        reference = _over_kept(operation, channel, ids.along(x, channel))
        return Rule(ids.constant(f"{ids.path!r} runs over the channels"), reference=reference)
    keep = vars(operation).get("keepdims", False)
    return Rule(x if keep else x.squeeze(tuple(axes)))


def _over_kept(operation: Any, axis: int, channels: Ids) -> Callable[[Kept], Callable[..., Any]]:
    """Compute an operation over those entries of an axis that are kept."""

    def reference(kept: Kept) -> Callable[..., Any]:
        places = np.flatnonzero(kept(channels))
        return lambda x: operation(keras.ops.take(x, places, axis=axis + 1))

    return reference


@rule(*classes("nn", "Moments"))
def moments(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Mean and variance; channels pass when they run over other axes."""
    axes = axes_of(operation.axes, x.ndim + 1)
    if BATCH in axes or varying(x) in axes:
        return across_batch(ids, [x], "runs over the batch" if BATCH in axes else "runs over the channels")
    return Rule(x if operation.keepdims else x.squeeze(tuple(axes)))


@rule(*ALONG)
def along(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Freeze channels that are mixed; along another axis they pass."""
    axes = axes_of(operation.axis, x.ndim + 1)
    if BATCH in axes or varying(x) in axes:
        return frozen(ids, [x], "mixes the channels" if BATCH not in axes else "runs over the batch")
    return Rule(x)


@rule(*classes("nn", "Normalize"))
def normalize(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Divide by the norm over an axis; over the channels, by that of those that are kept."""
    axes, channel = axes_of(operation.axis, x.ndim + 1), varying(x)
    if BATCH in axes:
        return across_batch(ids, [x], "runs over the batch")
    return Rule(x, reference=_masked(operation, x) if channel in axes else None)


def _masked(operation: Any, channels: Ids) -> Callable[[Kept], Callable[..., Any]]:
    """Compute an operation on what is left when the other channels are zero: a norm does not feel them."""

    def reference(kept: Kept) -> Callable[..., Any]:
        mask = kept(channels)[None]  # batch axis in front
        return lambda x: operation(x * keras.ops.cast(mask, x.dtype))

    return reference


@rule(*classes("nn", "Glu"))
def gated(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Multiply the first half of an axis by a gate of the second: the halves of the channels are tied."""
    axes, channel = axes_of(operation.axis, x.ndim + 1), varying(x)
    if BATCH in axes:
        return across_batch(ids, [x], "runs over the batch")
    if channel not in axes:
        return Rule(x)
    return Rule(ids.spread(ids.tie_blocks(ids.along(x, channel), 2), channel))
