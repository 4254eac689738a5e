"""What is asked of a plan: checked once, and written into the plan."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace
from kpipe.saliency import Criterion, channel_criterion_of
from kpipe.structured.ranking import least_of, step_of
from kpipe.structured.scopes import Ratio, Scope, check_scope, compiled, several
from kpipe.structured.scores import check_choice
from kpipe.structured.targets import check_target

PARTS = ("channels", "heads")
"""The parts of layers that go when nothing else is said; see `kpipe.graph.Group`. The sizes within a head stay."""

Ignore = str | Sequence[str] | Callable[[keras.Layer], bool] | None
"""Layers whose channels stay: a regex on the path, several, or a function of the layer."""


@dataclass(frozen=True)
class Request:
    """Hold what is asked of a plan; the arguments are those of `plan_filters`.

    Raises:
        KpipeError: For a value that is out of range.
    """

    ratio: Ratio | None = None
    target: Mapping[str, float] | None = None
    criterion: str | Criterion = "l1"
    scope: Scope = "layer"
    round_to: int = 1
    reduction: str | None = None
    normalise: str | None = None
    max_ratio: float | None = None
    min_channels: int = 1
    parts: Sequence[str] | None = PARTS

    def __post_init__(self) -> None:
        check_request(self.ratio, self.target, self.scope, self.round_to)
        check_choice(self.reduction, self.normalise)
        if self.max_ratio is not None and not (_is_number(self.max_ratio) and 0 < self.max_ratio <= 1):
            raise KpipeError(
                f"Expected max_ratio, the fraction that a group loses at most, in (0, 1]. Received: {self.max_ratio!r}."
            )
        if not _is_count(self.min_channels):
            raise KpipeError(f"Expected min_channels as an integer of at least 1. Received: {self.min_channels!r}.")
        parts = PARTS if self.parts is None else self.parts
        named = isinstance(parts, Collection) and all(isinstance(part, str) for part in parts)
        if isinstance(parts, str) or not parts or not named:
            raise KpipeError(f"Expected parts as names, such as {PARTS}, or None for all. Received: {self.parts!r}.")

    def limits(self, groups: Sequence[Group]) -> tuple[list[int], list[int]]:
        """Give for each group the step of its width, and how many channels stay in any case."""
        steps = [step_of(group, self.round_to) for group in groups]
        least = [
            least_of(len(g), step, self.max_ratio, self.min_channels) for g, step in zip(groups, steps, strict=True)
        ]
        return steps, least

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data; what was not asked for is left out."""
        plain = {
            "ratio": dict(self.ratio) if isinstance(self.ratio, Mapping) else self.ratio,
            "target": dict(self.target) if self.target is not None else None,
            "scope": _plain(self.scope),
            "round_to": self.round_to,
            "criterion": channel_criterion_of(self.criterion).name,
        }
        further = {name: _plain(getattr(self, name)) for name in ("reduction", "normalise", "max_ratio")}
        further["min_channels"] = self.min_channels if self.min_channels > 1 else None
        further["parts"] = "all" if self.parts is None else list(self.parts) if tuple(self.parts) != PARTS else None
        return plain | {name: value for name, value in further.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, (tuple, list)) else value


def check_request(ratio: Any, target: Any, scope: Scope, round_to: Any) -> None:
    """Refuse what says how much goes, and where, when it is out of range."""
    if (ratio is None) == (target is None):
        raise KpipeError(f"Give either ratio or target. Received: ratio={ratio!r}, target={target!r}.")
    if ratio is not None:
        check_ratio(ratio)
    check_scope(scope)
    if not _is_count(round_to):
        raise KpipeError(f"Expected round_to, a multiple, as an integer of at least 1. Received: {round_to!r}.")
    if target is not None:
        check_target(target)


def check_ratio(ratio: Any) -> None:
    """Refuse what is no fraction of channels to remove, nor a mapping of regexes to such."""
    if isinstance(ratio, Mapping) and not ratio:
        raise KpipeError("Expected ratio as a fraction, or as regexes with one each. Received: an empty mapping.")
    for expression, value in ratio.items() if isinstance(ratio, Mapping) else [(None, ratio)]:
        if expression is not None:
            compiled(expression, "ratio")
        if not (_is_number(value) and 0 <= value < 1):
            where = "" if expression is None else f" of {expression!r}"
            raise KpipeError(
                f"Expected ratio, the fraction of channels to remove, in [0, 1): a layer keeps at least one channel. "
                f"Received: {value!r}{where}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def freeze(traced: Trace, stay: Mapping[str, str]) -> Trace:
    """Let groups stay whole: name -> reason."""
    groups = tuple(group for group in traced.groups if group.name not in stay)
    return replace(traced, frozen={**traced.frozen, **stay}, groups=groups)


def freeze_parts(traced: Trace, parts: Sequence[str] | None) -> Trace:
    """Freeze the groups whose part is none of those that may go; None: all may.

    Raises:
        KpipeError: When one that was asked for is not there.
    """
    if parts is None:
        return traced
    there = dict.fromkeys(group.part for group in traced.groups)
    unknown = [part for part in parts if part not in there]
    if unknown and tuple(parts) != PARTS:
        known = ", ".join(there) or "none"
        raise KpipeError(f"parts={tuple(parts)} holds {unknown[0]!r}. Parts that may go here: {known}.")
    others = [group for group in traced.groups if group.part not in parts]
    return freeze(traced, {group.name: f"parts={tuple(parts)} leaves {group.part!r} out" for group in others})


def freeze_ignored(traced: Trace, ignore: Ignore) -> Trace:
    """Freeze the groups that an ignored layer produces."""
    named: set[str] = set()
    for wanted in several(ignore, "ignore"):
        named |= _ignored(traced, wanted)
    return freeze(traced, {g.name: "it is ignored" for g in traced.groups if named & set(g.layers)})


def _ignored(traced: Trace, wanted: str | Callable[[keras.Layer], bool]) -> set[str]:
    """Find the layers that one filter means; each must produce channels, or the filter would protect nothing."""
    if callable(wanted):
        found = {layer.path for layer in traced.layers if wanted(layer.layer)}
    else:
        pattern = compiled(wanted, "ignore")
        found = {layer.path for layer in traced.layers if pattern.search(layer.path)}
    producing = {path for group in traced.groups for path in group.layers} | set(traced.frozen)
    if not found & producing:
        what = f"matches only {sorted(found)}, which produce no channels" if found else "matches no layer"
        raise KpipeError(f"ignore={wanted!r} {what}. Layers that produce channels: {', '.join(sorted(producing))}.")
    return found
