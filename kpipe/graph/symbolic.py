"""Calls made on symbolic tensors: what a `call` does becomes a graph over the same layers."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kpipe.errors import SurgeryError
from kpipe.graph.calls import (
    TRAINING,
    Structure,
    call_symbolically,
    first_line,
    literal,
    map_structure,
    name_apart,
    nodes_between,
    open_batch,
    refuse_difference,
    without_failed_nodes,
    without_new_nodes,
    without_training,
)
from kpipe.graph.constant import Constants
from kpipe.graph.flow import functional, has_graph
from kpipe.graph.samples import random_inputs
from kpipe.layers import RULES, own_variables, weight_facts_of

TOLERANCE = 1e-5
"""Largest difference of the outputs that is allowed, relative to the largest output, or absolute below one of 1."""


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
    constants = Constants(model, flat[0])
    with without_new_nodes(model), constants.given():
        trained, plain = (call_symbolically(model, lambda told=told: call(inputs, told)) for told in (True, False))
        refuse_difference(model, flat, plain, trained)
        nodes = nodes_between(flat, plain)
    blocks = [node.operation for node in nodes if id(node.operation) not in writing.whole and is_block(node.operation)]
    writing.whole |= {
        id(block): "A layer of it is called outside of it too." for block in blocks if _reached(block, nodes)
    }
    blocks = [block for block in blocks if id(block) not in writing.whole]
    constants.forget()
    if not blocks:
        with constants.given():
            outputs = call_symbolically(model, lambda: call(inputs, False))
    else:
        outputs = _made_again(nodes, flat, plain, writing)
    name_apart(flat, outputs)
    open_batch(flat, outputs)
    try:
        return keras.Model(inputs, outputs, name=model.name)
    except ValueError as fault:
        raise SurgeryError(f"The call of {model.name!r} makes no graph: {first_line(fault)}") from fault


def _reached(block: Any, nodes: Sequence[Any]) -> bool:
    """Say whether a layer of a block is called by itself too: the file of a graph would hold it twice."""
    inside = {id(layer) for layer in block._flatten_layers(include_self=False)}
    return any(id(node.operation) in inside for node in nodes)


def _made_again(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Structure, writing: Writing) -> Structure:
    """Make the calls of some nodes again, with graphs in the places of blocks."""
    values = {id(tensor): tensor for tensor in inputs}
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        operation = node.operation
        if id(operation) not in writing.whole and is_block(operation):
            result = _call_block(operation, args or (), kwargs or {}, writing)
        else:
            result = operation(*(args or ()), **(kwargs or {}))
        values.update(zip(map(id, node.outputs), keras.tree.flatten(result), strict=True))
    return map_structure(lambda tensor: values[id(tensor)], outputs)


def _call_block(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writing: Writing) -> Structure:
    """Call the graph of a block, which is made at its first call; where there is none, call the block."""
    given = map_structure(_outline, (args, without_training(kwargs)))
    if id(block) not in writing.made:
        try:
            with without_failed_nodes(block):
                writing.made[id(block)] = _block_graph(block, args, kwargs, writing), given
        except SurgeryError as fault:
            writing.whole[id(block)] = str(fault)
            return block(*args, **kwargs)
    graph, first = writing.made[id(block)]
    if keras.tree.flatten(first) != keras.tree.flatten(given):
        text = f"Layer {block.name!r} is called in several ways, one graph cannot do both."
        raise StayWhole({id(block): text}, text)
    tensors = [one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    return graph(tensors if len(tensors) > 1 else tensors[0])


class StayWhole(SurgeryError):
    """Tell that blocks that were written out must stay one layer each: identity of a block -> why."""

    def __init__(self, blocks: Mapping[int, str], message: str):
        super().__init__(message)
        self.blocks = blocks


def _block_graph(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writing: Writing) -> keras.Model:
    """Make the graph of a block, of one input for each tensor that it is called with."""
    tensors = [one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=f"{block.name}_input_{number}")
        for number, tensor in enumerate(tensors)
    ]
    taken = dict(zip(map(id, tensors), inputs, strict=True))

    def call(_: Structure, training: bool) -> Structure:
        new_args, new_kwargs = map_structure(lambda one: taken.get(id(one), one), (args, kwargs))
        return call_plainly(block, new_args, without_training(new_kwargs), training)

    graph = write_out(block, call, inputs if len(inputs) > 1 else inputs[0], writing)
    if lost := lost_weights(block, graph):
        raise SurgeryError(f"The weights {lost} of {block.name!r} are in no layer that depends on its input.")
    values = random_inputs(graph)
    drawn = dict(zip(map(id, tensors), values, strict=True))
    given = map_structure(lambda one: drawn.get(id(one), one), (args, without_training(kwargs)))
    compare(block, graph, given, values)
    return graph


def call_plainly(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool) -> Structure:
    """Call a layer's own `call`, its inputs converted as in `__call__`: no node is made for the layer itself."""

    def converted(value: Any) -> Any:
        return layer.dtype_policy.convert_input(value, layer.autocast, layer.input_dtype)

    if has_graph(layer):
        return functional(layer)._run_through_graph(args[0])
    args, kwargs = map_structure(converted, (tuple(args), dict(kwargs)))
    told = {TRAINING: training} if TRAINING in inspect.signature(layer.call).parameters else {}
    return layer.call(*args, **kwargs, **told)


def compare(layer: Any, graph: keras.Model, given: tuple[Any, Any], values: Sequence[Any]) -> None:
    """Compare the answers of a layer or model and of its graph, with the weights that they have and with others.

    Args:
        layer: The layer.
        graph: Its graph.
        given: The arguments of the layer's call, by position and by name.
        values: One array for each input of the graph.

    Raises:
        SurgeryError: When they differ, or the graph cannot be called.
    """
    if not _answers_alike(layer, graph, given, values):
        raise SurgeryError(
            f"The graph of {layer.name!r} does not answer as it does on random input: its call does something that "
            "a graph does not show, such as counting its calls."
        )
    with keras.StatelessScope(state_mapping=_other_weights(layer)):
        alike = _answers_alike(layer, graph, given, values)
    if not alike:
        raise SurgeryError(
            f"The graph of {layer.name!r} would not follow its weights: its call computes with weights of a layer "
            "outside of that layer, and the graph would hold what they are now. Put that into a layer of its own; for "
            "embeddings that are used for the output too there is keras.layers.ReversibleEmbedding."
        )


def _other_weights(layer: Any) -> list[tuple[Any, Any]]:
    """Give each weight of a layer another value: what is positive, as a variance, stays so, and zero becomes it.

    Whole numbers change places, or become the next where all are the same.
    """
    rng = np.random.default_rng(0)
    drawn = [(one, rng.uniform(0.5, 1.5, one.shape)) for one in layer.weights if "float" in one.dtype]
    whole = [(one, np.asarray(one)) for one in layer.weights if "int" in one.dtype]
    others = [(one, np.roll(value, 1) if np.ptp(value) else value + 1) for one, value in whole]
    floats = [(one, np.asarray(one, "float64") * factor + factor / 8) for one, factor in drawn]
    return [(one, keras.ops.cast(value, one.dtype)) for one, value in (*floats, *others)]


def _answers_alike(layer: Any, graph: keras.Model, given: tuple[Any, Any], values: Sequence[Any]) -> bool:
    told = {TRAINING: False} if TRAINING in inspect.signature(layer.call).parameters else {}
    expected = keras.tree.flatten(layer(*given[0], **{**given[1], **told}))
    inputs = keras.tree.pack_sequence_as(functional(graph)._inputs_struct, values)
    try:
        got = keras.tree.flatten(graph(inputs, training=False))
    except Exception as fault:
        raise SurgeryError(f"The graph of {layer.name!r} cannot be called on values: {first_line(fault)}") from fault
    for one, other in zip(expected, got, strict=True):
        one, other = (np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))) for y in (one, other))
        scale = max(1.0, float(np.abs(one).max(initial=0.0)))
        if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return False
    return True


def lost_weights(layer: Any, graph: keras.Model) -> list[str]:
    """List the paths of the weights of a layer that are not in its graph."""
    there = {id(variable) for variable in graph.weights}
    return [variable.path for variable in layer.weights if id(variable) not in there]


def is_block(operation: Any) -> bool:
    """Say whether a layer may be written out: it has a class of its own, no weights of its own, and no rule.

    A model that has a graph is one where there is such a layer in it: it is gone into.
    """
    if has_graph(operation):
        return any(is_block(one) for one in functional(operation).operations)
    if not isinstance(operation, keras.Layer) or type(operation).__module__.partition(".")[0] == "keras":
        return False
    known = type(operation) in RULES or weight_facts_of(operation).whole
    return not known and not own_variables(operation) and not operation._seed_generators


def _outline(value: Any) -> Any:
    """Describe an argument of a block: a tensor by what a graph must know of it."""
    return (value.shape, value.dtype) if isinstance(value, keras.KerasTensor) else literal(value)
