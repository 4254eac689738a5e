"""The same sparsity in each weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from kpipe.patterns.pattern import Pattern
from kpipe.patterns.scope import SCOPES, Scope, each


@SCOPES("layer")
@dataclass(frozen=True)
class Layer(Scope):
    """Take the sparsity from each weight by itself.

    Example:
        >>> Layer().sparsities({"a": (4, 2), "b": (3, 3)}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """

    alone = True

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "layer"."""
        return cls() if text == "layer" else None

    def keep(self, scores: Mapping[str, np.ndarray], sparsity: float, pattern: Pattern) -> dict[str, np.ndarray]:
        """Ask the pattern for each weight."""
        return each(scores, dict.fromkeys(scores, sparsity), pattern)

    def sparsities(
        self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, pattern: Pattern | None = None
    ) -> dict[str, float]:
        """Give every weight the same."""
        return dict.fromkeys(shapes, sparsity)

    def __str__(self) -> str:
        return "layer"
