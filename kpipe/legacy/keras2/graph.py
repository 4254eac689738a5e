"""How tf_keras holds a graph of layers."""

from typing import Any


def is_graph(layer: Any) -> bool:
    """Tell whether a layer is a model whose graph of layers is known."""
    from tf_keras.src.engine.functional import Functional

    return isinstance(layer, Functional) and bool(getattr(layer, "_nodes_by_depth", None))


def nodes_of(model: Any) -> list[Any]:
    """List the calls of a model's layers, each after those whose outputs it takes; inputs left out."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def is_symbolic(value: Any) -> bool:
    """Tell whether a value is a tensor of a graph."""
    return getattr(value, "_keras_history", None) is not None


def tensor_key(tensor: Any) -> str:
    """Name a tensor of a graph by the call that gives it."""
    history = tensor._keras_history
    return f"{history.layer.name}:{history.node_index}:{history.tensor_index}"


def flat(structure: Any) -> list[Any]:
    """List the tensors of a structure, those of a dict by its sorted keys."""
    import tensorflow as tf

    return tf.nest.flatten(structure)


def run(model: Any, inputs: Any) -> Any:
    """Run a model at inference, its states at zero."""
    forget_states(model)
    return model(inputs, training=False)


def forget_states(model: Any) -> None:
    """Set the states of stateful layers to zero."""
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and callable(getattr(layer, "reset_states", None)):
            layer.reset_states()


def is_rounding(layer: Any) -> bool:
    """Tell whether a layer is an identity that stands where rounding was; descriptions leave it out."""
    return getattr(layer, "_was_rounding", False)
