"""Patterns: which entries of a weight go together, and how many may go."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.ranking import drop_count, keep_highest, refuse_nan
from kpipe.registry import Registry, nearest

Rescale = Callable[[np.ndarray], np.ndarray]
"""Scores of the units of one weight -> scores of the same shape and order that compare with those of other weights."""

MaskFunction = Callable[[np.ndarray, float], np.ndarray]
"""(scores, sparsity) -> boolean keep-mask of the scores' shape; the higher the score, the rather it is kept.

The scores are finite where the criterion's are. What was dropped before scores 0 where all others are above it, else
below the lowest of them: in a sum, a mean or a ranking it goes first. It stays dropped whatever the mask says of it.
The sparsity is that of the whole weight, what was dropped before included. A mask that keeps nothing is refused, unless
the weight is so small that its share rounds to nothing.
"""

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

    def at_limit(self, size: int, drop: int) -> bool:
        """Tell whether to drop so many of `size` units is to drop all that may go, at a limit below 1."""
        return self.limit < 1 and drop >= int(self.limit * size + 1e-9)

    def reached(self, size: int, dropped: int, sparsity: float) -> bool:
        """Tell whether a weight has a sparsity by the number of its dropped entries alone, whichever they are.

        Args:
            size: Number of entries.
            dropped: Number of those that are dropped.
            sparsity: Asked for.

        Returns:
            False where it depends on which ones are dropped: then the scores have to tell.
        """
        return False

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
        """Drop the round(sparsity * units) units of lowest score; all that may go at the limit, or when they are fewer.

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
        return self.spread(keep_highest([units], self._drop(units, sparsity))[0], scores.shape)

    def _drop(self, units: np.ndarray, sparsity: float) -> int:
        asked = drop_count(units.size, sparsity)
        if self.limit >= 1:
            return asked
        free = int(np.count_nonzero(units < np.inf))
        return free if self.at_limit(units.size, asked) else min(asked, free)


@dataclass(frozen=True)
class ByFunction(Pattern):
    """Choose by a function of one's own, (scores, sparsity) -> keep-mask: it is asked for each weight by itself.

    Args:
        function: What `MaskFunction` says.

    Example:
        >>> def columns(scores, sparsity):
        ...     return np.broadcast_to(scores.sum(axis=0) > np.quantile(scores.sum(axis=0), sparsity), scores.shape)
        >>> pattern_of(columns)(np.array([[1.0, 5.0], [1.0, 5.0]]), 0.5).tolist()
        [[False, True], [False, True]]
        >>> pattern_of(columns)(np.array([[-np.inf, 5.0, 3.0], [-np.inf, 5.0, 2.0]]), 0.5).tolist()
        [[False, True, False], [False, True, False]]
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
        """Ask the function, as `MaskFunction` says.

        Raises:
            KpipeError: When a score is NaN, the sparsity does not fit, or the mask has another shape or keeps nothing.
        """
        self.check(sparsity)
        gone = scores == -np.inf
        if gone.all():
            return ~gone
        found = np.asarray(self.function(_finite(scores, gone), sparsity))
        if found.shape != scores.shape:
            raise KpipeError(
                f"The pattern {self} gave a mask of shape {found.shape}; expected {scores.shape}, one boolean an entry."
            )
        keep = np.logical_and(found, ~gone)
        if not keep.any() and drop_count(scores.size, sparsity) < scores.size:
            raise KpipeError(
                f"The pattern {self} keeps nothing of {scores.size} entries; it was asked for a sparsity of "
                f"{sparsity:.4g}. Rank the scores and drop a count of them: a threshold can lie above them all."
            )
        return keep

    def __str__(self) -> str:
        known = (name for name in PATTERNS if PATTERNS[name] is self.function)
        return next(known, getattr(self.function, "__name__", repr(self.function)))


def sums_over(shape: tuple[int, ...]) -> str:
    """Say over how many inputs a weight sums, and what to do, as a part of a reason.

    Example:
        >>> sums_over((3, 2, 8)), sums_over((1000, 1, 64))
        ('it sums over 2 inputs: prune it by another pattern', 'it sums over 1 input: prune it by another pattern')
    """
    return f"it sums over {shape[-2]} input{'s' if shape[-2] > 1 else ''}: prune it by another pattern"


def _finite(scores: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Give what is gone a finite score below all others: 0 where it can be, so that it counts as nothing in a sum."""
    refuse_nan([scores])
    if not gone.any():
        return scores
    lowest, kind = float(np.min(scores, where=~gone, initial=np.inf)), np.finfo(scores.dtype)
    below = 0.0 if lowest > 0 else max(2 * lowest - float(kind.tiny), float(kind.min))
    return np.where(gone, scores.dtype.type(below), scores)


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
