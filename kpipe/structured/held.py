"""What a training may take of a model's channels, and what is gone already."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kpipe.graph import Group, Trace, TracedLayer, TracedWeight, random_inputs
from kpipe.layers import Ids, Kept
from kpipe.projections import view
from kpipe.structured.channels import masked_answer

ZEROS_COUNT = (
    "{layer!r} computes something over them, as a norm its mean: while the model trains, the zeros of a channel that "
    "has gone count, in the smaller model they would not"
)
"""Why channels stay, with the layer put in."""

SUM_IS_FROZEN = "{weight!r} sums over them and is not trained: trainable is False"
"""The same, with the weight put in."""


def held_weights(trace: Trace) -> list[TracedWeight]:
    """List the weights whose entries are held at zero when their channel goes: all that are trained."""
    return [w for w in trace.weights if w.axes and w.role != "statistic" and w.variable.trainable]


def over_channels(model: keras.Model, trace: Trace) -> dict[str, str]:
    """Find the groups whose channels are not gone when all that is trained of them is zero, and say why of each.

    That is so where a layer computes something over its channels, as a norm its mean: a zero counts there. Where it
    makes no difference, as in a product of queries and keys, they may go. Each layer that a rule has a `reference` for
    is tried on random input, with half of a group's channels at zero.

    Args:
        model: The model.
        trace: Its trace.

    Returns:
        Name of a group -> reason.

    Example:
        >>> from kpipe.graph import trace
        >>> layers = [keras.layers.Dense(4, name="a"), keras.layers.LayerNormalization(name="norm")]
        >>> layers += [keras.layers.Dense(6, name="b"), keras.layers.Dense(2, name="c")]
        >>> net = keras.Sequential([keras.Input((3,)), *layers])
        >>> list(over_channels(net, trace(net)))
        ['a']
    """
    asked = _asked(model, trace)
    found = {}
    for group in trace.groups:
        classes = set(group.classes.tolist())
        if len(group) > 1 and any(classes & theirs for theirs in asked.values()):
            keep = np.ones(trace.class_count, bool)
            keep[group.classes[::2]] = False
            if wrong := _wrong_with_zeros(model, trace, keep, asked):
                found[group.name] = ZEROS_COUNT.format(layer=wrong[0])
    return found


def _asked(model: keras.Model, trace: Trace) -> dict[str, set[int]]:
    """Map the path of each layer whose reference asks which channels are kept to the classes that it asks about."""
    asked: dict[str, set[int]] = {}

    def listening(layer: TracedLayer) -> TracedLayer:
        def reference(kept: Kept, call: int) -> Any:
            def note(ids: Ids) -> np.ndarray:
                asked.setdefault(layer.path, set()).update(trace.class_of[ids].reshape(-1).tolist())
                return kept(ids)

            return layer.reference(note, call)  # type: ignore[misc]

        return replace(layer, reference=reference)

    layers = tuple(layer if layer.reference is None else listening(layer) for layer in trace.layers)
    if any(layer.reference is not None for layer in layers):
        masked_answer(replace(trace, layers=layers), np.ones(trace.class_count, bool), random_inputs(model))
    return asked


def _wrong_with_zeros(model: keras.Model, trace: Trace, keep: np.ndarray, asked: Iterable[str]) -> list[str]:
    """List the layers that answer otherwise, on what is kept, than they would without the channels that are zero."""
    wrong: list[str] = []
    masked = {id(weight.variable) for weight in held_weights(trace)}

    def trained(layer: TracedLayer) -> TracedLayer:
        weights = tuple(replace(w, summed=tuple(w.axes)) if id(w.variable) in masked else w for w in layer.weights)
        return replace(layer, weights=weights, reference=compared(layer) if layer.path in asked else layer.reference)

    def compared(layer: TracedLayer) -> Any:
        def reference(kept: Kept, number: int) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                exact = layer.reference(kept, number)(*args, **kwargs)  # type: ignore[misc]
                plain = layer.layer(*args, **kwargs)
                if not _same_where_kept(plain, exact, [trace.kept(ids, keep) for ids in layer.out]):
                    wrong.append(layer.path)
                return plain

            return call

        return reference

    masked_answer(replace(trace, layers=tuple(map(trained, trace.layers))), keep, random_inputs(model))
    return wrong


def _same_where_kept(plain: Any, exact: Any, kept: Sequence[np.ndarray]) -> bool:
    for one, other, mask in zip(keras.tree.flatten(plain), keras.tree.flatten(exact), kept, strict=False):
        tolerance = 1e-3 if keras.backend.standardize_dtype(one.dtype) in ("float32", "float64") else 0.05
        one, other = (np.asarray(keras.ops.convert_to_numpy(y), "float64") for y in (one, other))
        away = np.abs(one - other) * mask[None]  # the ids have no batch axis
        if not away.max(initial=0.0) <= tolerance * max(np.abs(other).max(initial=0.0), 1e-6):
            return False
    return True


def unreachable(trace: Trace) -> dict[int, str]:
    """Map each class of channels that a frozen weight sums over to the reason why it stays while that is so."""
    return {
        int(one): SUM_IS_FROZEN.format(weight=weight.path)
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
