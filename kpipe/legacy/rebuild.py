"""Make a Keras 3 model of what tf_keras said of an old one."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.legacy.keras2.refusal import shortened
from kpipe.legacy.layer import make_layer, set_weights
from kpipe.legacy.operations import operation_named
from kpipe.legacy.reading import Reading
from kpipe.legacy.translate import plain_name

OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")
"""The classes in which Keras 2 keeps operations of TensorFlow."""
RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
Watch = Callable[[str, str, list[Any], list[Any]], None]
"""Told of each call: its place, the layer's name, what it was called on, its outputs."""


@dataclass
class Rebuild:
    """Layers and models made of a reading, each once.

    Attributes:
        reading: What tf_keras said.
        made: Key -> layer, model or operation, in the order in which they were made.
        names: Names that are taken.
        named: Ids of the operations that have been named.
        classes: Classes to take instead of Keras 3's own, by their name in Keras 2.
        at_inference: Names of layers that are not frozen and that the graph calls with training=False.
    """

    reading: Reading
    made: dict[str, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    named: set[int] = field(default_factory=set)
    classes: Mapping[str, type] = field(default_factory=dict)
    at_inference: set[str] = field(default_factory=set)

    def __post_init__(self):
        entries = self.reading.layers.values()
        self.names |= {plain_name(one["name"]) for one in entries if one.get("class") not in OPERATION_LAYERS}

    def layer(self, key: str) -> Any:
        """Give the layer, nested model or operation of a key."""
        if key not in self.made:
            entry = self.reading.layers[key]
            if "graph" in entry:
                self.made[key] = self.model(entry["graph"])
            elif entry["class"] in OPERATION_LAYERS:
                self.made[key] = operation_named(entry["config"]["function"], entry["name"])
            else:
                config = self.decoded(entry["config"], {})
                self.made[key] = make_layer(entry, config, self.classes)
        return self.made[key]

    def model(self, graph: Mapping[str, Any]) -> keras.Model:
        """Make the model of a graph, a `Sequential` where it was one."""
        inputs = {key: _input(spec) for key, spec in graph["specs"].items()}
        name = plain_name(graph["name"])
        if graph["sequential"]:
            model = keras.Sequential(name=name)
            model.add(*inputs.values())
            for call in graph["calls"]:
                model.add(self.layer(call["layer"]))
            return model
        tensors = self.run(graph, inputs)
        with warnings.catch_warnings():  # Keras 3 wishes inputs in a dict to be named as their keys; names stay here
            warnings.filterwarnings("ignore", "When providing `inputs` as a dict", UserWarning)
            return keras.Model(filled(graph["inputs"], tensors), filled(graph["outputs"], tensors), name=name)

    def run(
        self, graph: Mapping[str, Any], tensors: Mapping[str, Any], watch: Watch | None = None, place: str = ""
    ) -> dict[str, Any]:
        """Make the calls of a graph, on symbolic tensors or on values.

        Args:
            graph: The graph.
            tensors: Its inputs by key.
            watch: Told of each call; with it, nested models are gone into and all layers run at inference.
            place: The calls that lead to the graph, each with a dot after it.

        Returns:
            All tensors of the graph by key.
        """
        known = dict(tensors)
        for number, call in enumerate(graph["calls"]):
            entry = self.reading.layers[call["layer"]]
            layer = self.layer(call["layer"])
            args = [self.decoded(one, known) for one in call["args"]]
            kwargs = {key: self.decoded(one, known) for key, one in call["kwargs"].items() if one is not None}
            if kwargs.get("training") is False and entry.get("trainable", True):
                self.at_inference.add(entry["name"])
            here = f"{place}{number}"
            if "graph" in entry and watch is not None:
                outputs = self._run_nested(entry["graph"], args[0], watch, f"{here}.")
            else:
                outputs = _called(layer, entry, args, kwargs, watch is not None)
            leaves = list(paired(call["outputs"], outputs, entry["name"]))
            known.update(leaves)
            if entry.get("class") in OPERATION_LAYERS and watch is None:
                self._name_operations([value for _, value in leaves], plain_name(entry["name"]))
            if watch is not None and "graph" not in entry:
                layer_name = f"{entry['name']!r} ({entry['class']})"
                watch(here, layer_name, keras.tree.flatten((args, kwargs)), [value for _, value in leaves])
        return known

    def _name_operations(self, outputs: list[Any], name: str) -> None:
        """Name operations after the layer that kept them; Keras's names for them are those of some layers too."""
        waiting = [one for one in outputs if isinstance(one, keras.KerasTensor)]
        while waiting:
            operation = waiting.pop()._keras_history.operation
            if isinstance(operation, keras.Layer) or id(operation) in self.named:
                continue
            candidates = (f"{name}_{number}" if number else name for number in count())
            operation.name = next(candidate for candidate in candidates if candidate not in self.names)
            self.names.add(operation.name)
            self.named.add(id(operation))
            waiting.extend(operation._inbound_nodes[0].input_tensors)

    def _run_nested(self, graph: Mapping[str, Any], values: Any, watch: Watch, place: str) -> Any:
        pairs = paired(graph["inputs"], values, graph["name"])
        tensors = {key: _cast(value, graph["specs"][key]["dtype"]) for key, value in pairs}
        return filled(graph["outputs"], self.run(graph, tensors, watch, place))

    def decoded(self, value: Any, tensors: Mapping[str, Any]) -> Any:
        """Turn what was written as JSON back into values."""
        if isinstance(value, list):
            return [self.decoded(one, tensors) for one in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((kind, content),) = value.items()
            if kind.startswith("$"):
                return self._decoded(kind, content, tensors)
        return {key: self.decoded(one, tensors) for key, one in value.items()}

    def _decoded(self, kind: str, content: Any, tensors: Mapping[str, Any]) -> Any:
        if kind == "$tensor":
            return tensors[content]
        if kind == "$tuple":
            return tuple(self.decoded(one, tensors) for one in content)
        if kind == "$array":
            return self.reading.arrays[content]
        if kind == "$layer":
            return self.layer(content)
        if kind == "$slice":
            return slice(*content)
        if kind == "$ellipsis":
            return Ellipsis
        raise KpipeError(f"A value of the kind {content} is stored in a configuration; it cannot be carried over.")


def rebuild(reading: Reading, classes: Mapping[str, type] = MappingProxyType({})) -> tuple[keras.Model, Rebuild]:
    """Make the Keras 3 model of a reading, with its weights.

    Args:
        reading: What tf_keras said.
        classes: Classes to take instead of Keras 3's own, by their name in Keras 2.

    Returns:
        The model, and what it was made with, by which it can be run call by call.

    Raises:
        KpipeError: When a layer cannot be made, with its name.
    """
    making = Rebuild(reading, classes=classes)
    model = making.model(reading.graph)
    nested = {id(layer) for key, layer in making.made.items() if "graph" in reading.layers[key]}
    for key, layer in making.made.items():
        entry = reading.layers[key]
        if entry.get("weights"):
            set_weights(layer, entry, reading.arrays, nested)
    _set_trainable(model, reading.graph, making)
    return model, making


def _set_trainable(model: keras.Model, graph: Mapping[str, Any], making: Rebuild) -> None:
    """Freeze what was frozen, from the outside in: a model's `trainable` sets that of what it holds."""
    model.trainable = graph["trainable"]
    for call in graph["calls"]:
        entry, layer = making.reading.layers[call["layer"]], making.made[call["layer"]]
        if "graph" in entry:
            _set_trainable(layer, entry["graph"], making)
        elif isinstance(layer, keras.Layer):
            layer.trainable = entry["trainable"]


def _input(spec: Mapping[str, Any]) -> Any:
    return keras.Input(batch_shape=spec["shape"], dtype=spec["dtype"], name=plain_name(spec["name"]))


def _cast(value: Any, dtype: str) -> Any:
    """Cast where that changes something: a tensor that is cast loses its mask."""
    return value if keras.backend.standardize_dtype(value.dtype) == dtype else keras.ops.cast(value, dtype)


def _called(layer: Any, entry: Mapping[str, Any], args: list[Any], kwargs: dict[str, Any], at_inference: bool) -> Any:
    """Call a layer or an operation."""
    if kwargs.get("training") is True:
        raise KpipeError(
            f"Layer {entry['name']!r} is called with training=True, which Keras 3 does not keep to: predict and "
            "evaluate call it with training=False. Write a layer of its own that does not ask."
        )
    try:
        if not isinstance(layer, keras.Layer):
            kwargs.pop("name", None)
            return layer(*args, **kwargs)
        if isinstance(layer, RECURRENT) and isinstance(args[0], list):
            args, kwargs = [args[0][0], *args[1:]], {**kwargs, "initial_state": args[0][1:]}
            kwargs.setdefault("mask", getattr(args[0], "_keras_mask", None))  # Keras 3 loses it beside a state
        if at_inference and layer._call_has_training_arg:
            kwargs.setdefault("training", False)
        return layer(*args, **kwargs)
    except (TypeError, ValueError, NotImplementedError, AttributeError, NameError) as error:
        what = entry.get("class", "model")
        what = entry["config"]["function"] if what in OPERATION_LAYERS else what
        raise KpipeError(
            f"Layer {entry['name']!r} ({what}) cannot be called in Keras 3: {shortened(error)}."
        ) from error


def paired(structure: Any, values: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Pair the keys of a structure's tensors with values in an equal structure, dicts by their sorted keys.

    Raises:
        KpipeError: When the structures differ, with the layer's name.
    """
    if isinstance(structure, dict) and "$tensor" in structure:
        yield structure["$tensor"], values
        return
    if isinstance(structure, dict) and "$tuple" in structure:
        structure = structure["$tuple"]
        values = values["$tuple"] if isinstance(values, dict) and "$tuple" in values else values
    if isinstance(structure, dict):
        if not isinstance(values, dict):
            values = dict(zip(structure, values if isinstance(values, (list, tuple)) else [values], strict=True))
        items = [(structure[key], values[key]) for key in sorted(structure)]
    else:
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        if len(values) != len(structure):
            raise KpipeError(f"Layer {name!r} gives {len(values)} tensors in Keras 3, {len(structure)} in Keras 2.")
        items = list(zip(structure, values, strict=True))
    for inner, value in items:
        yield from paired(inner, value, name)


def filled(structure: Any, tensors: Mapping[str, Any]) -> Any:
    """Put tensors into a structure."""
    if isinstance(structure, dict) and "$tensor" in structure:
        return tensors[structure["$tensor"]]
    if isinstance(structure, dict) and "$tuple" in structure:
        return tuple(filled(one, tensors) for one in structure["$tuple"])
    if isinstance(structure, dict):
        return {key: filled(one, tensors) for key, one in structure.items()}
    return [filled(one, tensors) for one in structure]
