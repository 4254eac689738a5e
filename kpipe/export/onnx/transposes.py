"""Transposes that an ONNX graph does not need, taken out by onnxruntime's own optimizer."""

import tempfile
from pathlib import Path
from typing import Any


def without_dead_transposes(proto: Any) -> Any:
    """Let onnxruntime write a float graph anew, and keep what it gives where that has fewer transposes.

    Keras lays channels last, ONNX first: tf2onnx puts a Transpose before the first convolution and behind the last one.
    Where that only moves axes of size 1, as behind a pooling of all positions, it computes nothing. onnxruntime's basic
    optimizations take it out, and fold batch norms that tf2onnx leaves beside depthwise and grouped convolutions; they
    use operators of ONNX alone and depend on no processor. onnxruntime does the same whenever it loads a file, so there
    it is no faster; other runtimes get the shorter graph.

    Args:
        proto: A graph in float; a rounded one would lose the grids of its weights.

    Returns:
        The new graph, or the given one where that has no fewer transposes, or the new one is not ONNX alone.
    """
    import onnx
    import onnxruntime

    before = transposes(proto)
    if not before:
        return proto
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "shorter.onnx"
        options.optimized_model_filepath = str(place)
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = onnx.load(str(place))
    if transposes(found) >= before or any(node.domain not in ("", "ai.onnx") for node in found.graph.node):
        return proto
    del found.opset_import[:]
    found.opset_import.extend(proto.opset_import)
    found.ir_version, found.producer_name = proto.ir_version, proto.producer_name
    found.producer_version = proto.producer_version
    return found


def transposes(proto: Any) -> int:
    """Count the Transpose operations of a graph."""
    return sum(node.op_type == "Transpose" for node in proto.graph.node)
