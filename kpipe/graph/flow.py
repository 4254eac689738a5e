"""The calls of a Functional model in order, nested models written out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.ops.node import Node

from kpipe.errors import SurgeryError
from kpipe.graph.constant import Constant

Key = int
"""Names one tensor of a flow."""


@dataclass(frozen=True)
class Site:
    """One call of one layer or operation.

    Args:
        operation: The layer or operation that is called.
        path: Its name after those of the nested models around it: "block/conv".
        call: How many calls of the same operation came before.
        inputs: Keys of the tensors that go in, in the order of the call; one tensor may come twice.
        outputs: Keys of the tensors that come out.
        input_shapes: With the batch axis.
        output_shapes: With the batch axis.
        node: The Keras node behind it.
    """

    operation: Any
    path: str
    call: int
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    input_shapes: tuple[tuple, ...]
    output_shapes: tuple[tuple, ...]
    node: Node

    def rebind(self, values: dict[Key, Any]) -> tuple[tuple, dict[str, Any]]:
        """Give the call's arguments with each tensor replaced by its value."""
        tensors = self.node.arguments.keras_tensors
        by_identity = {id(t): values[key] for t, key in zip(tensors, self.inputs, strict=True)}
        args, kwargs = self.node.arguments.fill_in(by_identity)
        return args or (), kwargs or {}

    @property
    def is_input(self) -> bool:
        """Say whether this is an InputLayer, of the model or of a nested one."""
        return isinstance(self.operation, keras.layers.InputLayer)


@dataclass(frozen=True)
class Flow:
    """All sites of a model in topological order, and which tensors go in and come out."""

    sites: tuple[Site, ...]
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]

    def consumers(self, site: Site) -> list[Site]:
        """List the sites that compute with an output of `site`; one that takes it twice comes once."""
        takers = (other for other in self.sites if set(site.outputs) & set(other.inputs))
        return [other for other in takers if not isinstance(other.operation, Constant)]

    def is_output(self, site: Site) -> bool:
        """Say whether an output of `site` is an output of the model."""
        return bool(set(site.outputs) & set(self.outputs))


def functional(model: Any) -> Functional:
    """Give the Functional graph of a model, or refuse with the way to get one.

    Raises:
        SurgeryError: When it is no Keras model, not built, or subclassed.
    """
    if not isinstance(model, keras.Model):
        raise SurgeryError(f"Expected a Keras 3 model. Received: {type(model).__module__}.{type(model).__name__}.")
    if isinstance(model, keras.Sequential) and _calls_graph(model):
        if model._functional is None:
            raise SurgeryError(
                f"Model {model.name!r} is not built. Add a keras.Input as its first layer, or call it once."
            )
        return model._functional
    if not (isinstance(model, Functional) and _calls_graph(model)):
        raise SurgeryError(
            f"Model {model.name!r} ({type(model).__name__}) is a subclassed model: its graph cannot be read. If its "
            "call is made of layers and keras.ops, turn it into a graph by kpipe.functionalize(model)."
        )
    return model


def _calls_graph(model: Any) -> bool:
    """Say whether a call of a model runs through its graph, and not through a `call` that its class writes anew."""
    return type(model).call in (Functional.call, keras.Sequential.call)


def sites(model: keras.Model) -> Flow:
    """Read the calls of a Functional or Sequential model, nested ones written out.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        Its flow; the sites of a nested model appear once for each call of it.

    Raises:
        SurgeryError: When the model is not a Keras model, not built, or subclassed.

    Example:
        >>> import keras
        >>> block = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")], name="block")
        >>> x = keras.Input((4,), name="x")
        >>> flow = sites(keras.Model(x, block(x)))
        >>> [site.path for site in flow.sites if not site.is_input]
        ['block/fc']
    """
    keys, calls, values = count(), {}, {}
    graph = functional(model)
    found = tuple(_walk(graph, "", (), keys, calls, values))
    inputs, outputs = ([values[id(t)] for t in tensors] for tensors in (graph.inputs, graph.outputs))
    return Flow(found, tuple(inputs), tuple(outputs))


def _walk(graph: Functional, prefix: str, fed: tuple[Key, ...], keys, calls: dict, values: dict) -> Iterator[Site]:
    """Yield the sites of one graph; `values` maps the identity of its tensors to their keys."""
    feeds = dict(zip((id(t) for t in graph.inputs), fed, strict=False))
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            operation, arguments = node.operation, node.arguments.keras_tensors
            path = prefix + operation.name
            inputs = tuple(values[id(t)] for t in arguments)
            if node.is_input:
                inputs = tuple(feeds[id(t)] for t in node.outputs if id(t) in feeds)
            elif has_graph(operation):
                inner, inside = functional(operation), {}
                if len(arguments) < len(inner.inputs):
                    raise SurgeryError(
                        f"Model {path!r} takes a constant where it has an input; hand it over as an input of the model "
                        "around it, or build it with the constant inside."
                    )
                yield from _walk(inner, path + "/", inputs, keys, calls, inside)
                values.update(zip(map(id, node.outputs), (inside[id(t)] for t in inner.outputs), strict=True))
                continue
            outputs = tuple(next(keys) for _ in node.outputs)
            values.update(zip(map(id, node.outputs), outputs, strict=True))
            shapes = [tuple(tuple(t.shape) for t in tensors) for tensors in (arguments or node.outputs, node.outputs)]
            call = calls[id(operation)] = calls.get(id(operation), -1) + 1
            yield Site(operation, path, call, inputs, outputs, shapes[0], shapes[1], node)


def has_graph(operation: Any) -> bool:
    """Say whether an operation is a model that is written out: a Functional one, or a Sequential one that is built.

    A subclassed model inside another is a layer like any other.
    """
    if isinstance(operation, keras.Sequential):
        return operation._functional is not None and _calls_graph(operation)
    return isinstance(operation, Functional) and _calls_graph(operation)


Call = Callable[..., Any]


def evaluate(
    flow: Flow, inputs: Sequence[Any], call: Call, on_input: Callable[[Site, Any], Any] = lambda site, value: value
) -> list[Any]:
    """Call `call` at every site of a flow, on values or on symbolic tensors.

    Args:
        flow: Of a model.
        inputs: One value for each of its inputs.
        call: `(site, *args, **kwargs) -> outputs`, for every site that is no InputLayer.
        on_input: `(site, value) -> value`, to put something behind an input of the model.

    Returns:
        The values of its outputs.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
        >>> (y,) = evaluate(sites(net), [keras.ops.array([[-1.0, 2.0]])], lambda site, x: site.operation(x))
        >>> y.numpy().tolist()
        [[0.0, 2.0]]
    """
    fresh, values = dict(zip(flow.inputs, inputs, strict=True)), {}
    ends = _last_uses(flow)
    for place, site in enumerate(flow.sites):
        if site.is_input:
            key = site.outputs[0]
            values[key] = values[site.inputs[0]] if site.inputs else on_input(site, fresh[key])
        else:
            args, kwargs = site.rebind(values)
            values.update(zip(site.outputs, keras.tree.flatten(call(site, *args, **kwargs)), strict=True))
            del args, kwargs
        for key in ends.get(place, ()):
            del values[key]
    return [values[key] for key in flow.outputs]


def _last_uses(flow: Flow) -> dict[int, list[Key]]:
    """Say after which site which values are needed no more: a large model has many maps, few of them at a time."""
    last = {key: place for place, site in enumerate(flow.sites) for key in (*site.outputs, *site.inputs)}
    ends: dict[int, list[Key]] = {}
    for key, place in last.items():
        if key not in flow.outputs:
            ends.setdefault(place, []).append(key)
    return ends


def replay(
    model: keras.Model,
    call: Call,
    on_input: Callable[[Site, Any], Any] = lambda site, value: value,
    name: str | None = None,
) -> keras.Model:
    """Build a new Functional model by calling `call` at every site of a model, nested models written out.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        call: `(site, *args, **kwargs) -> outputs`, for every site that is no InputLayer: it decides what is called.
        on_input: `(site, tensor) -> tensor`, to put something behind an input of the model.
        name: Name of the new model. None: the old one's.

    Returns:
        A Functional model with the same input names and the same input and output structure.

    Raises:
        SurgeryError: When the model's graph cannot be read.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        >>> again = replay(model, lambda site, *args, **kwargs: site.operation(*args, **kwargs))
        >>> again.inputs[0].name, again.output_shape
        ('x', (None, 3))
    """
    flow, graph = sites(model), functional(model)
    fresh = [_input_like(tensor) for tensor in graph.inputs]
    inputs = keras.tree.pack_sequence_as(graph._inputs_struct, fresh)
    outputs = keras.tree.pack_sequence_as(graph._outputs_struct, evaluate(flow, fresh, call, on_input))
    return keras.Model(inputs, outputs, name=name or model.name)


def _input_like(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
