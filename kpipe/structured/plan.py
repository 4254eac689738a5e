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
from kpipe.graph import Trace
from kpipe.structured.ranking import keep_of, step_of

TARGETS = ("macs", "params")
"""What a plan can aim at."""


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
        request: What was asked for: ratio or target, criterion, scope, round_to.
        before: "params" and "macs" of the model.
        after: The same once the plan is carried out.
    """

    groups: tuple[GroupPlan, ...]
    frozen: Mapping[str, str] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, int | None] = field(default_factory=dict)
    after: Mapping[str, int | None] = field(default_factory=dict)

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
            return cls(**{**data, "groups": tuple(GroupPlan(**group) for group in groups)})
        except (KeyError, TypeError) as fault:
            raise KpipeError(f"Expected a plan as FilterPlan.save writes it. Received: {fault}.") from fault

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

    def __str__(self) -> str:
        rows = [("channels of", "before", "kept", "removed", "note")]
        for g in self.groups:
            rows.append(
                (
                    g.name,
                    str(g.channels),
                    str(g.kept),
                    f"{len(g.removed) / g.channels:.0%}",
                    "; ".join(filter(None, (_tied(g), g.note))),
                )
            )
        name, *numbers = (max(len(row[i]) for row in rows) for i in range(4))
        lines = [
            "  ".join([row[0].ljust(name), *(c.rjust(w) for c, w in zip(row[1:4], numbers, strict=True)), row[4]])
            for row in rows
        ]
        lines += [f"{path}: stays, {reason}" for path, reason in self.frozen.items()]
        for kind in TARGETS:
            if self.before.get(kind) and self.after.get(kind) is not None:
                before, after = self.before[kind] or 0, self.after[kind] or 0
                lines.append(f"{kind}: {before:,} -> {after:,} ({after / before:.1%} remain)")
        return "\n".join(line.rstrip() for line in lines)


def _tied(group: GroupPlan) -> str:
    others = group.layers[1:]
    return f"tied: {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}" if others else ""


def describe(traced: Trace, removed: Sequence[np.ndarray], request: Mapping[str, Any]) -> FilterPlan:
    """Write down a choice as a plan, with what it brings and a note where fewer channels go than asked."""
    keep, ratio, round_to = keep_of(traced, removed), request.get("ratio"), request.get("round_to", 1)
    groups = []
    for group, places in zip(traced.groups, removed, strict=True):
        note, n, kept = "", len(group), len(group) - len(places)
        asked = math.floor(ratio * n + 0.5) if ratio is not None and request.get("scope") == "layer" else None
        if asked is not None and asked >= n:
            note = f"asked to remove all {n}; {kept} kept"
        elif kept == 1 < n:
            note = "one channel is always kept"
        elif round_to > 1 and kept == min(step_of(group, round_to), n):
            note = f"one multiple of round_to={round_to} is always kept"
        groups.append(GroupPlan(group.name, group.layers, n, tuple(int(i) for i in places), note))
    before = {"macs": traced.macs(), "params": traced.params()}
    after = {"macs": traced.macs(keep), "params": traced.params(keep)}
    return FilterPlan(tuple(groups), dict(traced.frozen), dict(request), before, after)
