"""How a model's inputs are scaled: by its own first layers, as its preprocessing says."""

from typing import Any

import keras
import numpy as np

from kpipe.export.signature import input_names
from kpipe.fake_quant import RESCALING, ROUNDING
from kpipe.layers.preprocessing import scale_and_offset

MOST = 1024
"""Numbers of a scale or an offset that are written out; of more, only their shape is."""


def normalisations(model: keras.Model) -> list[dict[str, Any]]:
    """Give the scaling that a model's own first layers do, input by input: x · scale + offset.

    Rescaling and Normalization layers that alone follow an input are put together into one such line.

    Args:
        model: A model with fixed inputs.

    Returns:
        {"input", "by", "scale", "offset"} for each input that is scaled; "by" is "file", as the file does it itself.

    Example:
        >>> x = keras.Input((2,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Rescaling(0.5, -1.0)(x)))
        >>> normalisations(model)
        [{'input': 'x', 'by': 'file', 'scale': 0.5, 'offset': -1.0}]
    """
    found = []
    for name, tensor in zip(input_names(model), model.inputs, strict=True):
        scale, offset, scaled = np.ones(()), np.zeros(()), False
        layer, after = _alone_behind(model, tensor)
        while isinstance(layer, (*ROUNDING, *RESCALING)):
            if not isinstance(layer, ROUNDING):
                own_scale, own_offset = scale_and_offset(layer)
                scale, offset, scaled = scale * own_scale, offset * own_scale + own_offset, True
            layer, after = _alone_behind(model, after)
        if scaled:
            found.append({"input": name, "by": "file", "scale": _written(scale), "offset": _written(offset)})
    return found


def _alone_behind(model: keras.Model, tensor: Any) -> tuple[Any, Any]:
    """Give the only operation that takes a tensor, and what it makes of it; None where there are several or none."""
    graph: Any = model._functional if isinstance(model, keras.Sequential) else model
    nodes = [
        node
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
        if any(one is tensor for one in node.input_tensors)
    ]
    if len(nodes) != 1 or len(nodes[0].outputs) != 1:
        return None, None
    return nodes[0].operation, nodes[0].outputs[0]


def _written(value: np.ndarray) -> Any:
    return np.asarray(value, np.float32).tolist() if value.size <= MOST else {"shape": list(value.shape)}
