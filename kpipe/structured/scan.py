"""What a sensitivity scan found: a table, a drawing, and the ratios that follow."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kpipe.atomic import replace_atomically
from kpipe.errors import KpipeError

LEGEND = 12
"""Most groups that a plot names; more are coloured by their place in the model."""


@dataclass(frozen=True)
class GroupSensitivity:
    """Hold what a model is worth without some of the channels of one group.

    Args:
        name: The group's name: path of the first layer that produces its channels.
        layers: All the layers that produce them.
        channels: How many there are.
        ratios: The fractions that were asked for, ascending.
        removed: How many channels went at each of them.
        values: The metric at each of them.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    ratios: tuple[float, ...]
    removed: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Hold a scan: a metric against the ratio at which each group alone is cut; printed, it is a table.

    Args:
        metric: "accuracy", "loss" or the name of a function.
        higher_is_better: Whether a higher value of the metric is better.
        baseline: The metric of the whole model.
        criterion: What chose the channels.
        groups: One entry for each group, in the order of the model.
        frozen: Layer path -> why its channels stay.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    criterion: str
    groups: tuple[GroupSensitivity, ...]
    frozen: Mapping[str, str] = field(default_factory=dict)

    def drops(self, group: GroupSensitivity) -> tuple[float, ...]:
        """Give how much worse than the whole model it is at each ratio; below 0 where it is better."""
        sign = 1 if self.higher_is_better else -1
        return tuple(sign * (self.baseline - value) for value in group.values)

    def ratios(self, max_drop: float = 0.01) -> dict[str, float]:
        """Give for each group the largest ratio up to which it loses no more than so much, cut alone.

        Args:
            max_drop: The loss allowed, in the metric's own unit: 0.01 of accuracy is one point.

        Returns:
            A regex that matches the group's name -> ratio, 0.0 for a group that bears none: what `plan_filters` takes
            as its ratio. Parts of layers, such as "attention:heads", come first: their layers bear other groups too.

        Example:
            >>> groups = [GroupSensitivity("a.b", ("a.b",), 10, (0.1, 0.2, 0.3), (1, 2, 3), (0.90, 0.88, 0.90))]
            >>> Sensitivity("accuracy", True, 0.9, "l1", tuple(groups)).ratios(max_drop=0.01)
            {'^a\\\\.b$': 0.1}
        """
        found: dict[str, float] = {}
        for group in sorted(self.groups, key=lambda one: one.name in one.layers):
            best = 0.0
            for ratio, drop in zip(group.ratios, self.drops(group), strict=True):
                if not drop <= max_drop:
                    break
                best = ratio
            found[f"^{re.escape(group.name)}$"] = best
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give the scan as plain data."""
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draw the metric against the ratio, a line for each group.

        Args:
            path: The file; its ending says the format: .svg, .png or .pdf.

        Raises:
            KpipeError: When the file cannot be written, or there is no group to draw.
        """
        if not self.groups:
            raise KpipeError("The scan has no group to draw.")
        drawing = _draw(self)
        try:
            with replace_atomically(path) as partial:
                drawing.savefig(partial, dpi=150)
        except (OSError, ValueError) as fault:
            raise KpipeError(f"Cannot draw to {str(path)!r}: {fault}.") from fault

    def __str__(self) -> str:
        ratios = sorted({ratio for group in self.groups for ratio in group.ratios})
        rows = [("channels of", "channels", *(f"-{ratio:.3g}" for ratio in ratios))]
        for group in self.groups:
            at = dict(zip(group.ratios, group.values, strict=True))
            rows.append((group.name, str(group.channels), *(self._write(at[r]) if r in at else "" for r in ratios)))
        name, *numbers = (max(len(row[column]) for row in rows) for column in range(len(rows[0])))
        lines = [f"{self.metric} of the whole model: {self._write(self.baseline)}; channels chosen by {self.criterion}"]
        for first, *rest in rows:
            lines.append("  ".join([first.ljust(name), *(c.rjust(w) for c, w in zip(rest, numbers, strict=True))]))
        lines += [f"{path}: stays, {reason}" for path, reason in self.frozen.items()]
        return "\n".join(line.rstrip() for line in lines)

    def _write(self, value: float) -> str:
        return f"{value:.1%}" if self.metric == "accuracy" else f"{value:.4g}"


def _draw(found: Sensitivity) -> Any:
    """Draw a scan."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = drawing.subplots()
    place = Normalize(0, max(len(found.groups) - 1, 1))
    for number, group in enumerate(found.groups):
        x, y = (0.0, *group.ratios), (found.baseline, *group.values)
        axes.plot(x, y, marker="o", markersize=3, color=colormaps["viridis"](place(number)), label=group.name)
    axes.axhline(found.baseline, color="#808080", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel("Fraction of the group's channels removed")
    axes.set_title(found.metric, loc="left", fontsize=10)
    axes.grid(color="#d0d1d2", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(found.groups) <= LEGEND:
        axes.legend(frameon=False, fontsize=8)
    else:
        bar = drawing.colorbar(ScalarMappable(place, "viridis"), ax=axes, ticks=[place.vmin, place.vmax])
        bar.ax.set_yticklabels([found.groups[0].name, found.groups[-1].name], fontsize=8)
    return drawing
