"""Names and order in an ONNX graph that depend on the graph alone.

tf2onnx names tensors after counters of the process, so the same model written twice would give two different files, and
a run that was resumed could not be compared with one that was not. Short names make smaller files, too.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from kpipe.export.file import ISLAND, named_after

RECURRENT = ("LSTM", "GRU", "RNN", "Loop", "Scan")


def rename(graph: Any, islands: Sequence[str] = (), rounded: Collection[str] | None = None) -> None:
    """Order the nodes of a graph from its outputs back, and number them and their tensors in that order, in place.

    Inputs and outputs keep their names and places; their open sizes are named too, the first "batch". A graph with
    inner graphs (loops, branches), whose nodes take tensors from outside by name, is left as it is.

    Args:
        graph: An ONNX GraphProto without nodes that lead to no output.
        islands: Layers that compute in float: their nodes bear the number of the layer, as "island_0/relu_3".
        rounded: All other layers, where operations that are no layers may compute in float too; else None.

    Example:
        >>> from onnx import TensorProto, helper
        >>> ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("x", "y")]
        >>> nodes = [helper.make_node("Relu", ["x"], ["r__17"]), helper.make_node("Neg", ["r__17"], ["y"])]
        >>> graph = helper.make_graph(nodes, "tf2onnx__18", ends[:1], ends[1:])
        >>> rename(graph)
        >>> [(node.name, list(node.input), list(node.output)) for node in graph.node]
        [('relu_0', ['x'], ['relu_0']), ('neg_1', ['relu_0'], ['y'])]
    """
    _mark(graph, islands, rounded)
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    nodes = list(_from_outputs(graph))
    kept = {end.name for end in (*graph.input, *graph.output)}
    names = {name: name for name in ("", *kept)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    used: dict[str, Any] = {}
    for number, node in enumerate(nodes):
        for name in node.input:
            if name in constants and name not in used:
                used[name] = constants[name]
                names.setdefault(name, _free(f"constant_{len(used) - 1}", kept))
        base = _free(f"{node.op_type.lower()}_{number}", kept)
        for place, name in enumerate(node.output):
            names.setdefault(name, base if place == 0 else f"{base}_{place}")
    for number, node in enumerate(nodes):
        island = node.name.partition("/")[0] + "/" if node.name.startswith(ISLAND) else ""
        node.name = f"{island}{node.op_type.lower()}_{number}"
        node.doc_string = ""
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for name, tensor in used.items():
        tensor.name = names[name]
    _replace(graph.node, nodes)
    _replace(graph.initializer, list(used.values()))
    for end in (*graph.input, *graph.output):
        for axis, size in enumerate(end.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = "batch" if axis == 0 else f"{end.name}_{axis}"
    del graph.value_info[:]
    graph.name, graph.doc_string = "kpipe", ""


def _mark(graph: Any, islands: Sequence[str], rounded: Collection[str] | None) -> None:
    """Name the nodes of islands so.

    What bears no name of a layer belongs to an island where it is a recurrent operation, or takes values from islands
    alone, beside which sizes may come from elsewhere: such nodes come from several that were brought together.
    """
    constants = {tensor.name for tensor in graph.initializer}
    sizes = _sizes(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node if islands else ():
        told = [node.name, *node.output, *(name for name in node.input if name in constants)]
        named = (place for place, layer in enumerate(islands) if any(named_after(name, layer) for name in told))
        place = next(named, None)
        if place is None and rounded is not None and "/" in node.name:
            place = None if any(named_after(node.name, layer) for layer in rounded) else "of_operations"
        made = [name for name in node.input if name in makers]
        taken = [makers[name].name for name in [name for name in made if name not in sizes] or made]
        from_islands = bool(taken) and all(name.startswith(ISLAND) for name in taken)
        if place is not None:
            node.name = f"{ISLAND}{place}/{node.name}"
        elif "/" not in node.name and (node.op_type in RECURRENT or from_islands):
            node.name = f"{ISLAND}of_several/{node.name}"


def _sizes(graph: Any) -> set[str]:
    """Name the tensors that are made of shapes and constants alone."""
    found = {name for node in graph.node if node.op_type == "Shape" for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    for node in _from_outputs(graph):
        taken = set(node.input) - {""}
        if taken & found and taken <= found | stored:
            found.update(node.output)
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _from_outputs(graph: Any) -> Iterator[Any]:
    """Give the nodes so that each comes after those it takes from; the order depends on the graph alone."""
    maker = {name: node for node in graph.node for name in node.output if name}
    seen: set[int] = set()
    for end in graph.output:
        waiting = [(end.name, False)]
        while waiting:
            name, expanded = waiting.pop()
            node = maker.get(name)
            if node is None or (id(node) in seen and not expanded):
                continue
            if expanded:
                yield node
                continue
            seen.add(id(node))
            waiting.append((name, True))
            waiting += [(taken, False) for taken in reversed(node.input)]


def _replace(field: Any, content: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in content]
    del field[:]
    field.extend(copies)
