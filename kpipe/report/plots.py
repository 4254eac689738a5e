"""The drawings of a report: what was gained and what it cost, over the stages and over the layers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kpipe.report.record import LayerRecord, RunRecord, StageRecord, number, sequence
from kpipe.report.svg import FIRST, INK, MUTED, PALE, PAPER, RULE, SECOND, figure, inline, place_labels
from kpipe.report.tables import FORMAT_NAMES, accuracy, baseline_accuracy
from kpipe.report.units import count, kilobytes, milliseconds, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS = 48  # layers in one drawing; of larger models the largest are shown


def accuracy_against_size(run: RunRecord) -> str | None:
    """Draw the path of the stages through file size and accuracy, None when fewer than two points are known."""
    return _path(run, "size", lambda file: file.bytes and file.bytes / 1000, "File size, KB", kilobytes_axis)


def accuracy_against_latency(run: RunRecord) -> str | None:
    """Draw the path of the stages through latency and accuracy, None when fewer than two points are known."""
    return _path(run, "latency", lambda file: file.median_ms, "Median latency on the file, ms", milliseconds)


def kilobytes_axis(value: float) -> str:
    """Write a tick of an axis that is in KB already."""
    return kilobytes(1000 * value)


def _path(run: RunRecord, name: str, figure_of: Callable, label: str, write: Callable[[float], str]) -> str | None:
    series = {one: _points(run.stages, one, figure_of) for one in run.formats}
    series = {one: points for one, points in series.items() if points}
    if sum(len(points) for points in series.values()) < 2:
        return None
    drawing, axes = figure(3.5)
    every = [point for points in series.values() for point in points]
    _scale(axes, [x for x, _, _ in every], write)
    _accuracy_axis(axes, run, [y for _, y, _ in every])
    looks = itertools.cycle(((FIRST, "o"), (SECOND, "s"), (MUTED, "D")))
    for (format_name, points), (colour, marker) in zip(series.items(), looks, strict=False):
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.45, zorder=2)
        axes.plot(x[:-1], y[:-1], marker, color=colour, markersize=6, markerfacecolor=PAPER, zorder=3)
        named = FORMAT_NAMES.get(format_name, format_name)
        axes.plot(x[-1:], y[-1:], marker, color=colour, markersize=7.5, zorder=3, label=named)
    axes.set_xlabel(label, color=MUTED, fontsize=9)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    place_labels(axes, next(iter(series.values())), [(x, y) for x, y, _ in every])
    return inline(drawing, name, f"Accuracy against {name} over the stages")


def _points(stages: Sequence[StageRecord], format_name: str, figure_of: Callable) -> list[tuple[float, float, str]]:
    found = []
    for stage in stages:
        file = stage.file(format_name)
        x, y = (figure_of(file) if file else None), accuracy(stage, file)
        if x and y is not None and math.isfinite(x) and math.isfinite(y):
            found.append((x, 100 * y, stage.name))
    return found


def _scale(axes: "Axes", values: list[float], write: Callable[[float], str]) -> None:
    """Take a logarithmic axis where the figures span more than a factor of three; leave room for labels."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if high > 3 * low:
        axes.set_xscale("log")
        room = (high / low) ** 0.18
        axes.set_xlim(low / room, high * room)
        steps = [step * 10.0**power for power in range(-7, 10) for step in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        room = 0.25 * ((high - low) or high)
        axes.set_xlim(max(0.0, low - room), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _accuracy_axis(axes: "Axes", run: RunRecord, values: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    limits = [number(stage.config.get("max_accuracy_drop")) for stage in run.stages]
    allowed = min((one for one in limits if one is not None), default=None)
    reference = baseline_accuracy(run)
    floor = None if allowed is None or reference is None else 100 * (reference - allowed)
    high = max(values)
    low = min(values) if floor is None else min(floor, *values)
    room = max(0.22 * (high - low), 0.3)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_title("Accuracy", loc="left", color=MUTED, fontsize=9)
    if floor is not None:
        axes.axhline(floor, color=SECOND, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            "lowest accuracy the recipe allows",
            (1, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color=MUTED,
        )


def sparsity_per_layer(run: RunRecord) -> str | None:
    """Draw the fraction of zeros in each layer of the last model, None when no weight is zero."""
    measured = [stage for stage in run.stages if stage.layers]
    layers = [one for one in measured[-1].layers if one.sparsity is not None] if measured else []
    layers = _largest([one for one in layers if "Normalization" not in one.kind])
    if not any(one.sparsity for one in layers):
        return None
    drawing, axes = _bars([one.layer for one in layers])
    rows = range(len(layers))
    axes.barh(rows, [1.0] * len(layers), height=0.62, color=PALE)
    axes.barh(rows, [one.sparsity or 0.0 for one in layers], height=0.62, color=FIRST)
    _row_labels(axes, [1.0] * len(layers), [share(one.sparsity) for one in layers])
    return inline(drawing, "sparsity", f"Fraction of zeros per layer after {measured[-1].name}")


def channels(run: RunRecord) -> list[tuple[str, int, int]]:
    """Give each layer's channels in the first and in the last float model; 0 where the last one has no such layer."""
    floats = run.measured()
    if len(floats) < 2:
        return []
    last = {layer.layer: layer.channels for layer in floats[-1].layers}
    first = [one for one in floats[0].layers if one.channels and one.params and "Normalization" not in one.kind]
    return [(one.layer, one.channels or 0, last.get(one.layer) or 0) for one in _largest(first)]


def channels_per_layer(run: RunRecord) -> str | None:
    """Draw the channels that each layer kept, None when no layer lost any."""
    kept = channels(run)
    if not any(before != after for _, before, after in kept):
        return None
    drawing, axes = _bars([layer for layer, _, _ in kept])
    rows = range(len(kept))
    axes.barh(rows, [before for _, before, _ in kept], height=0.62, color=PALE)
    axes.barh(rows, [after for _, _, after in kept], height=0.62, color=FIRST)
    ends = [float(max(before, after)) for _, before, after in kept]
    _row_labels(axes, ends, [f"{count(after)} of {count(before)}" for _, before, after in kept])
    return inline(drawing, "channels", "Channels kept per layer, from the first to the last model")


def _largest(layers: list[LayerRecord]) -> list[LayerRecord]:
    """Keep the layers with most parameters, in the order of the model."""
    kept = sorted(range(len(layers)), key=lambda index: -(layers[index].params or 0))[:LAYERS]
    return [layers[index] for index in sorted(kept)]


def _bars(names: list[str]) -> tuple:
    drawing, axes = figure(0.35 + 0.26 * len(names))
    short = [name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}" for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    return drawing, axes


def _row_labels(axes: "Axes", ends: list[float], labels: list[str]) -> None:
    widest = max(ends)
    axes.set_xlim(0, widest * 1.22)
    for row, (end, label) in enumerate(zip(ends, labels, strict=True)):
        axes.text(end + 0.015 * widest, row, label, va="center", fontsize=9, color=MUTED)


def training_curves(run: RunRecord) -> list[tuple[str, str]]:
    """Draw each figure that training followed, on the training and on the validation split, over all the stages.

    Returns:
        A title and a drawing for the accuracy and for the loss, where the run has their history.
    """
    names = dict.fromkeys(name.removeprefix("val_") for stage in run.stages for name in stage.history)
    chosen = [name for name in names if name.endswith("accuracy")][:1] + [name for name in names if name == "loss"]
    drawn = [(name, _curves(run, name)) for name in chosen]
    return [(name, drawing) for name, drawing in drawn if drawing]


def _curves(run: RunRecord, name: str) -> str | None:
    """Draw one figure over the epochs of all stages, end to end, with a rule where a stage begins."""
    drawing, axes = figure(2.9)
    start, seen, starts = 0, [], []
    for stage in run.stages:
        curves = [[number(value) for value in sequence(stage.history.get(key))] for key in (name, f"val_{name}")]
        length = max(len(curve) for curve in curves)
        if not length:
            continue
        starts.append((start, stage.name.split("-")[0]))
        for curve, (colour, style) in zip(curves, ((FIRST, "-"), (SECOND, (0, (4, 1.5)))), strict=True):
            values = [math.nan if value is None else value for value in curve]
            epochs = [start + 1 + index for index in range(len(values))]
            axes.plot(epochs, values, color=colour, linestyle=style, linewidth=1.6, marker="o", markersize=2.2)
            seen += [value for value in values if math.isfinite(value)]
        start += length
    if start < 2 or len(seen) < 2:
        return None
    for begin, label in starts:
        axes.axvline(begin + 0.5, color=RULE, linewidth=1)
        top = axes.get_xaxis_transform()
        axes.text(begin + 0.6, 1.0, label, transform=top, fontsize=8, color=MUTED, va="bottom")
    _curve_axes(axes, name, seen, start)
    return inline(drawing, f"curve-{name.replace('_', '-')}", f"{name} over the epochs of all stages")


def _curve_axes(axes: "Axes", name: str, seen: list[float], epochs: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("Epoch", color=MUTED, fontsize=9)
    if name.endswith("accuracy"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    else:
        if min(seen) > 0 and max(seen) > 20 * min(seen):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(seen) < 100 * min(seen) else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lines = [
        Line2D([], [], color=FIRST, linewidth=1.6, label="training"),
        Line2D([], [], color=SECOND, linewidth=1.6, linestyle=(0, (4, 1.5)), label="validation"),
    ]
    axes.legend(handles=lines, frameon=False, fontsize=9, labelcolor=INK, loc="best")
