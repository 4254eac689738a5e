"""Stretches of a graph that can be left out: a tensor goes in, and one of the same shape and type comes out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.ops.node import Node

from kpipe.graph import at_inference, at_rest, functional, has_graph

Plain = Callable[[str], bool]
"""Path of a layer or nested model -> whether it computes nothing that counts, as a norm or an activation."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a graph that one tensor goes into and that feeds the rest through nothing but another.

    Args:
        name: Path of the layer that makes its end, before norms and activations behind it were added.
        prefix: Path of the model around it with a "/" behind; "" for the model itself.
        graph: The graph of that model.
        nodes: The calls that it consists of.
        start: What goes in.
        end: What comes out; leaving the stretch out puts `start` in its place.
        why_not: Why it cannot be left out all the same; "" where it can.
    """

    name: str
    prefix: str
    graph: Functional
    nodes: tuple[Node, ...]
    start: Any
    end: Any
    why_not: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of its layers and nested models, in order, each once."""
        return tuple(dict.fromkeys(self.prefix + node.operation.name for node in self.nodes))


def carried_over(stretch: Stretch, twin: keras.Model) -> Stretch:
    """Give the same stretch of a model that is made of the same calls.

    Example:
        >>> layers = [keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")]
        >>> net = keras.Sequential(layers)
        >>> (stretch,) = stretches(net, lambda path: False)
        >>> carried_over(stretch, keras.models.clone_model(net)).paths
        ('a',)
    """
    graph = dict(graphs(twin))[stretch.prefix]
    pairs = list(zip(in_order(stretch.graph), in_order(graph), strict=True))
    calls = {id(old): new for old, new in pairs}
    tensors = {id(a): b for old, new in pairs for a, b in zip(old.outputs, new.outputs, strict=True)}
    return replace(
        stretch,
        graph=graph,
        nodes=tuple(calls[id(node)] for node in stretch.nodes),
        start=tensors[id(stretch.start)],
        end=tensors[id(stretch.end)],
    )


def graphs(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, Functional]]:
    """Give a model's graph and those of the models nested in it, each with the path in front of its layers.

    Example:
        >>> block = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="block")
        >>> [prefix for prefix, _ in graphs(keras.Sequential([keras.Input((4,)), block]))]
        ['', 'block/']
    """
    graph = functional(model)
    yield prefix, graph
    for operation in graph.operations:
        if has_graph(operation):
            yield from graphs(operation, f"{prefix}{operation.name}/")


def in_order(graph: Functional) -> list[Node]:
    """List the calls of one graph, each behind those that it needs."""
    return [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]


def stretches(model: keras.Model, plain: Plain) -> list[Stretch]:
    """Find for each layer the shortest stretch that ends with it.

    A single layer whose output is like its input is one; so is a residual block, from the tensor that goes round it to
    the sum. Norms, activations and the like that alone take its end are added to a stretch that computes something:
    up to the kind of layer that made its start, so that what comes after sees the same kind of tensor, or else all of
    them behind a plain chain and none behind a sum.

    Args:
        model: A built Functional or Sequential model; nested ones are looked into, graph by graph.
        plain: Which layers compute nothing that counts.

    Returns:
        The stretches in the order of their ends, those of nested models last.

    Example:
        >>> layers = [keras.layers.Dense(4, name=name) for name in "abc"]
        >>> net = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, name="d")])
        >>> [stretch.name for stretch in stretches(net, lambda path: False)]
        ['a', 'b', 'c']
    """
    found = []
    for prefix, graph in graphs(model):
        wiring = _Wiring(graph, prefix)
        for node in wiring.nodes:
            for end in () if node.is_input else node.outputs:
                stretch = wiring.shortest(end)
                if stretch is not None:
                    found.append(wiring.with_followers(stretch, plain))
    return found


class _Wiring:
    """Say of one graph which call makes each tensor and which take it."""

    def __init__(self, graph: Functional, prefix: str):
        self.graph, self.prefix, self.nodes = graph, prefix, in_order(graph)
        self.place = {id(node): place for place, node in enumerate(self.nodes)}
        self.maker = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self.takers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(map(id, node.arguments.keras_tensors)):
                self.takers.setdefault(tensor, []).append(node)
        self.outputs = {id(tensor) for tensor in graph.outputs}
        self.inputs = {id(tensor) for tensor in graph.inputs}

    def shortest(self, end: Any) -> Stretch | None:
        """Go back from a tensor until all of it comes from one that is like it.

        Of a residual block, and of a layer alone, that is the tensor that goes round it or through it; what else they
        take, such as a mask, may come from elsewhere as long as others take it too.
        """
        last = self.maker[id(end)]
        if any(id(other) in self.takers or id(other) in self.outputs for other in last.outputs if other is not end):
            return None
        inside, fed = {id(last): last}, _by_id(last.arguments.keras_tensors)
        while fed:
            like = [tensor for tensor in fed.values() if _same_kind(tensor, end)]
            if len(fed) == len(like) == 1:
                return self._stretch(inside, like[0], end)
            round_it = [tensor for tensor in like if self._goes_round(tensor, last, inside)]
            start = round_it[0] if len(round_it) == 1 else None
            node = max((self.maker[key] for key, x in fed.items() if x is not start), key=self._place)
            made = _by_id(node.outputs)
            if node.is_input or made.keys() & self.outputs or any(self._taken_outside(key, inside) for key in made):
                sides = [key for key, tensor in fed.items() if tensor is not start]
                fits = start is not None and all(self._taken_outside(key, inside) for key in sides)
                return self._stretch(inside, start, end) if fits else None
            inside[id(node)] = node
            fed = {k: x for k, x in fed.items() if k not in made} | _by_id(node.arguments.keras_tensors)
        return None

    def _place(self, node: Node) -> int:
        return self.place[id(node)]

    def _taken_outside(self, tensor: int, inside: Mapping[int, Node]) -> bool:
        return any(id(taker) not in inside for taker in self.takers.get(tensor, ()))

    def _goes_round(self, tensor: Any, last: Node, inside: Mapping[int, Node]) -> bool:
        """Say whether a tensor goes into the last call, and also into another inside if there is one."""
        takers = {id(taker) for taker in self.takers[id(tensor)]} & inside.keys()
        return id(last) in takers and (len(takers) > 1 or len(inside) == 1)

    def _stretch(self, inside: Mapping[int, Node], start: Any, end: Any) -> Stretch:
        nodes = tuple(sorted(inside.values(), key=self._place))
        name = self.prefix + nodes[-1].operation.name
        return Stretch(name, self.prefix, self.graph, nodes, start, end, self._why_not(start, end))

    def _why_not(self, start: Any, end: Any) -> str:
        if id(end) in self.outputs and not self.prefix:
            return "it makes an output of the model"
        if id(end) in self.outputs and id(start) in self.inputs:
            return f"it is all of the model {self.prefix[:-1]!r}"
        return ""

    def with_followers(self, stretch: Stretch, plain: Plain) -> Stretch:
        """Add what alone takes the end and computes nothing that counts."""
        if stretch.why_not or all(plain(path) for path in stretch.paths):
            return stretch
        chain = self._followers(stretch.end, plain)
        kind = type(self.maker[id(stretch.start)].operation)
        like = [place for place, node in enumerate(chain) if type(node.operation) is kind]
        merges = len({id(tensor) for tensor in self.maker[id(stretch.end)].arguments.keras_tensors}) > 1
        added = chain[: like[-1] + 1] if like else [] if merges else chain
        if not added:
            return stretch
        end = added[-1].outputs[0]
        why_not = self._why_not(stretch.start, end)
        return stretch if why_not else replace(stretch, nodes=(*stretch.nodes, *added), end=end)

    def _followers(self, end: Any, plain: Plain) -> list[Node]:
        """List the plain calls behind a tensor, each with one like tensor in and out and alone in taking it."""
        chain = []
        while id(end) not in self.outputs:
            takers = self.takers.get(id(end), [])
            node = takers[0] if len(takers) == 1 else None
            if node is None or len(node.arguments.keras_tensors) != 1 or len(node.outputs) != 1:
                break
            if not (_same_kind(end, node.outputs[0]) and plain(self.prefix + node.operation.name)):
                break
            if not self.prefix and id(node.outputs[0]) in self.outputs:
                break
            chain.append(node)
            end = node.outputs[0]
        return chain


def _by_id(tensors: Sequence[Any]) -> dict[int, Any]:
    return {id(tensor): tensor for tensor in tensors}


def _same_kind(a: Any, b: Any) -> bool:
    return tuple(a.shape) == tuple(b.shape) and a.dtype == b.dtype and a.sparse == b.sparse


def answers(model: keras.Model, inputs: Sequence[Any], without: Stretch | None = None) -> list[Any]:
    """Compute a model's outputs from rest, a stretch of it left out at each call of the model that it stands in.

    Args:
        model: A built Functional or Sequential model.
        inputs: One value for each input.
        without: One of its stretches.

    Returns:
        One value for each output.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(), keras.layers.Rescaling(2.0)])
        >>> relu, _ = stretches(net, lambda path: False)
        >>> [y.numpy().tolist() for y in answers(net, [keras.ops.array([[-1.0, 3.0]])], without=relu)]
        [[[-2.0, 6.0]]]
    """
    with at_rest(model):
        return _run(functional(model), inputs, without)


def _run(graph: Functional, inputs: Sequence[Any], without: Stretch | None) -> list[Any]:
    here = without if without is not None and without.graph is graph else None
    gone = {id(node) for node in here.nodes} if here else set()
    stands_for = {id(here.end): id(here.start)} if here else {}
    nodes = [node for node in in_order(graph) if not node.is_input and id(node) not in gone]
    taken = [[stands_for.get(id(tensor), id(tensor)) for tensor in node.arguments.keras_tensors] for node in nodes]
    wanted = [stands_for.get(id(tensor), id(tensor)) for tensor in graph.outputs]
    last = {key: place for place, keys in enumerate([*taken, wanted]) for key in keys}
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for place, (node, keys) in enumerate(zip(nodes, taken, strict=True)):
        made = _call(node, [values[key] for key in keys], without)
        values.update(zip(map(id, node.outputs), made, strict=True))
        for key in keys:
            if last[key] == place:
                values.pop(key, None)  # a large model has many maps, few of them at a time
    return [values[key] for key in wanted]


def _call(node: Node, inputs: Sequence[Any], without: Stretch | None) -> list[Any]:
    """Call a layer, an operation or a nested model as its node says."""
    operation: Any = node.operation
    if has_graph(operation):
        return _run(functional(operation), inputs, without)
    args, kwargs = node.arguments.fill_in(dict(zip(map(id, node.arguments.keras_tensors), inputs, strict=True)))
    return keras.tree.flatten(at_inference(operation, *(args or ()), **(kwargs or {})))
