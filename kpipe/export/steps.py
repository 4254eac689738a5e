"""Differences counted in steps of the grid on which whole numbers lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kpipe.fake_quant import FakeQuant
from kpipe.layers import quantization_of
from kpipe.quantize.rewrite import FIXED_RANGES

FEWEST_STEPS = 12
"""Steps from one end of a function's values to the other, be the grid before it as coarse as it may: a wrong file must
have room to be more than six off."""


@dataclass(frozen=True)
class Squashing:
    """Describe the softmax, sigmoid or tanh that makes an output of a quantized model.

    Args:
        low: The lower end of its values, 0 or -1; the upper is 1.
        grid: Step of their grid.
        step: Step of the grid of what goes into it.
    """

    low: float
    grid: float
    step: float

    def undone(self, values: np.ndarray) -> np.ndarray:
        """Give what went in: for a softmax, by how much each logit outweighs all others.

        The ends of the grid stand for all that lies beyond them.

        Example:
            >>> found = Squashing(0.0, 1 / 256, 0.1).undone(1 / (1 + np.exp(-np.array([-1.5, 0.25, 90.0]))))
            >>> found.round(2)
            array([-1.5 ,  0.25,  6.24])
            >>> Squashing(-1.0, 1 / 128, 0.1).undone(np.tanh(np.array([-1.5, 0.25])))
            array([-1.5 ,  0.25])
        """
        span = 1.0 - self.low
        share = (np.clip(values, self.low + self.grid / 2, 1.0 - self.grid / 2) - self.low) / span
        return (np.log(share) - np.log1p(-share)) / span

    def steps(self, answer: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Give |a - b| in steps of the grid before the function; infinite where a is none of its values."""
        ends = self.undone(np.array([self.low, 1.0]))
        step = min(self.step, float(ends[1] - ends[0]) / FEWEST_STEPS)
        possible = (self.low <= answer) & (answer <= 1.0)
        return np.where(possible, np.abs(self.undone(answer) - self.undone(reference)) / step, np.inf)


def squashing_of(output: Any, scale: float) -> Squashing | None:
    """Find the softmax, sigmoid or tanh that makes an output from whole numbers, perhaps moved behind it.

    Args:
        output: One of a quantized model's `outputs`.
        scale: Step of the grid of the file's output.

    Returns:
        The function; None where there is no such, or the file's output lies on another grid than the function's.

    Example:
        >>> import keras
        >>> before, after = FakeQuant(), FakeQuant(fixed=(0, 255 / 256))
        >>> before.set_range(-10, 15.5)
        >>> net = keras.Sequential([keras.Input((3,)), before, keras.layers.Softmax(), after, keras.layers.Flatten()])
        >>> squashing_of(net.outputs[0], 1 / 256)
        Squashing(low=0.0, grid=0.00390625, step=0.1)
        >>> squashing_of(net.outputs[0], 0.2), squashing_of(net.inputs[0], 1 / 256)
        (None, None)
    """
    rounded, squashed = _made(output)
    if not isinstance(rounded, FakeQuant) or rounded.fixed is None or rounded.fixed not in FIXED_RANGES.values():
        return None
    _, inputs = _made(squashed[0])
    before, _ = _made(inputs[0]) if inputs else (None, [])
    grid = _step(rounded)
    if not isinstance(before, FakeQuant) or not np.isclose(grid, scale, rtol=1e-3):
        return None
    return Squashing(rounded.fixed[0], grid, _step(before))


def _made(tensor: Any) -> tuple[Any, Any]:
    """Give what makes a tensor, and of what; layers that only move values are passed by."""
    operation, node, _ = tensor._keras_history
    inputs = operation._inbound_nodes[node].input_tensors
    return _made(inputs[0]) if inputs and quantization_of(operation) == "same" else (operation, inputs)


def _step(rounding: FakeQuant) -> float:
    low, high = rounding.grid()
    return (high - low) / (2**rounding.bits - 1)


def steps_apart(
    answer: np.ndarray, reference: np.ndarray, scale: float, squashing: Squashing | None = None
) -> np.ndarray:
    """Give |a - b| in steps of the output's grid, or of the grid before its function, whichever are fewer.

    Logits one step apart, as roundings leave them, may be many fine steps of a softmax apart: at p = 1/2, with logits
    in steps of 0.1, six of 1/256.

    Args:
        answer: a, of any shape.
        reference: b, of the same shape.
        scale: Step of the output's grid.
        squashing: The function that makes the output.

    Example:
        >>> steps_apart(np.array([1.0]), np.array([0.5]), 0.25)
        array([2.])
        >>> steps_apart(np.array([0.525]), np.array([0.5]), 1 / 256, Squashing(0.0, 1 / 256, 0.1)).round(2)
        array([1.])
    """
    answer, reference = answer.astype(np.float64), reference.astype(np.float64)
    steps = np.abs(answer - reference) / scale
    return steps if squashing is None else np.minimum(steps, squashing.steps(answer, reference))
