"""Differences counted in steps of the grid on which whole numbers lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kpipe.fake_quant import FakeQuant
from kpipe.layers import quantization_of


@dataclass(frozen=True)
class Squashing:
    """Describe the softmax, sigmoid or tanh that makes an output.

    Args:
        low: The lower end of its values, 0 or -1; the upper is 1.
        step: Of the grid of what goes into it.
    """

    low: float
    step: float

    def undone(self, values: np.ndarray, scale: float) -> np.ndarray:
        """Give what went in: for a softmax, by how much each logit outweighs all others.

        Args:
            values: Of the output.
            scale: Step of their grid, the ends of which stand for all that lies beyond them.

        Example:
            >>> Squashing(0.0, 0.1).undone(1 / (1 + np.exp(-np.array([-1.5, 0.25]))), 1e-6)
            array([-1.5 ,  0.25])
            >>> Squashing(-1.0, 0.1).undone(np.tanh(np.array([-1.5, 0.25])), 1e-6)
            array([-1.5 ,  0.25])
        """
        span = 1.0 - self.low
        share = (np.clip(values, self.low + scale / 2, 1.0 - scale / 2) - self.low) / span
        return (np.log(share) - np.log1p(-share)) / span


def squashing_of(output: Any) -> Squashing | None:
    """Find the softmax, sigmoid or tanh that makes an output of a quantized model from whole numbers; None without one.

    Args:
        output: One of `model.outputs`.
    """
    rounded, node, _ = output._keras_history
    if not isinstance(rounded, FakeQuant) or rounded.fixed is None:
        return None
    before, node = _maker(rounded, node)
    while True:
        before, node = _maker(before, node)
        if isinstance(before, FakeQuant):
            low, high = before.range()
            return Squashing(rounded.fixed[0], (high - low) / (2**before.bits - 1))
        if quantization_of(before) != "same":
            return None


def _maker(operation: Any, node: int) -> tuple[Any, int]:
    """Give what makes the first input of a call, and which of its calls."""
    operation, node, _ = operation._inbound_nodes[node].input_tensors[0]._keras_history
    return operation, node


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
        >>> steps_apart(np.array([0.525]), np.array([0.5]), 1 / 256, Squashing(low=0.0, step=0.1)).round(2)
        array([1.])
    """
    answer, reference = answer.astype(np.float64), reference.astype(np.float64)
    steps = np.abs(answer - reference) / scale
    if squashing is None:
        return steps
    before = np.abs(squashing.undone(answer, scale) - squashing.undone(reference, scale))
    return np.minimum(steps, before / squashing.step)
