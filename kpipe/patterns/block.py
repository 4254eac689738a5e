"""Rectangles of weights that go together: what vector units read."""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.pattern import PATTERNS, Pattern, Rescale, sums_over

POOLINGS = ("avg", "max")


@PATTERNS("block:RxC", example="block:4x1")
@dataclass(frozen=True)
class Block(Pattern):
    """Drop blocks of R inputs by C outputs, such as block:4x1, at each position of a window; also block:4x1:max.

    Blocks lie side by side from the first input and output on; those at the far edges hold what is left. Counts are
    counts of blocks.

    Args:
        rows: Inputs of a block.
        columns: Outputs of a block.
        pooling: The score of a block: "avg", the mean of its entries, or "max". What was dropped before counts as
            nothing.

    Example:
        >>> Block(2, 2)(np.array([[9.0, 0.0, 1.0], [0.0, 0.0, 1.0], [3.0, 3.0, 2.0]]), 0.5).astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [1, 1, 0]])
        >>> str(Block(4, 1, "max")), Block.parse("block:4x1:avg")
        ('block:4x1:max', Block(rows=4, columns=1, pooling='avg'))

    References:
        Narang et al., Block-Sparse Recurrent Neural Networks (2017), https://arxiv.org/abs/1711.02782
    """

    rows: int
    columns: int
    pooling: str = "avg"

    def __post_init__(self) -> None:
        whole = all(isinstance(part, int) and not isinstance(part, bool) for part in (self.rows, self.columns))
        if not whole or min(self.rows, self.columns) < 1:
            raise KpipeError(
                f"The block is {self.rows!r} by {self.columns!r}; expected whole numbers of inputs and outputs from 1 "
                "on, as in block:4x1."
            )
        if self.pooling not in POOLINGS:
            raise KpipeError(f"pooling is {self.pooling!r}; expected 'avg' or 'max'.")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "block:4x1", "block:4x1:max" and the like."""
        name, *rest = text.split(":")
        if name != "block":
            return None
        found = re.fullmatch(r"(\d+)x(\d+)", rest[0]) if len(rest) in (1, 2) else None
        if found is None:
            raise KpipeError(f"The pattern is {text!r}; expected a form such as 'block:4x1' or 'block:4x1:max'.")
        return cls(int(found[1]), int(found[2]), *rest[1:])

    def pool(self, scores: np.ndarray, rescale: Rescale | None = None) -> np.ndarray:
        """Give the mean or the maximum of each block."""
        if scores.dtype.kind != "f" or scores.dtype.itemsize < 4:
            scores = scores.astype("float32")
        units = self._reduce(np.maximum, scores)
        if self.pooling == "avg":
            gone = units == -np.inf
            live = np.where(scores == -np.inf, 0, scores) if np.min(scores, initial=0) == -np.inf else scores
            units = self._reduce(np.add, live)
            units /= self.sizes(scores.shape)
            units[gone] = -np.inf
        return units if rescale is None else rescale(units)

    def _reduce(self, function: np.ufunc, scores: np.ndarray) -> np.ndarray:
        """Reduce the entries of each block, its first with its second and so on: one step for all blocks."""
        rows = scores[..., :: self.rows, :].copy()
        for first in range(1, min(self.rows, scores.shape[-2])):
            others = scores[..., first :: self.rows, :]  # the block at the edge may have none
            part = rows[..., : others.shape[-2], :]
            function(part, others, out=part)
        found = rows[..., :: self.columns].copy() if self.columns > 1 else rows
        for first in range(1, min(self.columns, scores.shape[-1])):
            others = rows[..., first :: self.columns]
            part = found[..., : others.shape[-1]]
            function(part, others, out=part)
        return found

    def spread(self, keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Repeat each block's answer over its entries."""
        inputs, outputs = shape[-2:]
        return keep.repeat(self.rows, -2)[..., :inputs, :].repeat(self.columns, -1)[..., :outputs]

    def sizes(self, shape: tuple[int, ...]) -> np.ndarray:
        """Count the entries of each block: fewer at the far edges."""
        inputs, outputs = (
            np.diff(np.r_[np.arange(0, size, step), size])
            for size, step in ((shape[-2], self.rows), (shape[-1], self.columns))
        )
        even = inputs[0] == inputs[-1] and outputs[0] == outputs[-1]
        sizes = inputs[0] * outputs[0] if even else np.outer(inputs, outputs)  # all the same: no memory an entry
        return np.broadcast_to(sizes, (*shape[:-2], len(inputs), len(outputs)))

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        """Refuse a weight without two axes, and one that sums over a single input when blocks have several."""
        if len(shape) < 2:
            return f"the pattern '{self}' goes over inputs and outputs, and this weight has {len(shape)} axis"
        if self.rows > 1 and shape[-2] == 1:
            return f"the pattern '{self}' takes {self.rows} inputs together, and {sums_over(shape)}"
        return None

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}" + ("" if self.pooling == "avg" else f":{self.pooling}")
