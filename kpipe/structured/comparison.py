"""Two plans side by side."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kpipe.errors import KpipeError

if TYPE_CHECKING:
    from kpipe.structured.plan import FilterPlan


@dataclass(frozen=True)
class GroupComparison:
    """Say what two plans do to one group.

    Args:
        name: Of the group.
        channels: How many it has.
        this: How many the one plan keeps.
        other: How many the other plan keeps.
        both: How many both remove.
    """

    name: str
    channels: int
    this: int
    other: int
    both: int


@dataclass(frozen=True)
class PlanComparison:
    """Set two plans side by side; printed, it is a table.

    Args:
        groups: One entry for each group that either plan treats.
        before: Name of what is counted or measured -> that of the model, where the plans agree on it.
        this: The same once the one plan is carried out.
        other: The same with the other plan.
    """

    groups: tuple[GroupComparison, ...]
    before: dict[str, float]
    this: dict[str, float]
    other: dict[str, float]

    @property
    def total(self) -> GroupComparison:
        """All groups together."""
        sums = (sum(getattr(g, name) for g in self.groups) for name in ("channels", "this", "other", "both"))
        return GroupComparison("all", *sums)

    def __str__(self) -> str:
        rows = [("channels of", "before", "this", "other", "removed by both")]
        rows += [
            (g.name, *(str(number) for number in (g.channels, g.this, g.other, g.both)))
            for g in (*self.groups, self.total)
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        for kind, before in self.before.items():
            this, other = self.this[kind] / before, self.other[kind] / before
            lines.append(f"{kind}: {this:.1%} and {other:.1%} of {before:,.6g} remain")
        return "\n".join(lines)


def compare(this: "FilterPlan", other: "FilterPlan") -> PlanComparison:
    """Set two plans of one model side by side; see `FilterPlan.compare`.

    Raises:
        KpipeError: When a group of one name has other channels in the other plan.
    """
    mine, theirs = ({group.name: group for group in plan.groups} for plan in (this, other))
    rows = []
    for name in dict.fromkeys((*mine, *theirs)):
        one, two = mine.get(name), theirs.get(name)
        channels = {group.channels for group in (one, two) if group is not None}
        if len(channels) > 1:
            sizes = " and ".join(map(str, sorted(channels)))
            raise KpipeError(f"The plans speak of different models: {name!r} has {sizes} channels.")
        gone, gone_too = (set(group.removed) if group else set() for group in (one, two))
        (n,) = channels
        rows.append(GroupComparison(name, n, n - len(gone), n - len(gone_too), len(gone & gone_too)))
    known = [
        kind
        for kind, value in this.before.items()
        if value and value == other.before.get(kind) and None not in (this.after.get(kind), other.after.get(kind))
    ]
    before, after, after_too = (
        {kind: float(values[kind] or 0) for kind in known} for values in (this.before, this.after, other.after)
    )
    return PlanComparison(tuple(rows), before, after, after_too)
