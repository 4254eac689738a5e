"""Zeros anywhere."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from kpipe.patterns.pattern import PATTERNS, Pattern, Rescale
from kpipe.patterns.ranking import drop_count


@PATTERNS("unstructured", example="unstructured")
@dataclass(frozen=True)
class Unstructured(Pattern):
    """Drop the entries of lowest score, wherever they are; scores may have any shape.

    Example:
        >>> Unstructured()(np.array([3.0, 1.0, 2.0, 1.0]), 0.5).tolist()
        [True, False, True, False]
        >>> Unstructured()(np.ones(4), 0.25).tolist()
        [False, True, True, True]
    """

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "unstructured"."""
        return cls() if text == "unstructured" else None

    def pool(self, scores: np.ndarray, rescale: Rescale | None = None) -> np.ndarray:
        """Give the scores: every entry is a unit."""
        return scores if rescale is None else rescale(scores)

    def reached(self, size: int, dropped: int, sparsity: float) -> bool:
        """Compare the counts."""
        return dropped >= drop_count(size, sparsity)

    def spread(self, keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Give the keep-mask as it is."""
        return keep

    def __str__(self) -> str:
        return "unstructured"
