"""The drawing of a pruning schedule: what was asked for over the steps of a training, and what was reached."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kpipe.report.record import RunRecord, StageRecord, mapping, number, sequence
from kpipe.report.svg import FIRST, INK, MUTED, SECOND, figure, inline
from kpipe.report.units import count, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
"""Steps, and the fraction that is gone there."""

WAYS = 6
"""Schedules of one stage that are drawn; more of them are only counted."""


@dataclass(frozen=True)
class Way:
    """Hold the schedule of one set of weights: what was asked for, and what was reached at each update."""

    weights: str
    updates: int
    asked: Points
    reached: Points

    @property
    def end(self) -> float:
        """The fraction at the end: what was reached, else what was asked for."""
        return (self.reached or self.asked)[-1][1]


def ways(stage: StageRecord) -> list[Way]:
    """Read the schedules that a stage followed.

    Example:
        >>> from kpipe.report.record import record
        >>> noted = {"weights": "all", "updates": 1, "asked": [[0, 0.0], [10, 0.5]], "reached": [[10, 0.5]]}
        >>> run = record({"stages": [{"name": "01-prune_weights", "details": {"schedules": [noted]}}]})
        >>> ways(run.stages[0])
        [Way(weights='all', updates=1, asked=[(0, 0.0), (10, 0.5)], reached=[(10, 0.5)])]
    """
    noted = [mapping(item) for item in sequence(stage.details.get("schedules"))]
    found = [_way(one) for one in noted]
    return [way for way in found if len(way.asked) > 1]


def _way(noted: Mapping[str, Any]) -> Way:
    asked, reached = _points(noted.get("asked")), _points(noted.get("reached"))
    return Way(str(noted.get("weights", "")), number(noted.get("updates")) or len(reached), asked, reached)


def _points(raw: Any) -> Points:
    pairs = [sequence(item) for item in sequence(raw)]
    numbers = [tuple(number(value) for value in pair) for pair in pairs if len(pair) == 2]
    return [(x, y) for x, y in numbers if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def schedules_over_steps(run: RunRecord) -> list[tuple[str, str, str]]:
    """Draw the schedules of each stage that followed one, one drawing for each set of weights.

    Returns:
        What each drawing is of, what it says in words, and the drawing.
    """
    return [
        (_title(stage, way, found), _words(way, index, found), _draw(stage, way, index))
        for stage in run.stages
        if (found := ways(stage))
        for index, way in enumerate(found[:WAYS])
    ]


def _what(stage: StageRecord) -> str:
    return "channels removed" if stage.stage == "prune_filters" else "zeros"


def _title(stage: StageRecord, way: Way, found: list[Way]) -> str:
    whose = f" of {way.weights}" if len(found) > 1 else ""
    return f"{stage.name}: {_what(stage)}{whose}."


def _words(way: Way, index: int, found: list[Way]) -> str:
    text = f"What the schedule asks for, and what was reached in {count(way.updates)} updates."
    last = index + 1 == WAYS < len(found)
    return f"{text} {count(len(found) - WAYS)} more sets of weights are not drawn." if last else text


def _draw(stage: StageRecord, way: Way, index: int) -> str:
    drawing, axes = figure(2.6)
    axes.plot(*zip(*way.asked, strict=True), color=FIRST, linewidth=1.6, clip_on=False, zorder=2, label="asked for")
    if way.reached:
        dots = {"color": SECOND, "markersize": 3, "zorder": 3, "clip_on": False, "label": "reached"}
        axes.plot(*zip(*way.reached, strict=True), "o", **dots)
    last = way.asked[-1][0]
    _axes(axes, last, max(y for _, y in way.asked + way.reached), _what(stage))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    axes.annotate(
        share(way.end), (last, way.end), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK
    )
    name = "".join(letter if letter.isalnum() else "-" for letter in stage.name)
    title = f"{_what(stage)} asked for and reached over the steps of {stage.name}"
    return inline(drawing, f"schedule-{name}-{index}", title)


def _axes(axes: "Axes", last: float, high: float, what: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, last * 1.16)
    axes.set_ylim(0, max(high * 1.12, 0.01))
    axes.set_xticks([tick for tick in MaxNLocator(6, integer=True).tick_values(0, last) if tick <= last])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_xlabel("Optimizer updates", color=MUTED, fontsize=9)
    axes.set_title(what.capitalize(), loc="left", color=MUTED, fontsize=9)
