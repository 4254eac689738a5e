"""Rebuild a model without a stretch of its graph, and prove it."""

from collections.abc import Callable
from typing import Any

import keras
from keras.src.models.functional import Functional

from kpipe.copies import take_weights
from kpipe.copies.state import freeze_like
from kpipe.errors import SurgeryError
from kpipe.graph import answer_at_rest, has_graph, random_inputs
from kpipe.graph.remake import remake
from kpipe.structured.agreement import TOLERANCE, apart, settled, tolerance_for
from kpipe.structured.stretches import Stretch, answers, carried_over, graphs, in_order

Reference = tuple[str, int, int]
"""Where a tensor comes from: name of the layer, which of its calls, which of the outputs of that."""


def shorten(model: keras.Model, stretch: Stretch | None) -> keras.Model:
    """Build a model without one of its stretches; what took its end takes its start.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        stretch: One of its stretches. None: build a copy.

    Returns:
        A new model, not compiled, with the remaining weights and the same names of layers, inputs and outputs.

    Raises:
        SurgeryError: When it cannot be rebuilt from its config.

    Example:
        >>> from kpipe.structured.stretches import stretches
        >>> layers = [keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")]
        >>> net = keras.Sequential(layers)
        >>> [layer.name for layer in shorten(net, stretches(net, lambda path: False)[0]).layers]
        ['b']
    """

    def edit(config: dict[str, Any]) -> None:
        if stretch is not None:
            _leave_out(_inside(config, stretch.prefix), stretch)

    small, found = remake(model, edit)
    for path, layer in _layers(model).items():
        if path in found:
            take_weights(found[path], layer)
            freeze_like(found[path], layer)
    return small


def _layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Map the path of each layer in a model and in those nested in it to the layer."""
    return {
        prefix + operation.name: operation
        for prefix, graph in graphs(model)
        for operation in graph.operations
        if isinstance(operation, keras.Layer) and not has_graph(operation)
    }


def _inside(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Find the config of a nested model."""
    for name in prefix.split("/")[:-1]:
        config = next(entry["config"] for entry in config["layers"] if entry["name"] == name)
    return config


def _leave_out(config: dict[str, Any], stretch: Stretch) -> None:
    """Take the calls of a stretch out of the config of its graph, in place."""
    own = {id(node) for node in in_order(stretch.graph)}
    calls = {one.name: [n for n in one._inbound_nodes if id(n) in own] for one in stretch.graph.operations}
    inside = {id(node) for node in stretch.nodes}
    gone = {name: [place for place, node in enumerate(nodes) if id(node) in inside] for name, nodes in calls.items()}
    config["layers"] = [one for one in config["layers"] if len(gone[one["name"]]) < len(calls[one["name"]])]
    if "output_layers" not in config:
        return  # a Sequential model has no more than its layers
    start, end = (_reference(tensor, calls) for tensor in (stretch.start, stretch.end))

    def moved(reference: Reference) -> Reference:
        name, place, index = start if reference == end else reference
        return name, place - sum(one < place for one in gone[name]), index

    for entry in config["layers"]:
        stays = set(range(len(entry["inbound_nodes"]))) - set(gone[entry["name"]])
        entry["inbound_nodes"] = [entry["inbound_nodes"][place] for place in sorted(stays)]
        _redirect(entry["inbound_nodes"], moved)
    # Keras counts the calls of nested Functional models from one there, and from zero everywhere else.
    shift = {one.name: int(isinstance(one, Functional)) for one in stretch.graph.operations}
    config["output_layers"] = _map_outputs(config["output_layers"], moved, shift)


def _reference(tensor: Any, calls: dict[str, list[Any]]) -> Reference:
    operation, number, index = tensor._keras_history
    node = operation._inbound_nodes[number]
    return operation.name, next(place for place, one in enumerate(calls[operation.name]) if one is node), index


def _redirect(value: Any, moved: Callable[[Reference], Reference]) -> None:
    """Move the tensors in the arguments of calls, in place."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        value["config"]["keras_history"] = list(moved(tuple(value["config"]["keras_history"])))
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _redirect(item, moved)


def _map_outputs(value: Any, moved: Callable[[Reference], Reference], shift: dict[str, int]) -> Any:
    """Move the tensors in the structure of a graph's outputs."""
    if isinstance(value, dict):
        return {key: _map_outputs(item, moved, shift) for key, item in value.items()}
    if not isinstance(value[0], str):
        return type(value)(_map_outputs(item, moved, shift) for item in value)
    name, place, index = value
    name, place, index = moved((name, place - shift[name], index))
    return [name, place + shift[name], index]


def check_shortening(model: keras.Model, small: keras.Model, stretch: Stretch, tolerance: float = TOLERANCE) -> float:
    """Compare a shortened model on seeded random input with the original, the stretch left out at each call.

    Their logits are compared, where these are known.

    Args:
        model: The original.
        small: What `shorten` gave.
        stretch: What was left out.
        tolerance: Largest difference allowed, relative to the largest value of an output; layers that compute in half
            precision are allowed some units of theirs. Beyond it both are compared in float64.

    Returns:
        The largest difference, relative likewise.

    Raises:
        SurgeryError: When it is beyond the tolerance or not a number: the shorter model would be silently wrong. When
            the original's answers are not finite, so that nothing can be compared.
    """

    def compare(long: keras.Model, short: keras.Model) -> float:
        inputs, without = random_inputs(long), stretch if long is model else carried_over(stretch, long)
        return apart(long, short, lambda: answers(long, inputs, without), lambda: answer_at_rest(short, inputs))

    (worst, more), tolerance = settled(model, small, compare, tolerance), tolerance_for(model, tolerance)
    if not worst <= tolerance:
        raise SurgeryError(
            f"On random input {model.name!r} without {stretch.name!r} differs by {worst:.3g} from the original with "
            f"{', '.join(stretch.paths)} left out (allowed: {tolerance:g}). None is returned.{more}"
        )
    return worst
