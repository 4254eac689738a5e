"""Let a regulariser pull channels towards zero inside the train step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace, TracedWeight
from kpipe.projections import GradientPull
from kpipe.structured.regularisers import REGULARIZERS, Channels, Regularizer


def pull(
    regularizer: Regularizer,
    model: keras.Model,
    trace: Trace,
    groups: Sequence[Group],
    ratio: float,
    until: int | None = None,
) -> GradientPull:
    """Let a regulariser pull the channels of some groups inside the train step of a model.

    Args:
        regularizer: The regulariser.
        model: The compiled model that is fit.
        trace: Of the model, or of the student in it.
        groups: The channels that may go.
        ratio: The fraction of the channels that go in the end.
        until: Number of optimizer updates after which nothing is pulled any more.

    Returns:
        The pull; call its `release` after the training.

    Raises:
        KpipeError: When the regulariser judges no weight of these channels.
    """
    spans = np.cumsum([0, *(len(group) for group in groups)])
    place_of = np.full(trace.class_count, -1)  # class -> its place among all the channels; -1 for one that stays
    for group, start in zip(groups, spans, strict=False):
        place_of[group.classes] = np.arange(start, start + len(group))
    parts = [
        _Part(weight, axis, places)
        for layer in trace.layers
        for weight in layer.weights
        if weight.variable.trainable and regularizer.judges(layer.layer, weight.role)
        for axis, ids in weight.axes.items()
        if ((places := place_of[trace.class_of[ids]]) >= 0).any()
    ]
    if not parts:
        raise KpipeError(
            f"The regularizer {type(regularizer).__name__} pulls no trained weight of the channels of "
            f"{', '.join(group.name for group in groups) or model.name!r}. Leave it out, or take another: "
            f"{', '.join(REGULARIZERS)}."
        )

    def added(step: tf.Tensor) -> dict[int, tf.Tensor]:
        pulled: dict[int, tf.Tensor] = {}
        for together in [[part] for part in parts] if regularizer.alone else [parts]:
            for part, more in _pulls(regularizer, together, spans, step, ratio):
                key = id(part.weight.variable)
                pulled[key] = pulled[key] + more if key in pulled else more
        return pulled

    return GradientPull(model, [part.weight.variable for part in parts], added, until)


@dataclass(frozen=True)
class _Part:
    """One axis of one weight: the place of each entry among the channels, shape (size of the axis,)."""

    weight: TracedWeight
    axis: int
    places: np.ndarray

    def value(self) -> tf.Tensor:
        return tf.cast(tf.convert_to_tensor(self.weight.variable), tf.float32)

    def others(self) -> list[int]:
        return [axis for axis in range(len(self.weight.variable.shape)) if axis != self.axis]


def _pulls(
    regularizer: Regularizer, parts: Sequence[_Part], spans: np.ndarray, step: tf.Tensor, ratio: float
) -> list[tuple[_Part, tf.Tensor]]:
    total = int(spans[-1])
    squares, sizes = tf.zeros(total), np.zeros(total)
    for part in parts:
        along = tf.reduce_sum(tf.square(part.value()), axis=part.others())  # (size of the axis,)
        squares += tf.math.unsorted_segment_sum(along, part.places, total)  # places below 0 are left out
        inside = part.places[part.places >= 0]
        sizes += np.bincount(inside, minlength=total) * math.prod(part.weight.variable.shape) // len(part.places)
    norms, step = tf.sqrt(squares), tf.cast(step, tf.int32)
    each = [
        regularizer.factors(Channels(norms[start:end], sizes[start:end], step, ratio))
        for start, end in pairwise(spans.tolist())
    ]
    factors = tf.concat([*each, tf.zeros(1)], 0)  # the last one for what stays, which place -1 is sent to
    found = []
    for part in parts:
        shape = [1] * len(part.weight.variable.shape)
        shape[part.axis] = -1
        factor = tf.reshape(tf.gather(factors, np.where(part.places < 0, total, part.places)), shape)
        found.append((part, factor * part.value()))
    return found
