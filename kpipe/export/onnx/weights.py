"""Weights of an ONNX graph that computes in float, stored as whole numbers or as floats of half the size."""

from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from kpipe.export.onnx.int8 import WITH_WEIGHTS, Graph, channel_axis, of_bits, tensors_taken
from kpipe.fake_quant.affine import channel_scales, grid_of, to_levels


def store_weights(proto: Any) -> None:
    """Store the weights that lie on a grid of whole numbers as these, in place.

    A Cast and a Mul by the scales make floats of them. Runtimes compute such a chain of constants once, when they load
    the file, and the rest as they compute floats. A DequantizeLinear would say the same, but onnxruntime computes it at
    every call, and in front of a matrix product rounds the activations too.

    Args:
        proto: An ONNX ModelProto that computes in float; it is changed.
    """
    from onnx import TensorProto, helper

    graph = Graph(proto.graph)
    for node in proto.graph.node:
        place = 1 if node.op_type in WITH_WEIGHTS else 0 if node.op_type == "Gather" else None
        name = "" if place is None else node.input[place]
        if place is None or name not in graph.constants or graph.constants[name].dtype != np.float32:
            continue
        value, floats = graph.constants[name], f"{name}_floats"
        axis = value.ndim - 1 if node.op_type == "Gather" else channel_axis(node, value)
        bits = grid_of(value, axis) if value.ndim > 1 else None
        if bits is None:
            continue
        if f"{name}_levels" not in graph.new_constants:
            scales = channel_scales(value, (axis,), bits)
            levels = of_bits(to_levels(value, scales, bits), bits)
            graph.new_constants |= {f"{name}_levels": levels, f"{name}_scale": scales.astype(np.float32)}
            graph.added += [
                helper.make_node("Cast", [f"{name}_levels"], [f"{name}_cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [floats]),
            ]
        node.input[place] = floats
    graph.write()


def in_halves(proto: Any) -> Any:
    """Give a graph that computes in floats of half the size, from inputs and to outputs of the full one.

    Operations that have no kernel for halves in any runtime stand between casts.

    Args:
        proto: An ONNX ModelProto that computes in float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(proto, keep_io_types=True)
    into_order(made.graph)
    return made


def into_order(graph: Any) -> None:
    """Put each node of a graph behind those whose outputs it, or a graph inside it, takes; casts may stand at the end.

    Args:
        graph: An ONNX GraphProto.
    """
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    needs = {
        place: {makers[name] for name in tensors_taken(node) if name in makers} for place, node in enumerate(graph.node)
    }
    nodes = [graph.node[place] for place in TopologicalSorter(needs).static_order()]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
