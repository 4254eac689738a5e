"""Transposes that compute nothing go, others stay, and the graph computes the same."""

from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers as L

import kpipe
from kpipe.export.onnx.transposes import transposes, without_dead_transposes
from tests.models import build, samples


def graph_of(*nodes: Any, shape: tuple[int, ...]) -> Any:
    value = onnx.helper.make_tensor_value_info
    ends = ([value("x", onnx.TensorProto.FLOAT, shape)], [value("y", onnx.TensorProto.FLOAT, None)])
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", *ends), opset_imports=[opset], ir_version=8)


def answer(proto: Any, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_a_pair_that_undoes_itself_goes_and_one_that_is_needed_stays():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    there = onnx.helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2])
    back = onnx.helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1])
    pair = graph_of(there, onnx.helper.make_node("Relu", ["a"], ["b"]), back, shape=x.shape)
    shorter = without_dead_transposes(pair)
    assert (transposes(pair), transposes(shorter)) == (2, 0)
    np.testing.assert_array_equal(answer(shorter, x), np.maximum(x, 0))
    assert [(one.domain, one.version) for one in shorter.opset_import] == [("", 18)]
    lone = graph_of(onnx.helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2]), shape=x.shape)
    assert without_dead_transposes(lone) is lone
    none = graph_of(onnx.helper.make_node("Relu", ["x"], ["y"]), shape=x.shape)
    assert without_dead_transposes(none) is none


@pytest.mark.parametrize(("name", "most"), [("residual", 1), ("depthwise", 1), ("se_block", 2), ("conv_bn", 2)])
def test_files_keep_the_transposes_that_move_something(name, most, tmp_path):
    """One lays what comes in channels first; pooling needs none behind it, Flatten one before.

    tf2onnx goes through a graph in the order of a set: in some processes a gate keeps one, too.
    """
    model = build(name)
    file = kpipe.export(model, tmp_path / "m.onnx")
    proto = onnx.load(str(file.path))
    assert 1 <= transposes(proto) <= most
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    x = samples(model, 3)[0]
    found = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    np.testing.assert_allclose(found, np.asarray(model(x)), atol=1e-5)


def test_a_batch_norm_beside_a_depthwise_convolution_is_folded(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), L.DepthwiseConv2D(3), L.BatchNormalization(), L.GlobalAveragePooling2D()]
    )
    kinds = [node.op_type for node in onnx.load(str(kpipe.export(model, tmp_path / "m.onnx").path)).graph.node]
    assert "Conv" in kinds and not {"Mul", "Add", "BatchNormalization"} & set(kinds)
