"""What a training may take of a model's channels, and what is gone already."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from kpipe.graph import Group, Trace, TracedWeight
from kpipe.projections import view

NORMED = (
    "{layer!r} computes something over all its channels, as a norm its mean: while the model trains, the zeros of a "
    "channel that has gone count, in the smaller model they would not"
)
FROZEN = "{weight!r} sums over them and is not trained: trainable is False"


def held_weights(trace: Trace) -> list[TracedWeight]:
    """List the weights whose entries are held at zero when their channel goes: all that are trained."""
    return [w for w in trace.weights if w.axes and w.role != "statistic" and w.variable.trainable]


def normed(trace: Trace) -> dict[int, str]:
    """Map each class of channels over which a layer computes something to the reason why it stays in a training."""
    return {
        int(one): NORMED.format(layer=layer.path)
        for layer in reversed(trace.layers)
        if layer.reference is not None
        for ids in layer.out
        for one in np.unique(trace.class_of[ids])
    }


def unreachable(trace: Trace) -> dict[int, str]:
    """Map each class of channels that a frozen weight sums over to the reason why it stays while that is so."""
    return {
        int(one): FROZEN.format(weight=weight.path)
        for weight in reversed(trace.weights)
        if not weight.variable.trainable and weight.role != "statistic"
        for axis in weight.summed
        for one in np.unique(trace.class_of[weight.axes[axis]])
    }


def gone_channels(trace: Trace, known: Mapping[str, Iterable[int]]) -> list[np.ndarray]:
    """Find the channels that have gone in a model: those of which nothing but zeros is left.

    A frozen weight that produces a channel need not be zero, nor any weight of a channel that is known to have gone,
    where what sums over it is. A group of nothing but zeros has not been pruned, it has not been trained yet.

    Args:
        trace: Of the model.
        known: Name of a group -> places that had gone when they were last looked at.

    Returns:
        For each group the places, ascending.

    Example:
        >>> import keras
        >>> from kpipe.graph import trace
        >>> a, b = keras.layers.Dense(3, use_bias=False, name="a"), keras.layers.Dense(1, name="b")
        >>> net = keras.Sequential([keras.Input((2,)), a, b])
        >>> _ = a.kernel.assign([[1, 0, 2], [3, 0, 4]]), b.kernel.assign([[1], [0], [0]])
        >>> gone_channels(trace(net), {}), gone_channels(trace(net), {"a": [2]})
        ([array([1])], [array([1, 2])])
    """
    summed = _alive(trace, [w for w in trace.weights if w.summed], only_summed=True)
    whole = summed | _alive(trace, held_weights(trace), only_summed=False)
    found = []
    for group in trace.groups:
        was = np.isin(np.arange(len(group)), np.asarray(list(known.get(group.name, ())), dtype=np.int64))
        gone = ~np.where(was, summed[group.classes], whole[group.classes])
        found.append(np.flatnonzero(gone) if not gone.all() else np.zeros(0, np.int64))
    return found


def _alive(trace: Trace, weights: Iterable[TracedWeight], only_summed: bool) -> np.ndarray:
    """Tell which classes have any entry that is not zero, shape (classes,)."""
    alive = np.zeros(trace.class_count, bool)
    for weight in weights:
        nonzero = view(weight.variable) != 0
        for axis in weight.summed if only_summed else weight.axes:
            others = tuple(other for other in range(nonzero.ndim) if other != axis)
            alive[trace.class_of[weight.axes[axis][nonzero.any(axis=others)]]] = True
    return alive


def reason_of(group: Group, reasons: Mapping[int, str]) -> str | None:
    """Give the reason why a group stays; None when it has none."""
    return next((reasons[int(one)] for one in group.classes if int(one) in reasons), None)


def without(trace: Trace, stay: Mapping[str, str]) -> Trace:
    """Freeze groups: name -> reason.

    Example:
        >>> import keras
        >>> from kpipe.graph import trace
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(1)])
        >>> traced = without(trace(net), {"a": "it is mine"})
        >>> len(traced.groups), traced.frozen["a"]
        (0, 'it is mine')
    """
    return replace(
        trace,
        frozen={**trace.frozen, **stay},
        groups=tuple(group for group in trace.groups if group.name not in stay),
    )
