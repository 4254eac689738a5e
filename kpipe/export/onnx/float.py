"""Operations of an ONNX graph with rounded activations that compute in float all the same."""

from collections.abc import Iterator, Mapping
from typing import Any

from kpipe.export.file import FloatOperation
from kpipe.export.onnx.int8 import MOVES, WITH_WEIGHTS, Graph

ROUNDING = ("QuantizeLinear", "DequantizeLinear")
FUSED = ("Relu", "Clip")
"""What runtimes compute inside the convolution, dense layer or addition before it."""
ELEMENTWISE = tuple(
    "Abs Add Clip Div Elu Erf Exp HardSigmoid HardSwish LeakyRelu Max Min Mul Neg Pow Relu Sigmoid Sub Tanh".split()
)
"""What treats each value alone: of one rounded tensor, any composition of them is a table of 256 entries."""


def float_operations(graph: Any, types: Mapping[str, str]) -> Iterator[FloatOperation]:
    """Name each operation of a rounded graph that takes values which are not rounded, and each such output.

    Between rounded values stands one operation that computes, with what runtimes fuse into it: a ReLU behind a
    convolution, dense layer or addition, the bias behind a matrix product. A function of one rounded tensor may be
    written in several steps, as x · sigmoid(x) is. Operations that only move values may stand anywhere.

    Args:
        graph: An ONNX GraphProto.
        types: Tensor name -> NumPy's name of its type.
    """
    lookup = Graph(graph)
    for node in graph.node:
        if node.op_type in (*ROUNDING, *MOVES) or not _is_float(types, node.output[0]):
            continue
        data = [name for name in node.input if name and _is_float(types, name)]
        if node.op_type in WITH_WEIGHTS:
            for what in _float_weights(lookup, node):
                yield FloatOperation(node.name, f"{node.op_type} has {what}")
            data = data[:1]
        if node.op_type == "Resize":  # the others say how much
            data = data[:1]
        if node.op_type in ELEMENTWISE and _single_root(lookup, data) is not None:
            continue
        if not _is_fused(lookup, node) and not all(_is_rounded(lookup, name) for name in data):
            yield FloatOperation(node.name, f"{node.op_type} takes an input that is not rounded")
    for end in graph.output:
        if _is_float(types, end.name) and lookup.grid(end.name) is None:
            yield FloatOperation(end.name, "the output is not rounded")


def _is_float(types: Mapping[str, str], name: str) -> bool:
    """What is not known is taken for a float."""
    return types.get(name, "float").startswith("float")


def _is_rounded(lookup: Graph, name: str) -> bool:
    """A number is as good as rounded: it takes part in no grid of its own."""
    return lookup.grid(name) is not None or (name in lookup.constants and lookup.constants[name].size == 1)


def _is_constant(lookup: Graph, name: str) -> bool:
    """Say whether a tensor is stored in the file, perhaps moved by what follows."""
    return lookup.origin(name) in lookup.constants


def _float_weights(lookup: Graph, node: Any) -> Iterator[str]:
    for name, what in zip(node.input[1:3], ("float weights", "a float bias"), strict=False):
        maker = lookup.maker.get(lookup.origin(name))
        if maker is None or maker.op_type != "DequantizeLinear":
            yield what


def _is_fused(lookup: Graph, node: Any) -> bool:
    """Say whether runtimes compute a node inside the one before it."""
    makers = [lookup.maker.get(lookup.origin(name)) for name in node.input if name not in lookup.constants]
    if len(makers) == 1 and makers[0] is not None:
        if node.op_type == "Add":
            return makers[0].op_type == "MatMul"
        return node.op_type in FUSED and makers[0].op_type in (*WITH_WEIGHTS, "Add")
    return False


def _single_root(lookup: Graph, names: list[str]) -> str | None:
    """Give the one rounded tensor of which all these tensors are functions, value by value; None without one."""
    roots, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        maker = lookup.maker.get(name)
        if lookup.grid(name) is not None:
            roots.add(lookup.origin(name))
        elif maker is not None and maker.op_type in ELEMENTWISE:
            waiting += maker.input
        elif maker is not None and maker.op_type in MOVES:
            waiting += maker.input[:1]
        elif name and not _is_constant(lookup, name):
            return None
    return roots.pop() if len(roots) == 1 else None
