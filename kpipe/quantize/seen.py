"""What a tensor was seen to hold: its ends, batch by batch, and how often which values, in bounded memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 16
"""Bits of a float32 number that name its bin: sign, exponent and 7 bits of the fraction, so bins are 2⁻⁷ wide in
relation to their values, wherever these lie and whatever comes later."""
POINTS = 4
"""Places in each bin, evenly apart, that stand for its values."""


@dataclass(frozen=True)
class Seen:
    """Hold what was seen of a tensor.

    Args:
        ends: Least and greatest value of each batch in order, (batches, 2).
        counts: How many values fell into each bin, (2 ** KEPT,); None where only the ends are kept.
    """

    ends: np.ndarray
    counts: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, *batches: Any) -> "Seen":
        """Look at some batches.

        Example:
            >>> seen = Seen.of([1.0, -2.0], [0.5])
            >>> seen.low, seen.high, seen.ends.tolist()
            (-2.0, 1.0, [[-2.0, 1.0], [0.5, 0.5]])
        """
        recorder = Recorder(values=True)
        for batch in batches:
            recorder.add(np.asarray(batch))
        return recorder.seen()

    @property
    def low(self) -> float:
        """The least value."""
        return float(self.ends[:, 0].min())

    @property
    def high(self) -> float:
        """The greatest value."""
        return float(self.ends[:, 1].max())

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Give values in ascending order that stand for those seen, and how many each stands for.

        Each is within 2⁻⁷ of those it stands for, and within the ends.

        Example:
            >>> values, counts = Seen.of([1.5, 1.5, -3.0]).points()
            >>> values.round(1).tolist(), counts.tolist()
            ([-3.0, -3.0, -3.0, -3.0, 1.5, 1.5, 1.5, 1.5], [0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5])
        """
        if self.counts is None:
            raise ValueError("Only the ends were kept.")
        bins = np.flatnonzero(self.counts).astype(np.uint32)
        edges = [(bins + np.uint32(more)) << np.uint32(32 - KEPT) for more in (0, 1)]
        near, far = (edge.view(np.float32).astype(np.float64) for edge in edges)
        shares = (np.arange(POINTS) + 0.5) / POINTS
        values = np.clip(near[:, None] + (far - near)[:, None] * shares, self.low, self.high)  # (bins, POINTS)
        counts = np.repeat(self.counts[bins] / POINTS, POINTS)
        order = np.argsort(values.ravel(), kind="stable")
        return values.ravel()[order], counts[order]


class Recorder:
    """Look at a tensor batch by batch; the memory does not grow with the values.

    Args:
        values: Whether to count values, and not only to keep the ends.
    """

    def __init__(self, values: bool):
        self.ends: list[tuple[float, float]] = []
        self.counts = np.zeros(2**KEPT, np.int64) if values else None

    def add(self, x: np.ndarray) -> None:
        """Look at a batch of any shape."""
        self.ends.append((float(x.min()), float(x.max())))
        if self.counts is not None:
            bits = np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32)
            self.counts += np.bincount(bits >> np.uint32(32 - KEPT), minlength=2**KEPT)

    def seen(self) -> Seen:
        """Give what was seen."""
        return Seen(np.array(self.ends, np.float64), self.counts)
