"""Subclassed models turned into Functional ones over the same layers."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kpipe.errors import SurgeryError
from kpipe.graph.calls import Structure, call_symbolically, without_failed_nodes, without_new_nodes
from kpipe.graph.flow import functional, has_graph
from kpipe.graph.samples import random_inputs
from kpipe.graph.symbolic import (
    StayWhole,
    Writing,
    call_plainly,
    compare,
    is_block,
    lost_weights,
    write_out,
)


def functionalize(model: keras.Model, input_spec: Any = None) -> keras.Model:
    """Turn a model whose `call` is made of layers and `keras.ops` into a Functional one over the very same layers.

    Its graph can then be read: channels can be cut, it can be quantized and exported. The call is made on symbolic
    tensors, so the graph holds what it does, and the weights are those of the model: training the one trains the
    other. Layers and models inside that are made of layers and operations too become graphs of their own inside the
    graph, under their names; those that are not stay one layer each.

    A layer that is called on constants alone, such as embeddings of the positions 0, 1, 2, is called on a layer
    `Constant` of the graph: where the graph is loaded from a file, kpipe must have been imported.

    What a graph cannot hold is refused: weights that the model uses itself (put them into a layer), those of a layer
    that are computed with outside of it, a call that does other things in training, a loss added in a call. A
    `train_step` of the model's own does not come along.

    Args:
        model: Any Keras model. One that has a graph comes back as it is, unless there are layers in it to write out;
            one that is not built is built.
        input_spec: What `call` takes: a shape with its batch axis, an array, a tensor or a `keras.KerasTensor`, or
            these in a list, a tuple or a dict. None: the shape that the model was built with. Whole-number inputs must
            be given as arrays or tensors: a shape alone says nothing of the type.

    Returns:
        A Functional model, not compiled, whose outputs were compared with the model's on random input, with the weights
        as they are and with others. Its layers come in the order of the graph, and so do its weights.

    Raises:
        SurgeryError: When its call cannot become a graph, or the graph would not answer alike, saying why.

    Example:
        >>> class Gate(keras.Model):
        ...     def __init__(self):
        ...         super().__init__(name="gate")
        ...         self.values, self.gates = keras.layers.Dense(4), keras.layers.Dense(4, activation="sigmoid")
        ...     def call(self, x):
        ...         return self.values(x) * self.gates(x)
        >>> model = Gate()
        >>> graph = functionalize(model, (None, 3))
        >>> graph.output_shape, graph.get_layer(model.values.name) is model.values
        ((None, 4), True)
    """
    if not isinstance(model, keras.Model):
        functional(model)  # refuses it
    if isinstance(model, keras.Sequential) and not has_graph(model) and type(model).call is keras.Sequential.call:
        _build_sequential(model, input_spec)
    if has_graph(model) and not is_block(model):
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not support masking.*"
        )  # said when the model itself is called
        return _graph_of(model, input_spec)


def _graph_of(model: keras.Model, input_spec: Any) -> keras.Model:
    """Write a model out and compare it; blocks stay one layer where one graph cannot stand for them."""
    writing = Writing()
    while True:
        inputs, call = _entry(model, input_spec)
        if not model.built:
            _build(model, inputs)
        try:
            with without_failed_nodes(model):
                graph = write_out(model, call, inputs, writing)
                unused = _refuse_lost(model, graph, call, inputs)
                _check(model, graph, writing)
        except StayWhole as fault:
            writing = Writing(whole={**writing.whole, **fault.blocks})
            continue
        if unused:
            text = f"The graph of {model.name!r} leaves out {unused}: its call does not use them."
            warnings.warn(text, stacklevel=4)
        return graph


def _build_sequential(model: keras.Sequential, input_spec: Any) -> None:
    """Build a Sequential model: it gets its graph by that."""
    shapes = keras.tree.flatten(_tensors(model, input_spec, "inputs"))
    model.build(shapes[0].shape)


def _build(model: keras.Model, inputs: Structure) -> None:
    """Build a model by a symbolic call, which knows no more than shapes and types."""
    try:
        call_symbolically(model, lambda: model(*_spread(model, inputs)))
    finally:
        model._inbound_nodes.clear()


def _entry(model: keras.Model, input_spec: Any) -> tuple[Structure, Callable[..., Structure]]:
    """Make the inputs of a graph, and the function that calls the model on them."""
    if has_graph(model):
        graph = functional(model)
        inputs = keras.tree.map_structure(_input_like, graph._inputs_struct)
        return inputs, lambda tensors, training: graph._run_through_graph(tensors)
    first, *_ = inspect.signature(model.call).parameters
    inputs = _tensors(model, input_spec, first)
    return inputs, lambda tensors, training: call_plainly(model, _spread(model, tensors), {}, training)


def _spread(model: keras.Model, inputs: Structure) -> tuple[Any, ...]:
    """Give the positional arguments of a call: a model may take its tensors one by one."""
    parameters = inspect.signature(model.call).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(needed) > 1 and isinstance(inputs, (list, tuple)) and len(inputs) >= len(needed):
        return tuple(inputs)
    return (inputs,)


def _input_like(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _tensors(model: keras.Model, input_spec: Any, name: str) -> Structure:
    """Make the symbolic inputs that a specification describes."""
    if input_spec is None:
        shapes = model._build_shapes_dict or {}
        if not shapes:
            raise SurgeryError(
                f"Model {model.name!r} was not built on known shapes. Give input_spec: a shape such as (None, 32, 32, "
                "3), an array or a keras.KerasTensor, or several of these as its call takes them."
            )
        specs = [_open_batch(shape) for shape in shapes.values()]
        input_spec = specs[0] if len(specs) == 1 else specs
    return _symbolic(model, input_spec, name)


def _open_batch(shape: Any) -> Any:
    """Open the batch axis of the shapes that a model was built with: they may be those of its first data."""
    if _is_shape(shape):
        return (None, *shape[1:])
    if isinstance(shape, dict):
        return {key: _open_batch(one) for key, one in shape.items()}
    return [_open_batch(one) for one in shape]


def _is_shape(spec: Any) -> bool:
    return isinstance(spec, (list, tuple)) and all(size is None or isinstance(size, int) for size in spec)


def _symbolic(model: keras.Model, spec: Any, name: str) -> Structure:
    if _is_shape(spec):
        return keras.Input(batch_shape=tuple(spec), dtype=model.input_dtype, name=name)
    if isinstance(spec, dict):
        return {key: _symbolic(model, one, key) for key, one in spec.items()}
    if isinstance(spec, (list, tuple)):
        return type(spec)(_symbolic(model, one, f"{name}_{number}") for number, one in enumerate(spec))
    if isinstance(spec, keras.KerasTensor):
        return keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=name)
    if isinstance(spec, np.ndarray) or keras.ops.is_tensor(spec):
        return keras.Input(batch_shape=(None, *spec.shape[1:]), dtype=str(np.dtype(spec.dtype.name)), name=name)
    raise SurgeryError(
        f"Expected in input_spec shapes, arrays or tensors, in lists or dicts as {model.name!r} takes them. Received: "
        f"{spec!r}."
    )


def _refuse_lost(model: keras.Model, graph: keras.Model, call: Callable[..., Any], inputs: Structure) -> list[str]:
    """Refuse a graph without some of the weights that are used; name the layers whose weights nothing uses."""
    if not lost_weights(model, graph):
        return []
    kept = {id(variable) for variable in graph.weights}
    owners = [
        one
        for one in model._flatten_layers()
        if any(id(v) not in kept for v in (*one._trainable_variables, *one._non_trainable_variables))
    ]
    with without_new_nodes(model):
        used = {one.name for one in owners if one is model} | _heard(owners, lambda: call(inputs, False))
    if used:
        raise SurgeryError(
            f"The graph of {model.name!r} would lack weights of {sorted(used)}, which its call uses: weights of the "
            "model itself, or of layers that no tensor of the graph leads to, or whose answers lead nowhere. Put what "
            "uses them into a layer of its own, which takes a tensor of the model."
        )
    return sorted(one.name for one in owners)


def _heard(layers: list[Any], call: Callable[[], Any]) -> set[str]:
    """Name the layers whose `call` is made within a call."""
    names: set[str] = set()

    def listening(layer: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        def heard(*args: Any, **kwargs: Any) -> Any:
            names.add(layer.name)
            return own(*args, **kwargs)

        return heard

    for layer in layers:
        layer.__dict__["call"] = listening(layer, layer.call)
    try:
        call()
    finally:
        for layer in layers:
            del layer.__dict__["call"]
    return names


def _check(model: keras.Model, graph: keras.Model, writing: Writing) -> None:
    """Compare the answers of a model and of its graph on random input; blocks may be what makes them differ."""
    values = random_inputs(graph)
    given = keras.tree.pack_sequence_as(functional(graph)._inputs_struct, values)
    try:
        compare(model, graph, (_spread(model, given), {}), values)
    except SurgeryError as fault:
        if writing.made:
            raise StayWhole(dict.fromkeys(writing.made, str(fault)), str(fault)) from fault
        raise
