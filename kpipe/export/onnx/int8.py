"""Weights of an ONNX graph with rounded activations stored as whole numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kpipe.fake_quant.affine import channel_scales, grid_of, to_levels

WITH_WEIGHTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
MOVES = (
    "Gather",
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
    "Split",
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

    def dequantized(
        self,
        name: str,
        levels: np.ndarray,
        scales: np.ndarray,
        axis: int | None,
        zero_point: Any = None,
        bits: int = 8,
    ) -> str:
        """Add whole numbers with their scales, once, and give the name of the tensor they stand for.

        Those of 4 bits are made 8 bits wide first, which onnxruntime does once when it loads a file: it has no integer
        kernels that take 4 bits.
        """
        from onnx import TensorProto, helper

        output = f"{name}_dequantized"
        if output not in self.maker:
            ends = {f"{name}_levels": levels, f"{name}_scale": scales.astype(np.float32)}
            ends[f"{name}_zero_point"] = np.zeros(scales.shape, levels.dtype) if zero_point is None else zero_point
            self.new_constants |= ends
            if bits < 8:
                self.new_constants[f"{name}_narrow"] = of_bits(self.new_constants.pop(f"{name}_levels"), bits)
                cast = helper.make_node("Cast", [f"{name}_narrow"], [f"{name}_levels"], to=TensorProto.INT8)
                self.added.append(cast)
            node = helper.make_node("DequantizeLinear", list(ends), [output], name=output)
            if axis is not None:
                node.attribute.append(helper.make_attribute("axis", axis))
            self.added.append(node)
            self.maker[output] = node
        return output

    def insert(self, before: Any, node: Any) -> None:
        """Put a node before another one."""
        place = next(place for place, one in enumerate(self.graph.node) if one is before or one == before)
        self.graph.node.insert(place, node)
        self.maker[node.output[0]] = self.graph.node[place]

    def write(self) -> None:
        """Put what was added into the graph and drop the constants that nothing takes any more."""
        from onnx import numpy_helper

        nodes = [*self.added, *self.graph.node]
        taken = {name for node in nodes for name in tensors_taken(node)}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in taken]
        new = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.new_constants.items()]
        for field, content in ((self.graph.node, nodes), (self.graph.initializer, kept + new)):
            copies = [type(item).FromString(item.SerializeToString()) for item in content]
            del field[:]
            field.extend(copies)


def tensors_taken(node: Any) -> Iterator[str]:
    """Name the tensors that a node takes, and those that graphs inside it take from outside."""
    yield from node.input
    for graph in inside(node):
        for inner in graph.node:
            yield from tensors_taken(inner)
        yield from (end.name for end in graph.output)


def inside(node: Any) -> Iterator[Any]:
    """Give the graphs inside a node: the body of a loop, the branches of a choice."""
    for attribute in node.attribute:
        yield from (graph for graph in (attribute.g, *attribute.graphs) if graph.node)


def _guard_loops(graph: Graph) -> None:
    """Let a loop take rounded values through a sum of one term.

    onnxruntime 1.32 moves a DequantizeLinear along the operations that only move values, and aborts the process where
    the next one is a loop that takes the value from outside by name.
    """
    for node in list(graph.graph.node):
        outside = {name for name in tensors_taken(node) if graph.grid(name) is not None} - set(node.input)
        for name in sorted(outside) if list(inside(node)) else ():
            from onnx import helper

            guarded = f"{name}_guarded"
            graph.insert(node, helper.make_node("Sum", [name], [guarded], name=guarded))
            for inner in inside(node):
                _rename_taken(inner, name, guarded)


def _rename_taken(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for inner in inside(node):
            _rename_taken(inner, old, new)


def of_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Give whole numbers of 8 bits as those of 4, where they are, of which ONNX stores two in a byte."""
    import ml_dtypes

    return levels.astype(ml_dtypes.int4) if bits == 4 else levels


def store_levels(proto: Any) -> None:
    """Store the weights of convolutions and dense layers as whole numbers and their biases as int32, in place.

    The weights must lie on their per-channel grids (`kpipe.fake_quant.bake` puts them there), so nothing is lost. A
    DequantizeLinear stands between each and its operation, the form that runtimes fuse into integer kernels. A bias
    takes the scale of its products, input scale · weight scale.

    Args:
        proto: An ONNX ModelProto whose activations are rounded; it is changed.
    """
    graph = Graph(proto.graph)
    _bias_before_reshape(graph)
    _dense_as_gemm(graph, proto)
    _lookups(graph)
    _guard_loops(graph)
    by_weight: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        if node.op_type in WITH_WEIGHTS and node.input[1] in graph.constants:
            by_weight.setdefault(node.input[1], []).append(node)
    for name, nodes in by_weight.items():
        value, axis = graph.constants[name], channel_axis(nodes[0], graph.constants[name])
        bits = grid_of(value, axis)
        if bits is None:
            continue  # it was left in float
        scales = channel_scales(value, (axis,), bits)
        for node in nodes:
            scales = np.maximum(
                scales, _least_scales(graph, node).reshape([-1 if n == axis else 1 for n in range(value.ndim)])
            )
        for node in nodes:
            levels = to_levels(value, scales, bits)
            node.input[1] = graph.dequantized(name, levels, scales.reshape(-1), axis, bits=bits)
            if len(node.input) > 2 and node.input[2] in graph.constants:
                node.input[2] = _bias(graph, node, scales.reshape(-1))
    graph.write()


def _bias_before_reshape(graph: Graph) -> None:
    """Add a bias to the product of two tables before it is brought into shape, where runtimes compute both at once."""
    for add in graph.graph.node:
        bias = next((name for name in add.input if name in graph.constants), None)
        values = [name for name in add.input if name != bias]
        reshape: Any = graph.maker.get(values[0]) if add.op_type == "Add" and bias and len(values) == 1 else None
        if bias is None or reshape is None or reshape.op_type != "Reshape":
            continue
        product: Any = graph.maker.get(reshape.input[0])
        if product is None or product.op_type != "MatMul" or product.input[1] not in graph.constants:
            continue
        alone = len(graph.takers(values[0])) == len(graph.takers(product.output[0])) == 1
        if alone and graph.constants[bias].shape == graph.constants[product.input[1]].shape[1:]:
            # MatMul -> Reshape -> Add becomes MatMul -> Add -> Reshape: the nodes exchange what they do.
            shape = reshape.input[1]
            reshape.op_type, add.op_type = "Add", "Reshape"
            reshape.input[:] = [product.output[0], bias]
            add.input[:] = [reshape.output[0], shape]
            del reshape.attribute[:]


def _lookups(graph: Graph) -> None:
    """Store a table that is looked up, on the grid of what comes out."""
    for node in graph.graph.node:
        rounding = graph.takers(node.output[0])
        if node.op_type != "Gather" or node.input[0] not in graph.constants or len(rounding) != 1:
            continue
        if rounding[0].op_type != "QuantizeLinear" or graph.constants[node.input[0]].dtype != np.float32:
            continue
        scale, zero_point = (graph.constants[name] for name in rounding[0].input[1:3])
        value = graph.constants[node.input[0]]
        info = np.iinfo(zero_point.dtype)
        levels = np.clip(np.round(value / scale) + int(zero_point), info.min, info.max).astype(zero_point.dtype)
        node.input[0] = graph.dequantized(node.input[0], levels, scale, None, zero_point)


def channel_axis(node: Any, weight: np.ndarray) -> int:
    """Convolutions are (out, in, h, w), transposed ones (in, out, h, w), dense layers (in, out); Gemm may be turned."""
    if node.op_type == "ConvTranspose":
        return 1
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
