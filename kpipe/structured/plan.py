"""Plans of filter pruning: data, to be looked at, saved and replayed before anything is cut."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.atomic import replace_atomically
from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace
from kpipe.structured.comparison import PlanComparison, compare
from kpipe.structured.ranking import keep_of, least_of, step_of
from kpipe.structured.scopes import ratios

NAMED = 4
"""So many of the layers that stay for one reason are named when a plan is printed."""


@dataclass(frozen=True)
class GroupPlan:
    """Say which channels of one group go.

    Args:
        name: The group's name: path of the first layer that produces its channels.
        layers: All the layers that produce them.
        channels: How many there are.
        removed: The places of those that go, ascending.
        note: What a reader should know, such as that fewer go than asked.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    removed: tuple[int, ...]
    note: str = ""

    @property
    def kept(self) -> int:
        """How many channels stay."""
        return self.channels - len(self.removed)


@dataclass(frozen=True)
class FilterPlan:
    """Say which channels of a model go; printed, it is a table.

    Args:
        groups: One entry for each group of channels that live and die together.
        frozen: Layer path -> why its channels stay.
        request: What was asked for: ratio or target, criterion, scope, round_to, and what else was said.
        before: "params" and "macs" of the model, and what the target measures.
        after: The same once the plan is carried out.
        notes: What a reader should know of the whole plan.
    """

    groups: tuple[GroupPlan, ...]
    frozen: Mapping[str, str] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Fraction of all the prunable channels that go."""
        total = sum(group.channels for group in self.groups)
        return sum(len(group.removed) for group in self.groups) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain data."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FilterPlan":
        """Read a plan from plain data.

        Args:
            data: What `to_dict` gave.

        Returns:
            The plan.

        Raises:
            KpipeError: When it is not a plan.
        """
        try:
            groups = [{**g, "layers": tuple(g["layers"]), "removed": tuple(g["removed"])} for g in data["groups"]]
            for number in [n for g in groups for n in (g["channels"], *g["removed"])]:
                if type(number) is not int:
                    raise TypeError(f"{number!r} as the number of a channel")
            made = {"groups": tuple(GroupPlan(**group) for group in groups), "notes": tuple(data.get("notes", ()))}
            return cls(**{**data, **made})
        except (KeyError, TypeError, AttributeError) as fault:
            what = f"data without {fault}" if isinstance(fault, KeyError) else fault
            raise KpipeError(f"Expected a plan as FilterPlan.save writes it. Received: {what}.") from fault

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the file appears whole or not at all.

        Args:
            path: The file.

        Raises:
            KpipeError: When it cannot be written.

        Example:
            >>> import tempfile
            >>> plan = FilterPlan((GroupPlan("conv", ("conv",), 8, (0, 3)),))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     plan.save(Path(folder) / "plan.json")
            ...     FilterPlan.load(Path(folder) / "plan.json") == plan
            True
        """
        try:
            with replace_atomically(path) as partial:
                partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as fault:
            raise KpipeError(f"Cannot write the plan to {str(path)!r}: {fault}.") from fault

    @classmethod
    def load(cls, path: str | Path) -> "FilterPlan":
        """Read a plan that `save` wrote.

        Args:
            path: The file.

        Returns:
            The plan.

        Raises:
            KpipeError: When the file cannot be read or holds no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
            raise KpipeError(f"Cannot read a plan from {str(path)!r}: {fault}.") from fault
        if not isinstance(data, dict):
            raise KpipeError(f"Expected a plan as FilterPlan.save writes it in {str(path)!r}. Received: {type(data)}.")
        return cls.from_dict(data)

    def compare(self, other: "FilterPlan") -> PlanComparison:
        """Set another plan of the same model beside this one.

        Args:
            other: It may treat other groups.

        Returns:
            The channels that each keeps of each group, how many of those that go they have in common, and the totals;
            printed, it is a table.

        Raises:
            KpipeError: When a group of one name has other channels in the other plan.

        Example:
            >>> one = FilterPlan((GroupPlan("a", ("a",), 8, (0, 3)),))
            >>> two = FilterPlan((GroupPlan("a", ("a",), 8, (3, 4, 5)),))
            >>> print(one.compare(two))
            channels of  before  this  other  removed by both
            a                 8     6      5                1
            all               8     6      5                1
        """
        return compare(self, other)

    def __str__(self) -> str:
        rows = [("channels of", "before", "kept", "removed", "note")]
        for g in self.groups:
            share = f"{len(g.removed) / g.channels:.0%}"
            rows.append((g.name, str(g.channels), str(g.kept), share, "; ".join(filter(None, (_tied(g), g.note)))))
        name, *numbers = (max(len(row[i]) for row in rows) for i in range(4))
        lines = [
            "  ".join([row[0].ljust(name), *(c.rjust(w) for c, w in zip(row[1:4], numbers, strict=True)), row[4]])
            for row in rows
        ]
        lines += _stays(self.frozen)
        for kind, before in self.before.items():
            after = self.after.get(kind)
            if before and after is not None:
                lines.append(f"{kind}: {_number(before)} -> {_number(after)} ({after / before:.1%} remain)")
            elif before is None:
                lines.append(f"{kind}: not known; an input's size is open, or a layer has no rule")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _stays(frozen: Mapping[str, str]) -> list[str]:
    """Give a line for each reason, with the first layers that stay for it."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in frozen.items():
        by_reason.setdefault(reason, []).append(path)
    return [
        f"{', '.join(paths[:NAMED])}{f' and {len(paths) - NAMED} more' if len(paths) > NAMED else ''}: "
        f"{'stays' if len(paths) == 1 else 'stay'}, {reason}"
        for reason, paths in by_reason.items()
    ]


def _tied(group: GroupPlan) -> str:
    others = group.layers[1:]
    return f"tied: {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}" if others else ""


def _several(widths: Sequence[int]) -> str:
    """Write numbers as a range.

    Example:
        >>> _several((4,)), _several((1, 4, 2))
        ('4', '1 to 4')
    """
    return str(widths[0]) if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"


NARROW = "next to nothing stays: its scores are far below the others'; max_ratio or normalise keeps more"


def describe(
    traced: Trace,
    removed: Sequence[np.ndarray],
    request: Mapping[str, Any],
    costs: Mapping[str, tuple[float, float]] | None = None,
    notes: Sequence[str] = (),
    gone: Sequence[int] | None = None,
) -> FilterPlan:
    """Write down a choice as a plan, with what it brings and a note where fewer channels go than asked.

    Args:
        traced: Of the model.
        removed: For each group the places that go.
        request: What was asked for, as plain data.
        costs: What was measured -> (before, after).
        notes: On the whole plan.
        gone: For each group how many channels went before, of what the request's limits are fractions too; None: none.

    Returns:
        The plan.
    """
    gone = [0 for _ in traced.groups] if gone is None else gone
    keep, ratio = keep_of(traced, removed), request.get("ratio")
    each = [None for _ in traced.groups] if ratio is None else ratios(traced.groups, ratio)
    groups = []
    for group, places, share, went in zip(traced.groups, removed, each, gone, strict=True):
        note = _note(group, len(group) + went, len(group) - len(places), share, request)
        if group.part == "channels" and max(group.width) > 1:
            note = "; ".join(filter(None, (f"each is {_several(group.width)} channels of a layer", note)))
        groups.append(GroupPlan(group.name, group.layers, len(group), tuple(int(i) for i in places), note))
    before = {"macs": traced.macs(), "params": traced.params()}
    after = {"macs": traced.macs(keep), "params": traced.params(keep)}
    for kind, (whole, rest) in (costs or {}).items():
        before[kind], after[kind] = whole, rest
    return FilterPlan(tuple(groups), dict(traced.frozen), dict(request), before, after, tuple(notes))


def _note(group: Group, n: int, kept: int, ratio: float | None, request: Mapping[str, Any]) -> str:
    """Say what kept channels of a group of n that scores alone would not have kept, or that scores left hardly any."""
    round_to, share = request.get("round_to", 1), request.get("max_ratio")
    step, count = step_of(group, round_to), request.get("min_channels") or 1
    if ratio == 0 and isinstance(request.get("ratio"), Mapping):
        return "its ratio is 0 or not given"
    asked = math.floor(ratio * n + 0.5) if ratio is not None and request.get("scope") == "layer" else None
    if n == 1:
        return "it has no other" if ratio else ""
    if asked is not None and asked >= n:
        return f"the ratio asks for all {n}; at least {kept} {'stays' if kept == 1 else 'stay'}"
    if (kept == n and not asked) or kept > least_of(n, step, share, count):
        return NARROW if request.get("scope") != "layer" and kept <= n / 10 else ""
    least, by_share, by_count = least_of(n, step), least_of(n, step, share), least_of(n, step, None, count)
    reasons = [
        (kept == 1 < n, "one channel is always kept"),
        (kept == by_share > least, f"max_ratio={share} keeps the rest"),
        (kept == by_count > least, f"min_channels={count} keeps the rest"),
        (step > 1 and kept == least, f"one multiple of round_to={round_to} is always kept"),
    ]
    return "; ".join(text for holds, text in reasons if holds)
