"""Hold a converted model against what the old one gave."""

from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.legacy.keras2.thin import thinned
from kpipe.legacy.rebuild import Rebuild, filled, paired

HALF = {"float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
"""What is allowed where a layer computes in half precision: four units in the last place of 1."""


def check_equal(model: keras.Model, making: Rebuild, tolerance: float) -> None:
    """Run a converted model on the inputs that the old one ran on; the outputs of every layer must be the same.

    The difference allowed is `tolerance` · max(1, the largest absolute value of the old output). In a model with
    layers that compute in half precision it is `HALF` instead of `tolerance` where that is more.

    Args:
        model: The converted model.
        making: What it was made with.
        tolerance: The largest difference allowed of outputs up to 1.

    Raises:
        KpipeError: With the first layer that differs.
    """
    reading = making.reading
    kinds = {layer.compute_dtype for layer in model._flatten_layers()}
    allowed = max([tolerance, *(HALF[kind] for kind in kinds & HALF.keys())])

    def watch(place: str, layer: str, outputs: list[Any]) -> None:
        for number, output in enumerate(outputs):
            expected = reading.probe.get(f"call:{place}:{number}")
            if expected is not None and not isinstance(output, tuple):  # a tuple is a shape, known as numbers
                _check(f"first at layer {layer}", expected, thinned(_array(output)), allowed)

    with keras.device("cpu:0"):
        tensors = {
            key: keras.ops.convert_to_tensor(reading.probe[f"input:{key}"], dtype=spec["dtype"])
            for key, spec in reading.graph["specs"].items()
        }
        forget_states(model)
        making.run(reading.graph, tensors, watch)
        forget_states(model)
        outputs = model(filled(reading.graph["inputs"], tensors), training=False)
        forget_states(model)
    for number, (_, output) in enumerate(paired(reading.graph["outputs"], outputs, model.name)):
        expected = reading.probe[f"output:{number}"]
        if expected.dtype.kind == "f" and not np.isfinite(expected).any():
            raise KpipeError(
                "The old model gives no finite number on random inputs; pass inputs that it is for: samples=."
            )
        _check(f"at output {number}, though no layer alone does", expected, _array(output), allowed)


def forget_states(model: keras.Model) -> None:
    """Set the states of stateful layers to zero."""
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and callable(getattr(layer, "reset_states", None)):
            layer.reset_states()


def largest_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Give the largest absolute difference; infinite where only one is finite, or the shapes differ.

    Example:
        >>> largest_difference(np.array([1.0, np.nan, np.inf]), np.array([1.5, np.nan, np.inf]))
        0.5
        >>> largest_difference(np.zeros(3), np.array([0.0, np.nan, 0.0])), largest_difference(np.zeros(3), np.zeros(2))
        (inf, inf)
    """
    if expected.shape != got.shape:
        return float("inf")
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    apart = ~((expected == got) | (np.isnan(expected) & np.isnan(got)))
    differences = np.abs(expected[apart] - got[apart])
    return float(np.nan_to_num(differences, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _check(where: str, expected: np.ndarray, got: np.ndarray, tolerance: float) -> None:
    finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    scale = max(1.0, float(finite.max(initial=0.0)))
    found = largest_difference(expected, got)
    if found > tolerance * scale:
        raise KpipeError(
            f"The converted model differs from the old one, {where}: by {found:.3g}, allowed {tolerance * scale:.1g} "
            f"(values up to {scale:.3g}). The layer's translation is at fault, or a class given for it computes "
            "something else."
        )


def _array(tensor: Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
