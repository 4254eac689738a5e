"""Which axes of a kernel are summed over and which are produced; every kernel brought into one order of axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kpipe.errors import KpipeError


@dataclass(frozen=True)
class Layout:
    """Say what the axes of a kernel are; all that are not named are positions, such as those of a convolution's window.

    The default is that of most Keras kernels: (*positions, inputs, outputs).

    Args:
        inputs: The axes that the layer multiplies with its inputs and sums over; none for a depthwise kernel and for an
            embedding.
        outputs: The axes that become the channels of the output.

    Example:
        >>> transposed = Layout(inputs=(-1,), outputs=(-2,))
        >>> kernel = np.arange(12).reshape(2, 2, 3)
        >>> turned = transposed.turn(kernel)
        >>> turned.shape, bool((transposed.back(turned, kernel.shape) == kernel).all())
        ((2, 3, 2), True)
        >>> Layout(inputs=(1, 2), outputs=(0,)).turn(kernel).shape
        (6, 2)
    """

    inputs: tuple[int, ...] = (-2,)
    outputs: tuple[int, ...] = (-1,)

    def turn(self, values: np.ndarray) -> np.ndarray:
        """Give the values as (*positions, inputs, outputs): a view wherever a view can show them so.

        Args:
            values: Of the kernel's shape: the kernel, its scores or its mask.

        Returns:
            The same values; several axes of one kind lie flat, in the order in which `Layout` names them.
        """
        values = np.asarray(values)
        return np.transpose(values, self._order(values.ndim)).reshape(self.turned_shape(values.shape))

    def back(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Undo `turn`.

        Args:
            values: Of shape (*positions, inputs, outputs).
            shape: Of the kernel.

        Returns:
            The same values in the kernel's own order of axes.
        """
        order = self._order(len(shape))
        return np.reshape(values, [shape[axis] for axis in order]).transpose(np.argsort(order))

    def turned_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Give the shape of a turned kernel.

        Example:
            >>> Layout().turned_shape((3, 3, 8, 16)), Layout((), (-2, -1)).turned_shape((3, 3, 8, 1))
            ((3, 3, 8, 16), (3, 3, 1, 8))
        """
        sizes = [shape[axis] for axis in self._order(len(shape))]
        first = len(sizes) - len(self.inputs) - len(self.outputs)
        last = first + len(self.inputs)
        return (*sizes[:first], math.prod(sizes[first:last]), math.prod(sizes[last:]))

    def _order(self, rank: int) -> tuple[int, ...]:
        """Give the axes as (*positions, *inputs, *outputs)."""
        named = (*self.inputs, *self.outputs)
        axes = [axis % rank for axis in named if -rank <= axis < rank]
        if len(set(axes)) != len(named):
            raise KpipeError(
                f"{self} does not fit a kernel of {rank} axes; expected each axis once, from {-rank} to {rank - 1}. "
                "Give the layer its own with kpipe.layers.register_weights(..., layouts=...)."
            )
        return (*(axis for axis in range(rank) if axis not in axes), *axes)


NATURAL = Layout()
"""Of Dense, Conv and recurrent kernels: (*positions, inputs, outputs)."""

DEPTHWISE = Layout(inputs=(), outputs=(-2, -1))
"""Of depthwise kernels (*positions, channels, multiplier): nothing is summed over but the window."""

LOOKED_UP = Layout(inputs=(), outputs=(-1,))
"""Of embeddings (tokens, channels): a token takes one row, and neighbouring rows have nothing to do with each other."""

_BY_ROLE = {"depthwise_kernel": DEPTHWISE, "embedding": LOOKED_UP}


def layout_for(role: str, rank: int) -> Layout:
    """Give the layout that goes without saying; the entries of a vector are outputs.

    Example:
        >>> layout_for("kernel", 4).turned_shape((3, 3, 8, 16)), layout_for("embedding", 2).turned_shape((1000, 64))
        ((3, 3, 8, 16), (1000, 1, 64))
    """
    return Layout((), (-1,) * rank) if rank < 2 else _BY_ROLE.get(role, NATURAL)
