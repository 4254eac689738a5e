"""Which groups of channels are ranked together, and how much of each goes."""

import re
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from types import NoneType
from typing import Any

from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace
from kpipe.registry import nearest

SCOPES = ("layer", "global", "isomorphic")
"""Each group for itself; all together; those of the same structure together."""

Regexes = str | Sequence[str]
Scope = str | Mapping[str, Regexes]
"""One of `SCOPES`, or a mapping: name -> regex, or several, on the paths of the layers that are ranked together."""

Ratio = float | Mapping[str, float]
"""Fraction of the channels that goes; or regex on the paths of layers -> that of the groups that they produce."""


def partition(trace: Trace, scope: Scope, gone: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """Say which groups are ranked together.

    Args:
        trace: Of the model.
        scope: "layer": each group for itself. "global": all. "isomorphic": those with the same number of channels, of
            the same kind, along the same axes of the same sequence of layer classes. A mapping: those with a layer
            that the regexes of a name find, the first name that finds one counting; all others each for itself.
        gone: How many channels each group had that went before, which its structure counts; None: none.

    Returns:
        The numbers of the groups, each in one tuple.

    Raises:
        KpipeError: When the scope is not known, or a name of a mapping finds no group.

    Example:
        >>> import keras
        >>> from kpipe.graph import trace
        >>> sizes = {"a": 4, "b": 6, "c": 6, "d": 6, "e": 2}
        >>> dense = [keras.layers.Dense(units, name=name) for name, units in sizes.items()]
        >>> traced = trace(keras.Sequential([keras.Input((3,)), *dense]))
        >>> partition(traced, "layer"), partition(traced, "global"), partition(traced, "isomorphic")
        ([(0,), (1,), (2,), (3,)], [(0, 1, 2, 3)], [(0,), (1, 2, 3)])
        >>> partition(traced, {"ends": ["^a$", "^d$"]})
        [(0, 3), (1,), (2,)]

    References:
        Fang et al., Isomorphic pruning for vision models (2024), https://arxiv.org/abs/2407.04616
    """
    numbers = range(len(trace.groups))
    if isinstance(scope, Mapping):
        names = _named(trace.groups, scope)
        keys = [names.get(number, number) for number in numbers]
    elif scope == "layer":
        keys = list(numbers)
    elif scope == "global":
        keys = [0 for _ in numbers]
    elif scope == "isomorphic":
        keys = structures(trace, gone)
    else:
        check_scope(scope)
        keys = []
    together: dict[object, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        together.setdefault(key, []).append(number)
    return [tuple(members) for members in together.values()]


def check_scope(scope: Scope) -> None:
    """Refuse what is no scope.

    Raises:
        KpipeError: When it is none.
    """
    if isinstance(scope, Mapping):
        if not scope or not all(isinstance(name, str) for name in scope):
            raise KpipeError(f"Expected scope as names with regexes, such as {{'stage2': '^block2_'}}. Got: {scope!r}.")
        for name, expressions in scope.items():
            for expression in several(expressions, f"scope[{name!r}]"):
                compiled(expression, f"scope[{name!r}]")
    elif scope not in SCOPES:
        raise KpipeError(
            f"Expected one of the scopes {SCOPES}, or a mapping from names to regexes. Received: {scope!r}."
            f"{nearest(str(scope), SCOPES)}"
        )


def structures(trace: Trace, gone: Sequence[int] | None = None) -> list[tuple]:
    """Describe the structure of each group: its part and size, and where its channels lie in which kinds of weights.

    Args:
        trace: Of the model.
        gone: How many channels each group had that went before: they count in its size. None: none.
    """
    found: list[list[tuple]] = [[] for _ in trace.groups]
    group_of = {int(one): number for number, group in enumerate(trace.groups) for one in group.classes}
    for layer in trace.layers:
        for place, weight in enumerate(layer.weights):
            for axis, ids in weight.axes.items():
                classes = trace.class_of[ids]
                members = [group_of.get(int(one), -1) for one in classes]
                for number in set(members) - {-1}:
                    entries = Fraction(members.count(number), len(trace.groups[number]))  # of each channel
                    found[number].append((type(layer.layer), place, axis, entries))
    before = [0 for _ in trace.groups] if gone is None else gone
    return [
        (group.part, len(group) + went, group.width, *where)
        for group, went, where in zip(trace.groups, before, found, strict=True)
    ]


def ratios(groups: Sequence[Group], ratio: Ratio) -> list[float]:
    """Give the ratio of each group.

    Args:
        groups: Of a trace.
        ratio: A fraction, or regex -> fraction: the first regex that finds a layer of a group, or its name, such as
            "attention:heads", counts; a group that none finds keeps all its channels.

    Returns:
        A fraction for each group.

    Raises:
        KpipeError: When a regex finds no group that none before it has found.

    Example:
        >>> import numpy as np
        >>> groups = [Group(name, (name,), np.arange(4), (1,)) for name in ("stem", "block1", "block2")]
        >>> ratios(groups, 0.5), ratios(groups, {"block2": 0.75, "block": 0.25})
        ([0.5, 0.5, 0.5], [0.0, 0.25, 0.75])
    """
    if not isinstance(ratio, Mapping):
        return [float(ratio) for _ in groups]
    named = _find(groups, {expression: expression for expression in ratio}, "ratio")
    return [float(ratio[named[number]]) if number in named else 0.0 for number in range(len(groups))]


def refine(pools: Sequence[tuple[int, ...]], each: Sequence[float]) -> list[tuple[int, ...]]:
    """Split what is ranked together by ratio: each ratio is one of the channels of its own groups.

    Example:
        >>> refine([(0, 1, 2), (3,)], [0.5, 0.2, 0.5, 0.2])
        [(0, 2), (1,), (3,)]
    """
    parts = [tuple(n for n in pool if each[n] == value) for pool in pools for value in dict.fromkeys(each)]
    return sorted(part for part in parts if part)


def _named(groups: Sequence[Group], scope: Mapping[str, Regexes]) -> dict[int, str]:
    check_scope(scope)
    return _find(groups, scope, "scope")


def _find(groups: Sequence[Group], wanted: Mapping[str, Regexes], what: str) -> dict[int, str]:
    """Map the number of each group that is found to the first name whose regexes find its own or one of its layers."""
    found: dict[int, str] = {}
    for name, expressions in wanted.items():
        where = f"{what}[{name!r}]"
        patterns = [compiled(expression, where) for expression in several(expressions, where)]
        matches = [
            n for n, g in enumerate(groups) if any(p.search(path) for p in patterns for path in (*g.layers, g.name))
        ]
        fresh = [number for number in matches if number not in found]
        if not fresh:
            reason = "only groups that an earlier one finds too" if matches else "no group of channels that may go"
            known = ", ".join(group.name for group in groups) or "none"
            raise KpipeError(f"{what}[{name!r}] = {expressions!r} finds {reason}. There are: {known}.")
        found |= dict.fromkeys(fresh, name)
    return found


def several(wanted: Any, what: str) -> list[Any]:
    """Give one regular expression or function, or several, as a list; None as none.

    Raises:
        KpipeError: When it is none of these.

    Example:
        >>> several("^conv", "ignore"), several(["a", "b"], "ignore"), several(None, "ignore")
        (['^conv'], ['a', 'b'], [])
    """
    if isinstance(wanted, str) or callable(wanted):
        return [wanted]
    if not isinstance(wanted, (Collection, NoneType)):
        raise KpipeError(f"{what} is {wanted!r}; expected a regular expression, or several.")
    return list(wanted or ())


def compiled(expression: object, what: str) -> re.Pattern[str]:
    """Compile a regular expression, or say which argument holds none.

    Raises:
        KpipeError: When it is none.
    """
    try:
        return re.compile(expression)  # type: ignore[call-overload]
    except (re.error, TypeError) as fault:
        raise KpipeError(f"{what} holds {expression!r}, which is no regular expression: {fault}.") from fault
