"""Weights that several operations share."""

from typing import Any


def separate(graph: Any) -> None:
    """Store unpacked weights that several operations of an ONNX graph share once for each of them, in place.

    onnxruntime does not load files that share them where its sums of int8 products are to be exact on old processors.
    Tables that are looked up may be shared.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    unpacking = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes, seen = [], set()
    for n, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            maker = unpacking.get(name)
            if maker is None or maker.input[0] not in stored or node.op_type == "Gather":
                continue
            if name in seen:
                copies = type(maker).FromString(maker.SerializeToString())
                copies.name, copies.output[0] = f"{maker.name}_{n}_{place}", f"{name}_{n}_{place}"
                for each in [k for k, given in enumerate(maker.input) if given in stored]:
                    tensor = stored[maker.input[each]]
                    tensor = type(tensor).FromString(tensor.SerializeToString())
                    tensor.name = copies.input[each] = f"{tensor.name}_{n}_{place}"
                    graph.initializer.append(tensor)
                nodes.append(copies)
                node.input[place] = copies.output[0]
            seen.add(name)
        nodes.append(node)
    ordered = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
