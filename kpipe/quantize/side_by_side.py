"""A quantized model run in float and rounded at once, layer by layer, so that each can be mended before the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.fake_quant import ROUNDING, QuantizedWeights
from kpipe.graph import Flow, Site, evaluate, sites

MOST_BYTES = 2**28
"""Of the largest tensor of one of the two runs: more samples than fit are left out."""


@dataclass(frozen=True)
class Pair:
    """Hold the value of one tensor in both runs."""

    exact: Any
    rounded: Any


Visit = Callable[[Flow, Site, Pair], None]
"""(the calls, one of a layer with rounded weights, what goes in) -> change the layer, in place."""


def side_by_side(model: keras.Model, inputs: Sequence[np.ndarray], visit: Visit) -> list[Pair]:
    """Run samples through a quantized model, once in float with the weights as they are now, and once rounded.

    Args:
        model: A model with calibrated ranges; what `visit` changes is changed in it.
        inputs: One array for each input, (samples, ...); as many are taken as the memory allows.
        visit: Called at the first call of each layer with rounded weights, before it answers: the rounded run goes on
            with what it has made of the layer, the exact one with the layer as it was.

    Returns:
        The outputs of both.
    """
    flow = sites(model)
    before = [(variable, keras.ops.copy(variable.value)) for variable in model.variables]

    def call(site: Site, *args: Any, **kwargs: Any) -> list[Pair]:
        exact, rounded = (_chosen(which, (args, kwargs)) for which in ("exact", "rounded"))
        if isinstance(site.operation, QuantizedWeights) and site.call == 0:
            visit(flow, site, Pair(exact[0][0], rounded[0][0]))
        with keras.StatelessScope(state_mapping=before):
            left = in_float(site.operation, *exact[0], **exact[1])
        right = _called(site.operation, *rounded[0], **rounded[1])
        return [Pair(*both) for both in zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True)]

    count = affordable(flow, len(inputs[0]))
    tensors = [keras.ops.convert_to_tensor(array[:count]) for array in inputs]
    return evaluate(flow, [Pair(tensor, tensor) for tensor in tensors], call)


def affordable(flow: Flow, samples: int, most_bytes: int = MOST_BYTES) -> int:
    """Say how many samples run at once with no tensor larger than so many bytes.

    Example:
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(16, 3, padding="same")])
        >>> affordable(sites(net), 100, most_bytes=10 * 8 * 8 * 16 * 4)
        10
    """
    shapes = [shape[1:] for site in flow.sites for shape in site.output_shapes]
    largest = max(int(np.prod([size or 1 for size in shape])) for shape in shapes)
    return max(1, min(samples, most_bytes // (4 * largest)))


def _chosen(which: str, structure: Any) -> Any:
    return keras.tree.map_structure(lambda one: getattr(one, which) if isinstance(one, Pair) else one, structure)


def _called(operation: Any, *args: Any, **kwargs: Any) -> Any:
    told = {"training": False} if getattr(operation, "_call_has_training_arg", False) else {}
    return operation(*args, **{**kwargs, **told})


def in_float(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what an operation of a quantized model rounds, without the rounding."""
    if isinstance(operation, ROUNDING):
        return args[0]
    return _called(operation.layer if isinstance(operation, QuantizedWeights) else operation, *args, **kwargs)
