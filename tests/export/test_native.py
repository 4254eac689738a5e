"""onnxruntime on whole numbers, against the same sums in NumPy."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import kpipe
from kpipe.export import native
from kpipe.export.onnx.shared import separate

RNG = np.random.default_rng(0)
WEIGHT = RNG.choice(np.array([-127, 127], np.int8), (64, 8))
"""As far from 0 as can be: two products of these with great inputs overflow 16 bits."""


def rounded_product(calls):
    """Write x · W of a rounded x and whole weights, as often as asked with the same weights."""
    nodes, outputs = [], []
    scales = {"s": np.float32(1), "zx": np.uint8(0), "sw": np.float32(1), "zw": np.int8(0), "so": np.float32(8000)}
    constants = {**scales, "zo": np.uint8(128), "w": WEIGHT}
    nodes.append(helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], name="unpack"))
    for n in range(calls):
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{n}", "s", "zx"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "s", "zx"], [f"d{n}"]),
            helper.make_node("MatMul", [f"d{n}", "wf"], [f"m{n}"]),
            helper.make_node("QuantizeLinear", [f"m{n}", "so", "zo"], [f"o{n}"]),
            helper.make_node("DequantizeLinear", [f"o{n}", "so", "zo"], [f"y{n}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [1, 8]))
    inputs = [helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, [1, 64]) for n in range(calls)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("calls", [1, 2])
def test_sums_of_whole_products_do_not_overflow(calls, tmp_path):
    path, proto = tmp_path / "m.onnx", rounded_product(calls)
    separate(proto.graph)
    onnx.save(proto, path)
    x = [RNG.integers(200, 256, (1, 64)) for _ in range(calls)]
    found = native.onnx_session(path).run(None, {f"x{n}": each.astype("float32") for n, each in enumerate(x)})
    for each, answer in zip(x, found, strict=True):
        expected = each @ WEIGHT.astype(int)
        assert np.abs(expected).max() > 2**15  # the control: this does not go into 16 bits
        np.testing.assert_allclose(answer, expected, atol=8000 / 2 + 1)


def test_separated_weights_compute_the_same(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(rounded_product(3), path)
    proto = onnx.load(str(path))
    separate(proto.graph)
    graph, content = proto.graph, proto.SerializeToString()
    onnx.checker.check_model(proto)
    assert sum(tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2 for tensor in graph.initializer) == 3
    takers = [name for node in graph.node if node.op_type == "MatMul" for name in node.input[1:]]
    assert len(set(takers)) == 3
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {f"x{n}": RNG.integers(0, 256, (1, 64)).astype("float32") for n in range(3)}
    before, after = (
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feed)
        for model in (str(path), content)
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_of_shared_layers_load_as_they_are_where_sums_must_be_exact(tmp_path):
    one, other, layer = keras.Input((16,)), keras.Input((16,)), keras.layers.Dense(8)
    model = keras.Model([one, other], keras.layers.Add()([layer(one), layer(other)]))
    x = RNG.normal(size=(64, 16)).astype("float32")
    path = kpipe.export(kpipe.quantize(model, calibration=[x, x]), tmp_path / "m.onnx").path
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(native.EXACT_ON_OLD_PROCESSORS, "1")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    onnx.save(rounded_product(2), tmp_path / "shared.onnx")
    with pytest.raises(Exception, match=native.SHARED_WEIGHTS):  # the control
        onnxruntime.InferenceSession(str(tmp_path / "shared.onnx"), options, providers=["CPUExecutionProvider"])
    assert len(native.onnx_session(tmp_path / "shared.onnx").get_inputs()) == 2
