"""What counts as a float operation in a rounded ONNX graph, on graphs made by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kpipe.export import inspect
from kpipe.export.onnx.float import float_operations

CONSTANTS = {"s": np.float32(0.1), "z": np.int8(0), "two": np.float32(2), "row": np.ones(4, np.float32)}
CONSTANTS |= {"w": np.eye(4, dtype=np.int8), "ws": np.ones(4, np.float32), "wz": np.zeros(4, np.int8)}
CONSTANTS["floats"] = np.eye(4, dtype=np.float32)


def graph_of(steps):
    """Make a graph from x to y out of "op inputs -> output"; `round a -> b` stands for the two rounding nodes."""
    nodes = []
    for step in steps:
        left, output = step.split(" -> ")
        op, *inputs = left.split()
        if op == "round":
            nodes.append(helper.make_node("QuantizeLinear", [*inputs, "s", "z"], [f"{output}_levels"]))
            op, inputs = "DequantizeLinear", [f"{output}_levels", "s", "z"]
        settings = {"axis": 1} if inputs[0] == "w" else {}
        nodes.append(helper.make_node(op, inputs, [output], name=output, **settings))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    taken = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items() if k in taken]
    return helper.make_graph(nodes, "made", ends[:1], ends[1:], constants)


WEIGHTS = "DequantizeLinear w ws wz -> k"
RIGHT = {
    "addition": ["round x -> a", "Add a a -> b", "Relu b -> c", "round c -> y"],
    "matrix": ["round x -> a", WEIGHTS, "MatMul a k -> b", "Add b row -> c", "Relu c -> d", "round d -> y"],
    "silu": ["round x -> a", "Sigmoid a -> b", "Mul a b -> c", "round c -> y"],
    "row": ["round x -> a", "Mul a row -> c", "round c -> y"],
    "number": ["round x -> a", "Mul a two -> c", "round c -> y"],
    "moved": ["round x -> a", "Identity a -> b", "Tanh b -> c", "round c -> d", "Identity d -> y"],
    "part": ["round x -> a", "Split a -> b", "Tanh b -> c", "round c -> y"],
}
WRONG = {
    "b: Add takes an input that is not rounded": ["round x -> a", "Add a x -> b", "round b -> y"],
    "b: Mul takes an input that is not rounded": ["round x -> a", "Mul a x -> b", "round b -> y"],
    "b: Sigmoid takes an input that is not rounded": ["Sigmoid x -> b", "round b -> y"],
    "b: Relu takes an input that is not rounded": ["Relu x -> b", "round b -> y"],
    "c: Softmax takes an input that is not rounded": ["round x -> a", "Tanh a -> b", "Softmax b -> c", "round c -> y"],
    "c: Sub takes an input that is not rounded": [
        "round x -> a",
        WEIGHTS,
        "MatMul a k -> b",
        "Sub a b -> c",
        "round c -> y",
    ],
    "b: MatMul has float weights": ["round x -> a", "MatMul a floats -> b", "round b -> y"],
    "y: the output is not rounded": ["round x -> a", "Tanh a -> y"],
}


@pytest.mark.parametrize("steps", RIGHT.values(), ids=list(RIGHT))
def test_rounded_operations_pass(steps):
    assert list(float_operations(graph_of(steps), {})) == []


@pytest.mark.parametrize(("fault", "steps"), WRONG.items(), ids=list(WRONG))
def test_a_float_operation_is_named(fault, steps, tmp_path):
    graph = graph_of(steps)
    (found,) = float_operations(graph, {})
    assert (found.scope, found.what) == tuple(fault.split(": "))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, str(tmp_path / "m.onnx"))
    inspection = inspect(tmp_path / "m.onnx")
    assert (inspection.precision, inspection.faults, inspection.floats) == ("int8", (), (found,))
