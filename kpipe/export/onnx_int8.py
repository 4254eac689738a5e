"""Weights of an ONNX graph with rounded activations stored as whole numbers."""

from typing import Any

import numpy as np

from kpipe.fake_quant.affine import channel_scales, to_levels

WITH_WEIGHTS = ("Conv", "MatMul", "Gemm")
MOVES = (
    "Transpose",
    "Reshape",
    "Pad",
    "MaxPool",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Tile",
    "Identity",
    "ReduceMax",
)
"""Operations that only move values (or drop some): the grid of what goes in holds for what comes out."""
LARGEST_BIAS = 2**30


class Graph:
    """An ONNX graph with its tensors looked up by name, and what is added to it."""

    def __init__(self, graph: Any):
        from onnx import numpy_helper

        self.graph = graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.added: list[Any] = []
        self.new_constants: dict[str, np.ndarray] = {}

    def takers(self, name: str) -> list[Any]:
        """List the nodes that take a tensor."""
        return [node for node in self.graph.node if name in node.input]

    def origin(self, name: str) -> str:
        """Follow a tensor back through operations that only move values."""
        while name in self.maker and self.maker[name].op_type in MOVES:
            name = self.maker[name].input[0]
        return name

    def grid(self, name: str) -> tuple[float, int] | None:
        """Give scale and zero point of the grid on which a tensor lies; None when it is on none."""
        node = self.maker.get(self.origin(name))
        if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in self.constants:
            return None
        scale = self.constants[node.input[1]]
        zero_point = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(())
        return (float(scale), int(zero_point)) if scale.ndim == 0 else None

    def dequantized(self, name: str, levels: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Add whole numbers with their scales, once, and give the name of the tensor they stand for."""
        from onnx import helper

        output = f"{name}_dequantized"
        if output not in self.maker:
            ends = {f"{name}_levels": levels, f"{name}_scale": scales.astype(np.float32)}
            ends[f"{name}_zero_point"] = np.zeros(scales.shape, levels.dtype)
            self.new_constants |= ends
            node = helper.make_node("DequantizeLinear", list(ends), [output], name=output, axis=axis)
            self.added.append(node)
            self.maker[output] = node
        return output

    def write(self) -> None:
        """Put what was added into the graph and drop the constants that nothing takes any more."""
        from onnx import numpy_helper

        nodes = [*self.added, *self.graph.node]
        taken = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in taken]
        new = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.new_constants.items()]
        for field, content in ((self.graph.node, nodes), (self.graph.initializer, kept + new)):
            copies = [type(item).FromString(item.SerializeToString()) for item in content]
            del field[:]
            field.extend(copies)


def store_int8(proto: Any) -> None:
    """Store the weights of convolutions and dense layers as int8 and their biases as int32, in place.

    The weights must lie on their per-channel grids (`kpipe.fake_quant.bake` puts them there), so nothing is lost. A
    DequantizeLinear stands between each and its operation, the form that runtimes fuse into integer kernels. A bias
    takes the scale of its products, input scale · weight scale.

    Args:
        proto: An ONNX ModelProto whose activations are rounded; it is changed.
    """
    graph = Graph(proto.graph)
    _dense_as_gemm(graph, proto)
    by_weight: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        if node.op_type in WITH_WEIGHTS and node.input[1] in graph.constants:
            by_weight.setdefault(node.input[1], []).append(node)
    for name, nodes in by_weight.items():
        value, axis = graph.constants[name], _channel_axis(nodes[0], graph.constants[name])
        scales = channel_scales(value, (axis,))
        for node in nodes:
            scales = np.maximum(
                scales, _least_scales(graph, node).reshape([-1 if n == axis else 1 for n in range(value.ndim)])
            )
        for node in nodes:
            node.input[1] = graph.dequantized(name, to_levels(value, scales), scales.reshape(-1), axis)
            if len(node.input) > 2 and node.input[2] in graph.constants:
                node.input[2] = _bias(graph, node, scales.reshape(-1))
    graph.write()


def _channel_axis(node: Any, weight: np.ndarray) -> int:
    """Convolutions are (out, in, h, w), dense layers (in, out); Gemm may be transposed."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else weight.ndim - 1


def _least_scales(graph: Graph, node: Any) -> np.ndarray:
    """Give the least weight scales with which a bias fits in 32 bits; they matter where a channel is all but dead."""
    grid = graph.grid(node.input[0])
    if grid is None or len(node.input) < 3 or node.input[2] not in graph.constants:
        return np.zeros(1)
    return np.abs(graph.constants[node.input[2]].reshape(-1).astype(np.float64)) / (grid[0] * LARGEST_BIAS)


def _bias(graph: Graph, node: Any, scales: np.ndarray) -> str:
    """Give the name of a node's bias as int32; as it is where the input has no grid."""
    name, grid = node.input[2], graph.grid(node.input[0])
    if grid is None:
        return name
    steps = scales.astype(np.float64) * grid[0]
    levels = np.round(graph.constants[name].reshape(-1) / steps).astype(np.int32)
    return graph.dequantized(f"{name}_for_{node.input[0]}", levels, steps, 0)


def _dense_as_gemm(graph: Graph, proto: Any) -> None:
    """Write a MatMul of a table (batch, in) and the Add of its bias as one Gemm, which runtimes compute in integers."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(proto).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.value_info, *inferred.input)}
    absorbed = []
    for node in proto.graph.node:
        takers = graph.takers(node.output[0])
        if node.op_type != "MatMul" or node.input[1] not in graph.constants or ranks.get(node.input[0]) != 2:
            continue
        if len(takers) != 1 or takers[0].op_type != "Add":
            continue
        others = [name for name in takers[0].input if name != node.output[0]]
        bias = graph.constants.get(others[0]) if others else None
        if bias is None or bias.size != graph.constants[node.input[1]].shape[1]:
            continue
        if bias.ndim != 1:
            graph.constants[others[0]] = bias.reshape(-1)
            graph.new_constants[f"{others[0]}_flat"] = bias.reshape(-1)
            graph.constants[f"{others[0]}_flat"] = bias.reshape(-1)
            others = [f"{others[0]}_flat"]
        node.op_type, output = "Gemm", takers[0].output[0]
        node.input.append(others[0])
        node.output[0] = output
        graph.maker[output] = node
        absorbed.append(takers[0])
    for node in absorbed:
        proto.graph.node.remove(node)


def scale_behind(graph: Any, name: str) -> tuple[float | None, int]:
    """Give scale and zero point of the grid on which an output lies, or (None, 0)."""
    return Graph(graph).grid(name) or (None, 0)
