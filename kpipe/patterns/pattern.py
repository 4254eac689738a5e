"""Patterns: which entries of a weight go together, and how many may go."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.ranking import drop_count, keep_highest
from kpipe.registry import Registry, nearest

Rescale = Callable[[np.ndarray], np.ndarray]
"""Scores of the units of one weight -> scores of the same shape and order that compare with those of other weights."""

MaskFunction = Callable[[np.ndarray, float], np.ndarray]
"""(scores, sparsity) -> boolean keep-mask of the scores' shape; the higher the score, the rather it is kept."""

PATTERNS: Registry["type[Pattern] | MaskFunction"] = Registry("pattern")
"""How it is written -> the class, or a function of one's own. Facts of a class: `example`, a string that it parses."""


class Pattern(ABC):
    """Choose what to keep of a weight: single entries or units of several, by their scores.

    Scores have the shape (*positions, inputs, outputs), as `Layout.turn` gives them: the last two axes are those that a
    kernel sums over and produces. An entry that was dropped before has the score -inf: it goes first. A pattern is
    written as a string (`str(pattern)`), and `pattern_of` gives an equal one back.

    A new pattern is a frozen dataclass with `parse`, `pool`, `spread` and `__str__`, registered in a file of its own:

        @PATTERNS("rows", example="rows")
        @dataclass(frozen=True)
        class Rows(Pattern):
            ...
    """

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Make the pattern from how it is written; None when the text means another pattern."""

    @abstractmethod
    def pool(self, scores: np.ndarray, rescale: Rescale | None = None) -> np.ndarray:
        """Give the score of each unit; +inf for one that may never go, -inf for one that is dropped whole already.

        Args:
            scores: Of the entries, shape (*positions, inputs, outputs).
            rescale: Applied to the units' scores before any is set to +inf.
        """

    @abstractmethod
    def spread(self, keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turn a keep-mask of units into one of entries.

        Args:
            keep: Boolean, shaped like what `pool` gave.
            shape: Of the scores.
        """

    @property
    def limit(self) -> float:
        """The sparsity that it cannot go beyond; below 1 it can be reached."""
        return 1.0

    def sizes(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Give the number of entries of each unit, shaped like what `pool` gives; None: one each."""
        return None

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        """Say why scores of this shape cannot have the pattern, as a reason to skip the weight; None when they can."""
        return None

    def check(self, sparsity: float) -> None:
        """Refuse a sparsity that is no fraction in [0, 1), or beyond the limit.

        Raises:
            KpipeError: When it is one of these.
        """
        drop_count(1, sparsity)
        if sparsity > self.limit + 1e-9:
            raise KpipeError(
                f"The sparsity is {sparsity!r}; the pattern '{self}' reaches {self.limit:.4g} at most. Ask for no more "
                "than that, or choose another pattern."
            )

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Drop the round(sparsity * units) units of lowest score, or all that may go when those are fewer.

        Args:
            scores: Shape (*positions, inputs, outputs); NaN is refused.
            sparsity: Fraction of units to drop, in [0, 1) and not above the limit.

        Returns:
            Keep-mask, boolean, shaped like `scores`. Among equal scores the lowest index (row-major) goes first.

        Raises:
            KpipeError: When a score is NaN, or the sparsity does not fit.
        """
        self.check(sparsity)
        units = self.pool(scores)
        drop = min(drop_count(units.size, sparsity), self.droppable(units))
        return self.spread(keep_highest([units], drop)[0], scores.shape)

    def droppable(self, units: np.ndarray) -> int:
        """Count the units that may go."""
        return units.size if self.limit >= 1 else int(np.count_nonzero(units < np.inf))


@dataclass(frozen=True)
class ByFunction(Pattern):
    """Choose by a function of one's own, (scores, sparsity) -> keep-mask: it is asked for each weight by itself.

    Example:
        >>> def columns(scores, sparsity):
        ...     return np.broadcast_to(scores.sum(axis=0) > np.quantile(scores.sum(axis=0), sparsity), scores.shape)
        >>> pattern_of(columns)(np.array([[1.0, 5.0], [1.0, 5.0]]), 0.5).tolist()
        [[False, True], [False, True]]
    """

    function: MaskFunction

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Give nothing: a function is registered by its name, or given as it is."""
        return None

    def pool(self, scores: np.ndarray, rescale: Rescale | None = None) -> np.ndarray:
        """Refuse: the function does not say what its units are."""
        raise KpipeError(
            f"The pattern {self} is a function: it has no units that could be ranked over several weights. Use "
            "scope='layer' or 'erk', or write a class with kpipe.patterns.Pattern."
        )

    def spread(self, keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Give the keep-mask as it is."""
        return keep

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Ask the function."""
        self.check(sparsity)
        return self.function(scores, sparsity)

    def __str__(self) -> str:
        known = (name for name in PATTERNS if PATTERNS[name] is self.function)
        return next(known, getattr(self.function, "__name__", repr(self.function)))


def pattern_of(pattern: str | Pattern | MaskFunction) -> Pattern:
    """Make a pattern from how it is written, such as "2:4", or from a function; a pattern is given back as it is.

    Raises:
        KpipeError: When it is none of these.

    Example:
        >>> str(pattern_of("unstructured")), pattern_of("unstructured") == pattern_of(pattern_of("unstructured"))
        ('unstructured', True)
    """
    if isinstance(pattern, str):
        return _parse(pattern)
    if isinstance(pattern, Pattern):
        return pattern
    if callable(pattern) and not isinstance(pattern, type):
        return ByFunction(pattern)
    hint = " In YAML write an n:m in quotes: '2:4'." if isinstance(pattern, int) else ""
    raise KpipeError(
        f"The pattern is {pattern!r}; expected one of {', '.join(PATTERNS)}, or a function of scores.{hint}"
    )


def _parse(text: str) -> Pattern:
    for name in PATTERNS:
        known: Any = PATTERNS[name]
        if not isinstance(known, type):
            if name == text:
                return ByFunction(known)
        elif (found := known.parse(text)) is not None:
            return found
    raise KpipeError(f"Unknown pattern {text!r}. Known: {', '.join(PATTERNS)}.{nearest(text, PATTERNS)}")
