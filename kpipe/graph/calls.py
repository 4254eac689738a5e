"""What was called on symbolic tensors: nodes of a graph described, compared and mended."""

import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.ops.function import _build_map

from kpipe.errors import SurgeryError
from kpipe.graph.flow import functional, has_graph
from kpipe.layers import unique

Structure = Any
"""Tensors in a list, a tuple, a dict, or alone."""

TRAINING = "training"
"""The argument by which a call is told whether the model is trained."""


def map_structure(function: Callable[[Any], Any], structure: Structure) -> Any:
    """Apply a function to all that a structure holds."""
    return keras.tree.map_structure(function, structure)


def call_symbolically(model: Any, call: Callable[[], Structure]) -> Structure:
    """Make a call on symbolic tensors; say what failed and where in the user's code.

    Raises:
        SurgeryError: When it cannot be made on them.
    """
    try:
        return call()
    except SurgeryError:
        raise
    except Exception as fault:
        place = _place(fault)
        raise SurgeryError(
            f"The call of {model.name!r} ({type(model).__name__}) cannot be made on symbolic tensors{place}: "
            f"{first_line(fault)} Its call must be made of layers and keras.ops; put the rest into a layer of its own."
        ) from fault


def _place(fault: BaseException) -> str:
    """Find the line of the user's code that failed."""
    for frame in reversed(traceback.extract_tb(fault.__traceback__)):
        if not any(part in frame.filename for part in ("/keras/", "/tensorflow/", "/optree/", "/kpipe/graph/")):
            return f" (line {frame.lineno} of {frame.filename.rpartition('/')[2]}, {frame.line!r})"
    return ""


def first_line(fault: BaseException) -> str:
    """Give what an error says in one line; what Keras wraps it in is left out."""
    text = re.sub(r"\x1b\[\d+m", "", str(fault)).rpartition("Error encountered:")[2]
    lines = [line.strip() for line in text.splitlines() if not line.startswith("Exception encountered when calling")]
    text = next(filter(None, lines), type(fault).__name__)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def nodes_between(inputs: Sequence[Any], outputs: Structure) -> list[Any]:
    """List the nodes between symbolic tensors in topological order."""
    found, _ = _build_map(inputs, outputs)
    return [node for node in found if not node.is_input]


def _calls(inputs: Sequence[Any], outputs: Structure) -> list[tuple[Any, ...]]:
    """Describe what was called on what: the same for two graphs of the same calls."""
    tensors = keras.tree.flatten(outputs)
    if not all(isinstance(one, keras.KerasTensor) for one in tensors):
        kinds = sorted({type(one).__name__ for one in tensors if not isinstance(one, keras.KerasTensor)})
        raise SurgeryError(f"A call gives {', '.join(kinds)} beside tensors, which a graph cannot.")
    nodes = nodes_between(inputs, tensors)
    numbers: dict[int, tuple[Any, int]] = {id(tensor): ("input", number) for number, tensor in enumerate(inputs)}
    for place, node in enumerate(nodes):
        numbers.update((id(tensor), (place, number)) for number, tensor in enumerate(node.outputs))

    def described(value: Any) -> Any:
        return numbers.get(id(value), "unknown") if isinstance(value, keras.KerasTensor) else literal(value)

    return [
        (_kind(node.operation), *keras.tree.flatten(map_structure(described, _arguments(node)))) for node in nodes
    ] + [tuple(numbers.get(id(tensor), "unknown") for tensor in tensors)]


def _arguments(node: Any) -> tuple[Any, dict[str, Any]]:
    """Give the arguments of a call but for the one that tells whether the model is trained."""
    kwargs = node.arguments.kwargs or {}
    return node.arguments.args, without_training(kwargs)


def without_training(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the argument of a call that tells whether the model is trained."""
    return {name: value for name, value in kwargs.items() if name != TRAINING}


def _kind(operation: Any) -> Any:
    """Name a layer by itself, an operation by its class and settings: each call makes a new one."""
    if isinstance(operation, keras.Layer):
        return id(operation)
    settings = {name: value for name, value in vars(operation).items() if not name.startswith("_") and name != "name"}
    return type(operation).__name__, str(settings)


def literal(value: Any) -> Any:
    """Make a literal comparable; an array by its bytes."""
    if isinstance(value, (np.ndarray, np.generic)) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return str(array.dtype), str(array.shape), array.tobytes()
    return id(value) if isinstance(value, keras.Variable) else str(value)


def refuse_difference(model: Any, inputs: Sequence[Any], plain: Structure, trained: Structure) -> None:
    """Refuse a call that does other things in training, draws random numbers itself, or holds a layer to one way.

    Raises:
        SurgeryError: When it does.
    """
    if _calls(inputs, plain) != _calls(inputs, trained):
        raise SurgeryError(
            f"The call of {model.name!r} does not do the same in training and in inference, or draws random numbers "
            "itself: a graph has one way only. Put what differs into a layer that takes `training`, such as Dropout."
        )
    for node, other in zip(nodes_between(inputs, plain), nodes_between(inputs, trained), strict=True):
        told, again = ((one.arguments.kwargs or {}).get(TRAINING) for one in (node, other))
        if not has_graph(model) and told is not None and told == again != _default_training(node.operation):
            raise SurgeryError(
                f"In {model.name!r} the layer {node.operation.name!r} is always called with training={told}, which a "
                "Functional model does not keep to. Leave it out; with trainable = False batch norms run in inference."
            )


def _default_training(layer: Any) -> Any:
    """Give what a layer takes when it is not told whether it is trained: Keras writes that into the call."""
    parameter = inspect.signature(layer.call).parameters.get(TRAINING)
    return None if parameter is None else parameter.default


def open_batch(inputs: Sequence[Any], outputs: Structure) -> None:
    """Write -1 for the batch where a shape was made with what `ops.shape` says of an open one, which is None."""
    for node in nodes_between(inputs, outputs):
        operation = node.operation
        if type(operation).__name__ != "Reshape" or isinstance(operation, keras.Layer):
            continue
        (given,), wanted = (tuple(one.shape[1:] for one in node.input_tensors)), list(operation.newshape)
        if wanted.count(None) != 1 or wanted[0] is not None:
            continue
        rest = math.prod(size for size in wanted[1:] if size != -1)
        if -1 in wanted and None not in given and rest:
            wanted[wanted.index(-1)] = math.prod(given) // rest
        if -1 not in wanted:
            operation.newshape = (-1, *wanted[1:])
            operation._auto_config.config["newshape"] = operation.newshape


def name_apart(inputs: Sequence[Any], outputs: Structure) -> None:
    """Give the operations that a call made names that no layer beside them has."""
    operations = list(_build_map(inputs, outputs)[1])
    taken = {operation.name for operation in operations if isinstance(operation, keras.Layer)}
    for operation in operations:
        if not isinstance(operation, keras.Layer):
            operation.name = unique(operation.name, taken).replace("#", "_")
            taken.add(operation.name)


@contextmanager
def without_new_nodes(model: Any) -> Iterator[None]:
    """Take back the nodes that layers and operations get from calls made within: they would stay in them for good."""
    take_back = _taker(model)
    try:
        yield
    finally:
        take_back()


@contextmanager
def without_failed_nodes(model: Any) -> Iterator[None]:
    """Take back the nodes of calls made within where an error ends them."""
    take_back = _taker(model)
    try:
        yield
    except BaseException:
        take_back()
        raise


def _taker(model: Any) -> Callable[[], None]:
    """Give the function that takes back all nodes made from now on."""
    before = {id(one): (one, len(one._inbound_nodes), len(one._outbound_nodes)) for one in _operations(model)}

    def take_back() -> None:
        for one in _operations(model):
            _, inbound, outbound = before.get(id(one), (one, 0, 0))
            del one._inbound_nodes[inbound:], one._outbound_nodes[outbound:]

    return take_back


def _operations(model: Any) -> Iterator[Any]:
    """Give a layer or model, the layers inside, and the operations of graphs among them."""
    for one in model._flatten_layers():
        yield one
        if has_graph(one):
            yield from functional(one).operations
