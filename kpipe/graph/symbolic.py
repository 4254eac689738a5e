"""Calls made on symbolic tensors: what a `call` does becomes a graph over the same layers."""

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras.src.ops.function import _build_map

from kpipe.errors import SurgeryError
from kpipe.graph.flow import functional, has_graph
from kpipe.layers import RULES, own_variables, unique, weight_facts_of

Structure = Any
"""Tensors in a list, a tuple, a dict, or alone."""

TRAINING = "training"
"""The argument by which a call is told whether the model is trained."""


@dataclass
class Writing:
    """Hold what is known while a model is written out.

    Args:
        made: Block -> its graph, and how it was called.
        whole: Blocks that stay one layer, with the reason.
    """

    made: dict[int, tuple[keras.Model, Any]] = field(default_factory=dict)
    whole: dict[int, str] = field(default_factory=dict)


def write_out(model: keras.Model, call: Callable[..., Any], inputs: Structure, writing: Writing) -> keras.Model:
    """Make the graph of a call, with the blocks inside written out as graphs of their own.

    Args:
        model: Whose call it is; its layers are used as they are.
        call: `(inputs, training) -> outputs`.
        inputs: Symbolic tensors.
        writing: What was written out so far.

    Raises:
        SurgeryError: When the call is not made of layers and operations, or does other things in training.
    """
    flat = keras.tree.flatten(inputs)
    with _nodes_of(model):
        trained, plain = (called(model, lambda told=told: call(inputs, told)) for told in (True, False))
        _refuse_difference(model, flat, plain, trained)
        nodes = _nodes(flat, plain)
    blocks = [node.operation for node in nodes if id(node.operation) not in writing.whole and _is_block(node.operation)]
    if not blocks:
        outputs = called(model, lambda: call(inputs, False))
    else:
        outputs = _made_again(nodes, flat, plain, writing)
    _name_apart(flat, outputs)
    try:
        return keras.Model(inputs, outputs, name=model.name)
    except ValueError as fault:
        raise SurgeryError(f"The call of {model.name!r} makes no graph: {_first_line(fault)}") from fault


def _made_again(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Structure, writing: Writing) -> Structure:
    """Make the calls of some nodes again, with graphs in the places of blocks."""
    values = {id(tensor): tensor for tensor in inputs}
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        operation = node.operation
        if id(operation) not in writing.whole and _is_block(operation):
            result = _call_block(operation, args or (), kwargs or {}, writing)
        else:
            result = operation(*(args or ()), **(kwargs or {}))
        values.update(zip(map(id, node.outputs), keras.tree.flatten(result), strict=True))
    return mapped(lambda tensor: values[id(tensor)], outputs)


def _call_block(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writing: Writing) -> Structure:
    """Call the graph of a block, which is made at its first call; where there is none, call the block."""
    given = mapped(_outline, (args, _without_training(kwargs)))
    if id(block) not in writing.made:
        try:
            writing.made[id(block)] = _block_graph(block, args, kwargs, writing), given
        except SurgeryError as fault:
            writing.whole[id(block)] = str(fault)
            return block(*args, **kwargs)
    graph, first = writing.made[id(block)]
    if not _alike(first, given):
        raise CalledDifferently(block, f"Layer {block.name!r} is called in several ways, one graph cannot do both.")
    tensors = [one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    return graph(tensors if len(tensors) > 1 else tensors[0])


class CalledDifferently(SurgeryError):
    """Tell that a block that was written out is called in yet another way, so that it must stay one layer."""

    def __init__(self, block: Any, message: str):
        super().__init__(message)
        self.block = block


def _block_graph(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writing: Writing) -> keras.Model:
    """Make the graph of a block, of one input for each tensor that it is called with."""
    tensors = [one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=f"{block.name}_input_{number}")
        for number, tensor in enumerate(tensors)
    ]
    taken = dict(zip(map(id, tensors), inputs, strict=True))

    def call(_: Structure, training: bool) -> Structure:
        new_args, new_kwargs = mapped(lambda one: taken.get(id(one), one), (args, kwargs))
        return call_plainly(block, new_args, _without_training(new_kwargs), training)

    graph = write_out(block, call, inputs if len(inputs) > 1 else inputs[0], writing)
    if lost := lost_weights(block, graph):
        raise SurgeryError(f"The weights {lost} of {block.name!r} are in no layer that depends on its input.")
    return graph


def call_plainly(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool) -> Structure:
    """Call a layer's own `call`, its inputs converted as in `__call__`: no node is made for the layer itself."""

    def converted(value: Any) -> Any:
        return layer.dtype_policy.convert_input(value, layer.autocast, layer.input_dtype)

    if has_graph(layer):
        return functional(layer)._run_through_graph(args[0])
    args, kwargs = mapped(converted, (tuple(args), dict(kwargs)))
    told = {TRAINING: training} if TRAINING in inspect.signature(layer.call).parameters else {}
    return layer.call(*args, **kwargs, **told)


def mapped(function: Callable[[Any], Any], structure: Structure) -> Any:
    """Apply a function to all that a structure holds."""
    return keras.tree.map_structure(function, structure)


def lost_weights(layer: Any, graph: keras.Model) -> list[str]:
    """List the paths of the weights of a layer that are not in its graph."""
    there = {id(variable) for variable in graph.weights}
    return [variable.path for variable in layer.weights if id(variable) not in there]


def _is_block(operation: Any) -> bool:
    """Say whether a layer may be written out: it has a class of its own, no weights of its own, and no rule.

    A model that has a graph is gone into where there is a block in it.
    """
    if has_graph(operation):
        return any(_is_block(one) for one in functional(operation).operations)
    if not isinstance(operation, keras.Layer) or type(operation).__module__.partition(".")[0] == "keras":
        return False
    known = type(operation) in RULES or weight_facts_of(operation).whole
    return not known and not own_variables(operation) and not operation._seed_generators


def contains_blocks(model: keras.Model) -> bool:
    """Say whether a model with a graph holds blocks that may be written out."""
    return _is_block(model)


def called(model: Any, call: Callable[[], Structure]) -> Structure:
    """Make a call on symbolic tensors; say what failed and where in the user's code."""
    try:
        return call()
    except SurgeryError:
        raise
    except Exception as fault:
        place = _place(fault)
        raise SurgeryError(
            f"The call of {model.name!r} ({type(model).__name__}) cannot be made on symbolic tensors{place}: "
            f"{_first_line(fault)} Its call must be made of layers and keras.ops; put the rest into a layer of its own."
        ) from fault


def _place(fault: BaseException) -> str:
    """Find the line of the user's code that failed."""
    for frame in reversed(traceback.extract_tb(fault.__traceback__)):
        if not any(part in frame.filename for part in ("/keras/", "/tensorflow/", "/optree/", "/kpipe/graph/")):
            return f" (line {frame.lineno} of {frame.filename.rpartition('/')[2]}, {frame.line!r})"
    return ""


def _first_line(fault: BaseException) -> str:
    """Give what an error says in one line; what Keras wraps it in is left out."""
    text = re.sub(r"\x1b\[\d+m", "", str(fault)).rpartition("Error encountered:")[2]
    text = next((line.strip() for line in text.splitlines() if line.strip()), type(fault).__name__)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _nodes(inputs: Sequence[Any], outputs: Structure) -> list[Any]:
    """List the nodes between symbolic tensors in topological order."""
    found, _ = _build_map(inputs, outputs)
    return [node for node in found if not node.is_input]


def _calls(inputs: Sequence[Any], outputs: Structure) -> list[tuple[Any, ...]]:
    """Describe what was called on what: the same for two graphs of the same calls."""
    tensors = keras.tree.flatten(outputs)
    if not all(isinstance(one, keras.KerasTensor) for one in tensors):
        kinds = sorted({type(one).__name__ for one in tensors if not isinstance(one, keras.KerasTensor)})
        raise SurgeryError(f"A call gives {', '.join(kinds)} beside tensors, which a graph cannot.")
    nodes = _nodes(inputs, tensors)
    numbers: dict[int, tuple[Any, int]] = {id(tensor): ("input", number) for number, tensor in enumerate(inputs)}
    for place, node in enumerate(nodes):
        numbers.update((id(tensor), (place, number)) for number, tensor in enumerate(node.outputs))

    def described(value: Any) -> Any:
        return numbers.get(id(value), "unknown") if isinstance(value, keras.KerasTensor) else _literal(value)

    return [(_kind(node.operation), *keras.tree.flatten(mapped(described, _arguments(node)))) for node in nodes] + [
        tuple(numbers.get(id(tensor), "unknown") for tensor in tensors)
    ]


def _arguments(node: Any) -> tuple[Any, dict[str, Any]]:
    """Give the arguments of a call but for the one that tells whether the model is trained."""
    kwargs = node.arguments.kwargs or {}
    return node.arguments.args, _without_training(kwargs)


def _without_training(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != TRAINING}


def _kind(operation: Any) -> Any:
    """Name a layer by itself, an operation by its class and settings: each call makes a new one."""
    if isinstance(operation, keras.Layer):
        return id(operation)
    settings = {name: value for name, value in vars(operation).items() if not name.startswith("_") and name != "name"}
    return type(operation).__name__, str(settings)


def _literal(value: Any) -> Any:
    """Make a literal comparable; an array by its bytes."""
    if isinstance(value, (np.ndarray, np.generic)) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return str(array.dtype), str(array.shape), array.tobytes()
    return id(value) if isinstance(value, keras.Variable) else str(value)


def _outline(value: Any) -> Any:
    """Describe an argument of a block: a tensor by what a graph must know of it."""
    return (value.shape, value.dtype) if isinstance(value, keras.KerasTensor) else _literal(value)


def _alike(one: Any, other: Any) -> bool:
    return keras.tree.flatten(one) == keras.tree.flatten(other)


def _refuse_difference(model: Any, inputs: Sequence[Any], plain: Structure, trained: Structure) -> None:
    """Refuse a call that does other things in training, draws random numbers itself, or holds a layer to one way."""
    if _calls(inputs, plain) != _calls(inputs, trained):
        raise SurgeryError(
            f"The call of {model.name!r} does not do the same in training and in inference, or draws random numbers "
            "itself: a graph has one way only. Put what differs into a layer that takes `training`, such as Dropout."
        )
    for node, other in zip(_nodes(inputs, plain), _nodes(inputs, trained), strict=True):
        told = (node.arguments.kwargs or {}).get(TRAINING)
        if not has_graph(model) and told is not None and told == (other.arguments.kwargs or {}).get(TRAINING):
            raise SurgeryError(
                f"In {model.name!r} the layer {node.operation.name!r} is always called with training={told}, which a "
                "Functional model does not keep to. Leave it out; with trainable = False batch norms run in inference."
            )


def _name_apart(inputs: Sequence[Any], outputs: Structure) -> None:
    """Give the operations that a call made names that no layer beside them has."""
    operations = list(_build_map(inputs, outputs)[1])
    taken = {operation.name for operation in operations if isinstance(operation, keras.Layer)}
    for operation in operations:
        if not isinstance(operation, keras.Layer):
            operation.name = unique(operation.name, taken).replace("#", "_")
            taken.add(operation.name)


@contextmanager
def _nodes_of(model: Any) -> Iterator[None]:
    """Take back the nodes that layers get from calls made within: they would stay in them for good."""
    held = {id(one): one for one in model._flatten_layers()}
    before = {key: (len(one._inbound_nodes), len(one._outbound_nodes)) for key, one in held.items()}
    try:
        yield
    finally:
        for one in model._flatten_layers():
            inbound, outbound = before.get(id(one), (0, 0))
            del one._inbound_nodes[inbound:], one._outbound_nodes[outbound:]
