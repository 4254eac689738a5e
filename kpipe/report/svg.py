"""Drawings that take their colours and their type from the page: matplotlib figures as inline SVG."""

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Each colour stands for a CSS variable of the page, so that one drawing serves light and dark. The two that carry
# meaning are the blue and the vermilion of Okabe and Ito, which colour-blind readers tell apart; shape repeats it.
INK, MUTED, RULE, FIRST, SECOND, PALE = "#101112", "#606162", "#d0d1d2", "#0072b2", "#d55e00", "#c6d8e4"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    PALE: "var(--pale)",
    "#fafbfc": "var(--paper)",
}
PAPER = "#fafbfc"
# right and up of the point, in steps; the first that is free is taken
PLACES = (
    (1, 0),
    (-1, 0),
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
    (0, 1),
    (0, -1),
    *((x, y) for y in (2, -2, 3, -3) for x in (1, -1, 0)),
)
WIDTH = 4.8  # inches: near one screen pixel a point on a telephone


def figure(height: float) -> tuple["Figure", "Axes"]:
    """Give an empty figure with quiet axes: no frame, a rule along x, a faint grid.

    Args:
        height: Height in inches; the width is the same for every drawing.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = drawing.subplots()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return drawing, axes


def inline(drawing: "Figure", name: str, title: str) -> str:
    """Write a figure as an `<svg>` element for the body of a page.

    The element holds no address, and its ids begin with `name`, so that several fit on one page.

    Args:
        drawing: The figure.
        name: A word that no other drawing of the page has.
        title: What the drawing shows, for those who cannot see it.

    Returns:
        The element.
    """
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawing.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", _type, text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    label = html.escape(title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _type(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}"


def place_labels(
    axes: "Axes", labelled: Sequence[tuple[float, float, str]], obstacles: Sequence[tuple[float, float]]
) -> None:
    """Write a label beside each point where it covers neither a point nor another label.

    Points that coincide on paper share one label. Where no place is free, the label stands to the right.

    Args:
        axes: The axes, with their limits set.
        labelled: x and y in data coordinates, and the label.
        obstacles: The points that no label may cover.
    """
    from matplotlib.transforms import Bbox

    drawing = axes.get_figure(root=True)
    if drawing is None:
        return
    drawing.draw_without_rendering()
    place = axes.transData.transform
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in place(obstacles)]
    merged: list[tuple[tuple[float, float], list[str]]] = []
    for x, y, label in labelled:
        same = next((names for point, names in merged if abs(place(point) - place((x, y))).max() < 5), None)
        if same is None:
            merged.append(((x, y), [label]))
        else:
            same.append(label)
    for point, names in merged:
        taken.append(_place(axes, point, " · ".join(names), taken))


def _place(axes: "Axes", point: tuple[float, float], label: str, taken: Sequence["Bbox"]) -> "Bbox":
    """Write one label at the first of the places round its point that is free, and give the room that it takes."""
    frame = axes.get_window_extent()
    text = axes.annotate(label, point, (0, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    for right, up in (*PLACES, PLACES[0]):
        text.set_position((9 * right, 12 * up))
        text.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
        box = text.get_window_extent().padded(1)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            if abs(up) > 1:
                _lead(axes, point, (9 * right, 12 * up))
            return box
    return text.get_window_extent()


def _lead(axes: "Axes", point: tuple[float, float], offset: tuple[float, float]) -> None:
    """Draw a thin line from a point to a label that stands apart from it."""
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    axes.annotate("", point, offset, textcoords="offset points", arrowprops=line)
