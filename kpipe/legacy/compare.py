"""Hold a converted model against what the old one gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.legacy.keras2.arrays import plain_array, thinned
from kpipe.legacy.keras2.graph import forget_states
from kpipe.legacy.precision import tolerances
from kpipe.legacy.rebuild import Rebuild, filled, paired


def check_equal(model: keras.Model, making: Rebuild, tolerance: float) -> list[str]:
    """Run a converted model on the inputs that the old one ran on; it must give the same, and so must every layer.

    The difference allowed of the model's outputs is `tolerance` · max(1, the largest absolute value of the old output),
    and ten times as much of those of a layer, for rounding grows and shrinks again on its way. From the first layer on
    that computes in half precision more is allowed, see `tolerances`. So that a layer of tiny outputs does not pass
    whatever it does, it is allowed at most a hundredth of the largest of them, or a millionth of the largest value that
    it was called on, as subtraction leaves no more. What a mask of the old model hides is not held against it; what is
    made of it further on is.

    Args:
        model: The converted model.
        making: What it was made with.
        tolerance: The largest difference allowed of outputs up to 1.

    Returns:
        What the user is to know: that hidden parts of the outputs differ, if they do.

    Raises:
        KpipeError: With the first layer that differs.
    """
    graph, probe = making.reading.graph, making.reading.probe
    allowed, allowed_outputs = tolerances(making, tolerance)
    truth = _Truth(probe)

    def watch(place: str, layer: str, inputs: list[Any], outputs: list[Any]) -> None:
        noise = 1e-6 * max([0.0, *(largest(plain_array(one)) for one in inputs if keras.ops.is_tensor(one))])
        for number, output in enumerate(outputs):
            name = f"call:{place}:{number}"
            if name in probe and not isinstance(output, tuple):  # a tuple is a shape, known as numbers
                truth.check_layer(layer, name, thinned(plain_array(output)), noise, allowed[place])

    with keras.device("cpu:0"):
        tensors = {
            key: keras.ops.convert_to_tensor(probe[f"input:{key}"], dtype=spec["dtype"])
            for key, spec in graph["specs"].items()
        }
        forget_states(model)
        making.run(graph, tensors, watch)
        forget_states(model)
        outputs = model(filled(graph["inputs"], tensors), training=False)
        forget_states(model)
    got = [plain_array(output) for _, output in paired(graph["outputs"], outputs, model.name)]
    hidden = [truth.check_output(number, *one) for number, one in enumerate(zip(got, allowed_outputs, strict=True))]
    return [_NOTE.format(max(hidden))] if any(hidden) else []


_NOTE = (
    "where a mask hides steps, the outputs there differ from the old ones by up to {:.2g} (Keras 3 gives hidden steps "
    "other values); elsewhere they are equal"
)


@dataclass
class _Truth:
    """What the old model gave, and where a layer first differed from it by more than is allowed of outputs."""

    probe: Mapping[str, np.ndarray]
    first: str = ""

    def check_layer(self, layer: str, name: str, got: np.ndarray, noise: float, tolerance: float) -> None:
        """Compare an output of a layer, of which `noise` may be rounding alone.

        Raises:
            KpipeError: When it differs by ten times what is allowed of an output.
        """
        expected = self.probe[name]
        strict = min(tolerance * max(1.0, largest(expected)), max(noise, largest(expected) / 100))
        found, _ = self._found(name, got)
        if found > strict and not self.first:
            self.first = f"first at layer {layer}: {_numbers(found, strict, expected)}"
        if found > min(10 * strict, max(strict, largest(expected) / 100)):
            self._refuse(self.first)

    def check_output(self, number: int, got: np.ndarray, tolerance: float) -> float:
        """Compare an output of the model; give by how much it differs where a mask hides it, if that is too much.

        Raises:
            KpipeError: When it differs elsewhere, or there is nothing to compare.
        """
        expected = self.probe[f"output:{number}"]
        if expected.dtype.kind == "f" and not np.isfinite(expected).any():
            raise KpipeError(
                "The old model gives no finite number on these inputs; pass some that it is for: samples=."
            )
        allowed = tolerance * max(1.0, largest(expected))
        found, hidden = self._found(f"output:{number}", got)
        if found > allowed:
            numbers = _numbers(found, allowed, expected)
            self._refuse(self.first or f"at output {number}, though no layer alone does: {numbers}")
        return hidden if hidden > allowed else 0.0

    def _found(self, name: str, got: np.ndarray) -> tuple[float, float]:
        """Give the largest difference from an array, and the largest where a mask hides it."""
        expected, shown = self.probe[name], self.probe.get(f"mask:{name}")
        if shown is None or expected.shape != got.shape:
            return largest_difference(expected, got), 0.0
        return largest_difference(expected[shown], got[shown]), largest_difference(expected[~shown], got[~shown])

    def _refuse(self, where: str) -> NoReturn:
        raise KpipeError(
            f"The converted model differs from the old one, {where}. The layer's translation is at fault, or a class "
            "given for it does something else."
        )


def _numbers(found: float, allowed: float, expected: np.ndarray) -> str:
    return f"by {found:.3g}, allowed {allowed:.1g} (values up to {largest(expected):.3g})"


def largest(values: np.ndarray) -> float:
    """Give the largest finite absolute value; 0 for strings.

    Example:
        >>> largest(np.array([1.0, -3.0, np.inf])), largest(np.zeros(0))
        (3.0, 0.0)
    """
    if values.dtype.kind == "S":
        return 0.0
    return float(np.abs(values[np.isfinite(values)].astype(np.float64)).max(initial=0.0))


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
    if expected.dtype.kind == "S" or got.dtype.kind == "S":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    apart = ~((expected == got) | (np.isnan(expected) & np.isnan(got)))
    differences = np.abs(expected[apart] - got[apart])
    return float(np.nan_to_num(differences, nan=np.inf, posinf=np.inf).max(initial=0.0))
