"""What is asked of a plan: checked once, and written into the plan."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import keras

from kpipe.checks import is_number, is_whole
from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace
from kpipe.registry import nearest
from kpipe.saliency import Criterion, channel_criterion_of
from kpipe.structured.ranking import least_of, step_of
from kpipe.structured.scopes import Ratio, Scope, check_scope, compiled, several
from kpipe.structured.scores import check_choice
from kpipe.structured.targets import check_target

PARTS = ("channels", "heads")
"""The parts of layers that go when nothing else is said; see `kpipe.graph.Group`. The sizes within a head stay."""

KNOWN_PARTS = (*PARTS, "key_dim", "value_dim", "head_dim")
"""All the parts that layers of Keras have."""

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
        if self.max_ratio is not None and not (is_number(self.max_ratio) and 0 < self.max_ratio <= 1):
            raise KpipeError(
                f"Expected max_ratio, the fraction that a group loses at most, in (0, 1]. Received: {self.max_ratio!r}."
            )
        if not is_whole(self.min_channels, 1):
            raise KpipeError(f"Expected min_channels as an integer of at least 1. Received: {self.min_channels!r}.")
        check_parts(self.parts)

    def limits(self, groups: Sequence[Group], gone: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """Give for each group the step of its width, and how many channels stay in any case.

        Args:
            groups: Of a trace.
            gone: How many channels each had that went before; None for none.
        """
        steps = [step_of(group, self.round_to) for group in groups]
        sizes = [len(group) for group in groups]
        before = sizes if gone is None else [size + count for size, count in zip(sizes, gone, strict=True)]
        least = [
            least_of(size, step, self.max_ratio, self.min_channels) for size, step in zip(before, steps, strict=True)
        ]
        return steps, [min(pair) for pair in zip(least, sizes, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data; what was not asked for is left out."""
        plain = {name: _plain(getattr(self, name)) for name in ("ratio", "target", "scope", "round_to")}
        plain["criterion"] = channel_criterion_of(self.criterion).name
        further = {name: _plain(getattr(self, name)) for name in ("reduction", "normalise", "max_ratio")}
        further["min_channels"] = _plain(self.min_channels) if self.min_channels > 1 else None
        usual = self.parts is not None and set(self.parts) == set(PARTS)
        further["parts"] = None if usual else "all" if self.parts is None else list(self.parts)
        return plain | {name: value for name, value in further.items() if value is not None}


def _plain(value: Any) -> Any:
    """Write values in types that JSON knows; numbers may be NumPy's."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def check_request(ratio: Any, target: Any, scope: Scope, round_to: Any) -> None:
    """Refuse what says how much goes, and where, when it is out of range.

    Raises:
        KpipeError: When it is.
    """
    if (ratio is None) == (target is None):
        raise KpipeError(f"Give either ratio or target. Received: ratio={ratio!r}, target={target!r}.")
    if ratio is not None:
        check_ratio(ratio)
    check_scope(scope)
    if not is_whole(round_to, 1):
        raise KpipeError(f"Expected round_to, a multiple, as an integer of at least 1. Received: {round_to!r}.")
    if target is not None:
        check_target(target)


def check_ratio(ratio: Any) -> None:
    """Refuse what is no fraction of channels to remove, nor a mapping of regexes to such.

    Raises:
        KpipeError: When it is neither.
    """
    if isinstance(ratio, Mapping) and not ratio:
        raise KpipeError("Expected ratio as a fraction, or as regexes with one each. Received: an empty mapping.")
    for expression, value in ratio.items() if isinstance(ratio, Mapping) else [(None, ratio)]:
        if expression is not None:
            compiled(expression, "ratio")
        if not (is_number(value) and 0 <= value < 1):
            where = "" if expression is None else f" of {expression!r}"
            raise KpipeError(
                f"Expected ratio, the fraction of channels to remove, in [0, 1): a layer keeps at least one channel. "
                f"Received: {value!r}{where}."
            )


def check_parts(parts: Any, known: Collection[str] | None = None) -> None:
    """Refuse what does not name parts of layers.

    Args:
        parts: Names; None for all parts.
        known: Those that there are; None where any name may be one, as a layer's rule may bring its own.

    Raises:
        KpipeError: When it holds no names, or one that is not known.

    Example:
        >>> check_parts(["heads", "key_dim"], KNOWN_PARTS)
    """
    named = isinstance(parts, Collection) and not isinstance(parts, str) and all(isinstance(p, str) for p in parts)
    if parts is not None and not (named and parts):
        raise KpipeError(f"Expected parts as names, such as {PARTS}, or None for all. Received: {parts!r}.")
    for part in parts or ():
        if known is not None and part not in known:
            raise KpipeError(f"Unknown part {part!r}. Known: {', '.join(known)}.{nearest(part, known)}")


def freeze_parts(traced: Trace, parts: Sequence[str] | None) -> Trace:
    """Freeze the groups whose part is none of those that may go; None: all may.

    Raises:
        KpipeError: When one that was asked for is not there.
    """
    if parts is None:
        return traced
    there = dict.fromkeys(group.part for group in traced.groups)
    unknown = [part for part in parts if part not in there]
    if unknown and set(parts) != set(PARTS):  # those ask for whatever there is of them
        known = ", ".join(there) or "none"
        raise KpipeError(f"parts={tuple(parts)} holds {unknown[0]!r}. Parts that may go here: {known}.")
    others = [group for group in traced.groups if group.part not in parts]
    return traced.freeze({group.name: f"parts={tuple(parts)} leaves {group.part!r} out" for group in others})


def freeze_ignored(traced: Trace, ignore: Ignore) -> Trace:
    """Freeze the groups that an ignored layer produces.

    Raises:
        KpipeError: When one of the filters means no layer that produces channels.
    """
    named: set[str] = set()
    for wanted in several(ignore, "ignore"):
        named |= _ignored(traced, wanted)
    return traced.freeze({g.name: "it is ignored" for g in traced.groups if named & set(g.layers)})


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
