"""Scopes: how a sparsity is shared out among the weights of a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.pattern import ByFunction, MaskFunction, Pattern, pattern_of
from kpipe.registry import Registry, nearest

SCOPES: Registry["type[Scope]"] = Registry("scope")
"""Name -> class."""


class Scope(ABC):
    """Share out one sparsity among several weights, and choose what to keep of each.

    A scope is written as a string (`str(scope)`), and `scope_of` gives an equal one back. A new scope is a frozen
    dataclass with `parse`, `keep` and `__str__`, registered in a file of its own.
    """

    alone: ClassVar[bool] = False
    """Whether each weight is judged by itself: asked for some weights only, the answer for these is the same."""

    ranks: ClassVar[bool] = False
    """Whether units of several weights are ranked together."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Make the scope from how it is written; None when the text means another scope."""

    @abstractmethod
    def keep(self, scores: Mapping[str, np.ndarray], sparsity: float, pattern: Pattern) -> dict[str, np.ndarray]:
        """Choose what to keep.

        Args:
            scores: Path -> scores, shape (*positions, inputs, outputs) or, for single entries, any; -inf for what was
                dropped before.
            sparsity: Fraction to drop of all the weights together, in [0, 1).
            pattern: What goes together.

        Returns:
            Path -> keep-mask, boolean, shaped like the scores.
        """

    def sparsities(
        self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, pattern: Pattern | None = None
    ) -> dict[str, float] | None:
        """Give the sparsity of each weight where it is known before any score is; None where the scores decide.

        Args:
            shapes: Path -> shape of the scores.
            sparsity: Of all the weights together.
            pattern: What goes together; None for single entries.

        Returns:
            Path -> the sparsity that `pattern` is to be asked for, which gives the exact count.
        """
        return None

    def check(self, pattern: Pattern, sparsity: float | None = None) -> None:
        """Refuse what cannot be done whatever the weights are.

        Args:
            pattern: What goes together; a function is refused where units of several weights are ranked.
            sparsity: The highest that is going to be asked for; None: not known yet.

        Raises:
            KpipeError: When the pattern does not go with the scope, or the sparsity is beyond what they give.
        """
        if sparsity is not None:
            pattern.check(sparsity)
        if self.ranks and isinstance(pattern, ByFunction):
            raise KpipeError(
                f"The pattern '{pattern}' is a function and has no global ranking. Use scope='layer' or 'erk', or a "
                "pattern that kpipe knows."
            )


def scope_of(scope: str | Mapping[str, Any] | Scope) -> Scope:
    """Make a scope from how it is written, or from a mapping of its name to its arguments; a scope stays as it is.

    Args:
        scope: A string such as "layer", "global", "global:lamp" or "erk"; a mapping such as
            `{"global": {"normalise": "lamp", "ceiling": 0.95}}`; or a `Scope`.

    Raises:
        KpipeError: When it is none of these.

    Example:
        >>> scope_of({"global": {"normalise": "lamp", "ceiling": 0.95}}) == scope_of("global:lamp:0.95")
        True
    """
    if isinstance(scope, Scope):
        return scope
    if isinstance(scope, str):
        for name in SCOPES:
            if (found := SCOPES[name].parse(scope)) is not None:
                return found
        raise KpipeError(f"The scope is {scope!r}; expected one of {', '.join(SCOPES)}.{nearest(scope, SCOPES)}")
    if not isinstance(scope, Mapping) or len(scope) != 1:
        raise KpipeError(f"The scope is {scope!r}; expected one of {', '.join(SCOPES)}, or one with its arguments.")
    ((name, arguments),) = scope.items()
    made = SCOPES[name]
    takes = ", ".join(made.__dataclass_fields__) or "no arguments"  # type: ignore[attr-defined]
    try:
        return made(**(arguments or {}))
    except TypeError as error:
        raise KpipeError(f"The scope {name!r} cannot be made from {arguments!r}: it takes {takes}.") from error


def each(scores: Mapping[str, np.ndarray], sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, np.ndarray]:
    """Ask a pattern for each weight by itself; a refusal names the weight.

    Example:
        >>> from kpipe.patterns import Unstructured
        >>> each({"a/kernel": np.array([1.0, 2.0])}, {"a/kernel": 0.5}, Unstructured())
        {'a/kernel': array([False,  True])}
    """
    found = {}
    for path, values in scores.items():
        try:
            found[path] = pattern(values, sparsities[path])
        except KpipeError as error:
            raise KpipeError(f"Weight {path!r}: {error}") from error
    return found


def check_scope(
    scope: str | Mapping[str, Any] | Scope, pattern: str | Pattern | MaskFunction, sparsity: float | None = None
) -> None:
    """Refuse an unknown scope or pattern, two that do not go together, and a sparsity beyond what they give.

    Args:
        scope: What `scope_of` takes.
        pattern: What `pattern_of` takes.
        sparsity: The highest that is going to be asked for; None: not known yet.

    Raises:
        KpipeError: When they do not.

    Example:
        >>> check_scope("model", "unstructured")
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The scope is 'model'; expected one of layer, global, erk.
    """
    scope_of(scope).check(pattern_of(pattern), sparsity)


def keep_masks(
    scores: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str | Mapping[str, Any] | Scope = "layer",
    pattern: str | Pattern | MaskFunction = "unstructured",
) -> dict[str, np.ndarray]:
    """Choose what to keep of several weights.

    Args:
        scores: Path -> scores of that weight, shape (*positions, inputs, outputs); an unstructured pattern takes any.
        sparsity: Fraction to drop, in [0, 1).
        scope: How it is shared out: what `scope_of` takes.
        pattern: What goes together: what `pattern_of` takes.

    Returns:
        Path -> keep-mask.

    Raises:
        KpipeError: For an unknown scope or pattern, two that do not go together, or a sparsity that they cannot give.

    Example:
        >>> scores = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, "global").items()}
        {'a': [False, False], 'b': [True, True]}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, "layer").items()}
        {'a': [False, True], 'b': [False, True]}
    """
    sharing, chosen = scope_of(scope), pattern_of(pattern)
    sharing.check(chosen, sparsity)
    return sharing.keep(scores, sparsity, chosen)
