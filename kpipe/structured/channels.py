"""Remove channels: a smaller model of the same graph, equal to the old one with the channels' consumers zeroed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kpipe.copies import pairs, take_rest
from kpipe.copies.state import freeze_like
from kpipe.errors import SurgeryError
from kpipe.graph import (
    Site,
    Trace,
    TracedLayer,
    TracedWeight,
    answer_at_rest,
    at_inference,
    evaluate,
    random_inputs,
    trace,
)
from kpipe.graph.remake import remake
from kpipe.structured.agreement import TOLERANCE, apart, settled, tolerance_for
from kpipe.structured.divergence import first_divergence


def remove_channels(model: keras.Model, trace: Trace, keep: np.ndarray) -> keras.Model:
    """Build the smaller model: sizes in the config are counts of what is kept, weights are compressed along their axes.

    Args:
        model: The traced model; it is not changed.
        trace: Its trace.
        keep: Which classes of channel ids stay, shape (classes,), bool.

    Returns:
        A new model, not compiled, with the same layer and input names.

    Raises:
        SurgeryError: When the model cannot be rebuilt from its config, or a weight ends with an unplanned shape.
    """
    small, found = rebuild(model, trace, keep)
    for layer in trace.layers:
        new = found.get(layer.path)
        if type(new) is not type(layer.layer):
            raise SurgeryError(f"The rebuilt model {small.name!r} lacks the layer {layer.path!r}.")
        if isinstance(new, keras.Layer):
            _copy_weights(trace, layer, new, keep)
            _copy_rest(trace, layer, new, keep)
            freeze_like(new, layer.layer)
    return small


def masked_answer(trace: Trace, keep: np.ndarray, inputs: list[Any]) -> list[Any]:
    """Compute what the smaller model must answer: the original with the consumers of the cut channels zeroed.

    Zeroing the filters that produce a channel would be the wrong reference: a bias, BatchNorm's beta or an activation
    with f(0) ≠ 0 still let it speak. Zeroing the input slices of the layers that sum over it is exact. A layer that
    computes something over its channels, as a norm its mean, does so over those that are kept.

    Args:
        trace: Of the original, whose weights are read and left as they are.
        keep: Which classes of channel ids stay, shape (classes,), bool.
        inputs: One array for each input.

    Returns:
        One array for each output.
    """
    return evaluate(trace.flow, inputs, masked_call(trace, keep))


def masked_call(trace: Trace, keep: np.ndarray) -> Callable[..., Any]:
    """Give the function that calls one site of the original as in `masked_answer`."""
    traced = {layer.path: layer for layer in trace.layers}

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        one = traced[site.path]
        function = one.layer if one.reference is None else one.reference(lambda ids: trace.kept(ids, keep), site.call)
        masks = [(weight.variable, axis_mask(trace, weight, weight.summed, keep)) for weight in one.weights]
        masked = [(variable, variable * mask.astype(variable.dtype)) for variable, mask in masks if not mask.all()]
        with keras.StatelessScope(state_mapping=masked):
            made = at_inference(function, *args, **kwargs)
        mask = get_keras_mask(args[0]) if one.reference is not None and args else None
        if mask is not None and one.layer.supports_masking:  # no layer is called here that would pass it on
            set_keras_mask(made, mask)
        return made

    return call


def axis_mask(trace: Trace, weight: TracedWeight, axes: Iterable[int], keep: np.ndarray) -> np.ndarray:
    """Say of each entry of a weight whether its channels along some axes are all kept; broadcasts to its shape."""
    mask = np.ones((1,) * len(weight.variable.shape), bool)
    for axis in axes:
        shape = [-1 if i == axis else 1 for i in range(len(weight.variable.shape))]
        mask = mask & trace.kept(weight.axes[axis], keep).reshape(shape)
    return mask


def rebuild(model: keras.Model, trace: Trace, keep: np.ndarray) -> tuple[keras.Model, dict[str, Any]]:
    """Build the model anew from its config with the sizes that `keep` leaves; its weights are fresh.

    Returns:
        The model, and path -> its layers and operations.

    Raises:
        SurgeryError: When it cannot be rebuilt.
    """
    edits = {layer.path: (trace.size(layer.config, keep), trace.size(layer.arguments, keep)) for layer in trace.layers}
    return remake(model, lambda config: _edit(config, "", edits))


Edits = Mapping[str, tuple[Mapping[str, Any], Mapping[int | str, Any]]]
"""Path of a layer -> new values of its config, and of the arguments of its call."""


def _edit(config: dict[str, Any], prefix: str, edits: Edits) -> None:
    """Write the new sizes into the configs and calls of a model's layers, in place.

    `build_config` holds the old input shapes, from which Keras would build the weights before the graph is replayed.
    """
    config.pop("build_input_shape", None)
    for entry in config["layers"]:
        path = prefix + entry["name"]
        if path not in edits:  # a model
            entry.pop("build_config", None)
            _edit(entry["config"], path + "/", edits)
            continue
        _forget_shapes(entry)
        settings, arguments = edits[path]
        for name, value in settings.items():
            *outer, last = name.split(".")
            place = entry["config"]
            for key in outer:
                place = place[int(key) if key.isdigit() else key]
            place[last] = value.tolist() if isinstance(value, np.ndarray) else value
        written = {name: keras.saving.serialize_keras_object(value) for name, value in arguments.items()}
        for call in entry["inbound_nodes"] if written else ():
            call["args"] = tuple(written.get(place, value) for place, value in enumerate(call["args"]))
            call["kwargs"] = {name: written.get(name, value) for name, value in call["kwargs"].items()}


def _forget_shapes(config: Any) -> None:
    """Remove `build_config` from the config of a layer and of those inside it."""
    if isinstance(config, dict):
        config.pop("build_config", None)
        for value in config.values():
            _forget_shapes(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _forget_shapes(value)


def _copy_weights(trace: Trace, layer: TracedLayer, new: keras.Layer, keep: np.ndarray) -> None:
    for weight, variable in zip(layer.weights, new.weights, strict=True):
        value = np.asarray(weight.variable)
        for axis, ids in weight.axes.items():
            value = np.compress(trace.kept(ids, keep), value, axis)
        if weight.rescale is not None:
            kept, power = trace.kept(weight.rescale[0], keep), weight.rescale[1]
            value = value * np.asarray(kept.mean() ** power, value.dtype)
        if value.shape != tuple(variable.shape):
            raise SurgeryError(
                f"Weight {weight.path!r} would have shape {value.shape}, but its rebuilt layer expects "
                f"{tuple(variable.shape)}: the rule of {type(layer.layer).__name__} does not fit this layer."
            )
        variable.assign(value)
    weights = {id(variable) for variable in layer.layer.weights}
    states = [variable for variable in layer.layer.variables if id(variable) not in weights]
    own = {id(variable) for variable in new.weights}
    for old, variable in zip(states, (v for v in new.variables if id(v) not in own), strict=True):
        variable.assign(old)  # random states, of dropout for example


def _copy_rest(trace: Trace, layer: TracedLayer, new: keras.Layer, keep: np.ndarray) -> None:
    """Hand over what a layer holds beside its weights, such as a vocabulary, or makes of them."""
    whole = all(trace.shape(weight, keep) == tuple(weight.variable.shape) for weight in layer.weights)
    for twin, held in pairs(new, layer.layer):
        if whole or isinstance(held, keras.layers.Normalization):
            take_rest(twin, held)


def check_removal(
    model: keras.Model,
    small: keras.Model,
    traced: Trace,
    keep: np.ndarray,
    tolerance: float = TOLERANCE,
    masked: bool = True,
) -> float:
    """Compare a smaller model with the masked original on seeded random input: their logits, where these are known.

    Args:
        model: The original.
        small: What `remove_channels` gave.
        traced: The original's trace.
        keep: Which classes stay, shape (classes,), bool.
        tolerance: Largest difference allowed, relative to the largest value of an output; layers that compute in half
            precision are allowed some units of theirs. Beyond it both are compared in float64.
        masked: False to compare with the original as it is: what goes is zero in it already.

    Returns:
        The largest difference, relative likewise.

    Raises:
        SurgeryError: When it is beyond the tolerance or not a number: the smaller model would be silently wrong. When
            the original's answers are not finite, so that nothing can be compared.
    """

    def compare(large: keras.Model, small: keras.Model) -> float:
        inputs, known = random_inputs(large), traced if large is model else trace(large, unknown="freeze")

        def original() -> list[Any]:
            return masked_answer(known, keep, inputs) if masked else answer_at_rest(large, inputs)

        return apart(large, small, original, lambda: answer_at_rest(small, inputs))

    (worst, more), tolerance = settled(model, small, compare, tolerance), tolerance_for(model, tolerance)
    if not worst <= tolerance:
        why = _why(small, traced, keep, random_inputs(model)) if masked else CHANGED
        raise SurgeryError(
            f"On random input the smaller model differs by {worst:.3g} from the {'masked ' if masked else ''}original "
            f"(allowed: {tolerance:g}). None is returned. {why}{more}"
        )
    return worst


CHANGED = (
    "The weights have changed since these channels went: they are not all zero any more, as after a callback that "
    "restores weights at the end of the training. Put such callbacks before FilterPruning in the list."
)


def _why(small: keras.Model, trace: Trace, keep: np.ndarray, inputs: list[Any]) -> str:
    """Say which rule does not fit, as far as that can be told."""
    path = first_divergence(small, trace, keep, inputs, masked_call(trace, keep))
    if path is None:
        kinds = sorted({type(layer.layer).__name__ for layer in trace.layers})
        return f"A rule of one of these layers does not fit it: {', '.join(kinds)}."
    kind = next(type(layer.layer).__name__ for layer in trace.layers if layer.path == path)
    return f"The first layer that differs is {path!r}: the rule of {kind} does not fit it, or that of what feeds it."
