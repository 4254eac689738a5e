"""Nodes of ONNX graphs put behind those whose outputs they take."""

import onnx
import pytest
from onnx import TensorProto, helper

from kpipe.export.onnx.weights import into_order


def graph_of_a_choice():
    """Make y = -|x| or -|x| again, chosen inside a node whose branches take |x| from outside; its maker stands last."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y", "a", "b")]
    choice = helper.make_tensor_value_info("choice", TensorProto.BOOL, [])
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node("Neg", ["size"], [out])], name, [], [end])
        for name, out, end in (("then", "a", ends[2]), ("else", "b", ends[3]))
    }
    nodes = [helper.make_node("If", ["choice"], ["y"], **branches), helper.make_node("Abs", ["x"], ["size"])]
    graph = helper.make_graph(nodes, "choice", [ends[0], choice], [ends[1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_what_graphs_inside_a_node_take_from_outside_comes_before_it():
    model = graph_of_a_choice()
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(model)
    into_order(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Abs", "If"]
    onnx.checker.check_model(model, full_check=True)
