"""Write a tf_keras model down: its layers, their weights, and the graph of their calls."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import plain_array
from .graph import flat, is_graph, is_rounding, is_symbolic, nodes_of, tensor_key
from .lookup import lookup_config, lookup_of
from .mend import attention_parts
from .refusal import Refusal


@dataclass
class Description:
    """A model as plain data, and the objects it was taken from.

    Attributes:
        graph: The model's graph; see `_graph`.
        layers: Key -> what is known of a layer; one shared layer has one key.
        arrays: Key -> a weight or a constant.
        keys: Id of a layer -> its key.
    """

    graph: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)

    def save(self, folder: Path, notes: list[str]) -> None:
        """Write `model.json` and `weights.npz`."""
        text = json.dumps({"graph": self.graph, "layers": self.layers, "notes": notes})
        (folder / "model.json").write_text(text, encoding="utf-8")
        np.savez(folder / "weights.npz", **self.arrays)

    def store(self, value: Any) -> str:
        """Keep an array; give its key."""
        key = f"array_{len(self.arrays)}"
        self.arrays[key] = plain_array(value)
        return key


def describe(model: Any) -> Description:
    """Describe a Functional or Sequential model of tf_keras."""
    description = Description()
    description.graph = _graph(description, model)
    return description


def _graph(description: Description, model: Any) -> dict[str, Any]:
    """Describe the calls of a model, in an order in which they can be made."""
    nodes = nodes_of(model)
    same: dict[str, str] = {}
    for node in nodes:
        if is_rounding(node.layer):
            before = tensor_key(node.keras_inputs[0])
            same[tensor_key(node.outputs)] = same.get(before, before)
    encode = _Encoder(description, same)
    calls = [
        {
            "layer": _layer(description, node.layer),
            "args": encode(list(node.call_args)),
            "kwargs": encode(dict(node.call_kwargs)),
            "outputs": encode(node.outputs),
        }
        for node in nodes
        if not is_rounding(node.layer)
    ]
    import tf_keras

    return {
        "name": model.name,
        "sequential": isinstance(model, tf_keras.Sequential),
        "trainable": bool(model._trainable),
        "inputs": encode(model._nested_inputs),
        "specs": {tensor_key(tensor): _input(tensor) for tensor in flat(model._nested_inputs)},
        "calls": calls,
        "outputs": encode(model._nested_outputs),
    }


def _input(tensor: Any) -> dict[str, Any]:
    layer = tensor._keras_history.layer
    if getattr(layer, "sparse", False) or getattr(layer, "ragged", False):
        raise Refusal(f"input {layer.name!r} is sparse or ragged; only dense inputs can be converted")
    return {"name": layer.name, "shape": tensor.shape.as_list(), "dtype": tensor.dtype.name}


def _layer(description: Description, layer: Any) -> str:
    """Describe a layer once; give its key."""
    if id(layer) in description.keys:
        return description.keys[id(layer)]
    key = description.keys[id(layer)] = str(len(description.keys))
    if is_graph(layer):
        description.layers[key] = {"name": layer.name, "graph": _graph(description, layer)}
        return key
    inner = getattr(layer, "layer", None)
    config = {
        name: {"$layer": _layer(description, inner)} if name == "layer" and is_graph(inner) else value
        for name, value in _config(layer).items()
    }
    import tf_keras

    description.layers[key] = {
        "name": layer.name,
        "class": type(layer).__name__,
        "registered": tf_keras.saving.get_registered_name(type(layer)),
        "own": not type(layer).__module__.startswith("tf_keras."),
        "trainable": bool(layer._trainable),
        "config": _Encoder(description, {})(config),
        "weights": [[name, description.store(weight)] for name, weight in weights(layer)],
    }
    return key


def _config(layer: Any) -> dict[str, Any]:
    try:
        return {**layer.get_config(), **lookup_config(layer)}
    except NotImplementedError as error:
        raise Refusal(
            f"layer {layer.name!r} of the class {type(layer).__name__!r} has no get_config, so that it cannot be made "
            "again; give its class one"
        ) from error


def weights(layer: Any) -> list[tuple[str, Any]]:
    """List a layer's own weights by name, then those of the layers in it, each once.

    Left out are models, which are described apart, and tables, which go into the configuration.
    """
    if lookup_of(layer) is not None:
        return []
    attention = [dense for dense, _ in attention_parts(layer)]
    if attention:  # TFMOT leaves tensors in the parts, and their weights with the whole, when it strips it
        pairs = [(f"{dense.name}/{name}", getattr(dense, name)) for dense in attention for name in ("kernel", "bias")]
        return [(name, value) for name, value in pairs if value is not None]
    found = [(one.name.split(":")[0], one) for one in (*layer._trainable_weights, *layer._non_trainable_weights)]
    for inner in layer._flatten_layers(recursive=False, include_self=False):
        if not is_graph(inner):
            found += weights(inner)
    return list({id(weight): (name, weight) for name, weight in found}.values())


@dataclass
class _Encoder:
    """Write values as JSON; what JSON has no word for becomes a dict whose only key starts with "$"."""

    description: Description
    same: dict[str, str]

    def __call__(self, value: Any) -> Any:
        import tensorflow as tf

        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        if is_symbolic(value):
            key = tensor_key(value)
            return {"$tensor": self.same.get(key, key)}
        if isinstance(value, dict):
            return {str(name): self(one) for name, one in value.items()}
        if isinstance(value, tf.TensorShape):
            return value.as_list()
        if isinstance(value, (list, tuple)):
            items = [self(one) for one in value]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, (tf.Tensor, tf.Variable, np.ndarray)):
            return {"$array": self.description.store(value)}
        return _encoded_scalar(value)


def _encoded_scalar(value: Any) -> Any:
    import tensorflow as tf

    if isinstance(value, tf.DType):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, slice):
        return {"$slice": [value.start, value.stop, value.step]}
    if value is Ellipsis:
        return {"$ellipsis": True}
    return {"$unknown": f"{type(value).__name__}: {getattr(value, '__name__', value)}"}
