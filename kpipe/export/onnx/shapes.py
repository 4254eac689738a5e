"""Shapes in an ONNX graph that are known when it is written."""

from typing import Any

import numpy as np


def known_reshapes(proto: Any) -> None:
    """Give each Reshape whose result is known but for the batch a constant target, in place.

    Keras asks for the batch size when it flattens, so tf2onnx writes operations that compute the target anew at each
    run. What computed it may be left behind without a taker.

    Args:
        proto: An ONNX ModelProto; it is changed.
    """
    from onnx import numpy_helper, shape_inference

    graph = proto.graph
    shapes = {}
    for value in (*shape_inference.infer_shapes(proto, data_prop=True).graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
    constants = {tensor.name for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        shape = shapes.get(node.output[0], [])
        if (
            node.op_type == "Reshape"
            and node.input[1] not in constants
            and shape[:1] == [-1]
            and min(shape[1:], default=1) > 0
        ):
            node.input[1] = f"known_shape_{number}"
            graph.initializer.append(numpy_helper.from_array(np.asarray(shape, np.int64), node.input[1]))
