"""The patterns and scopes once more, by loops over single entries: what the fast ones are held to."""

import itertools
import math

import numpy as np


def sort_keep(scores, drop):
    """Sort (score, index) pairs: the first `drop` go."""
    order = np.argsort(scores.reshape(-1), kind="stable")
    keep = np.ones(scores.size, bool)
    keep[order[:drop]] = False
    return keep.reshape(scores.shape)


def entries(scores):
    """Give single entries as units: (score, [their places], whether it may go)."""
    return [(float(scores[place]), [place], True) for place in np.ndindex(scores.shape)]


def n_of_m(scores, n, m):
    """Give the entries; the n highest of each group may not go."""
    *positions, inputs, outputs = scores.shape
    spared = set()
    for position in itertools.product(*(range(size) for size in positions)):
        for column in range(outputs):
            for start in range(0, inputs, m):
                group = [(*position, row, column) for row in range(start, min(start + m, inputs))]
                ranked = sorted(group, key=lambda place: (scores[place], place))  # ties: the lowest index goes first
                spared |= {place for place in ranked[-n:] if scores[place] > -math.inf}
    return [(score, places, places[0] not in spared) for score, places, _ in entries(scores)]


def blocks(scores, rows, columns, pooling):
    """Give the blocks as units, what was dropped before counted as nothing."""
    *positions, inputs, outputs = scores.shape
    units = []
    for position in itertools.product(*(range(size) for size in positions)):
        for top, left in itertools.product(range(0, inputs, rows), range(0, outputs, columns)):
            inside = itertools.product(range(top, min(top + rows, inputs)), range(left, min(left + columns, outputs)))
            places = [(*position, *place) for place in inside]
            values = [float(scores[place]) for place in places]
            live = [value for value in values if value > -math.inf]
            pooled = (max(live) if pooling == "max" else sum(live) / len(values)) if live else -math.inf
            units.append((pooled, places, True))
    return units


UNITS = {
    "unstructured": entries,
    "2:4": lambda scores: n_of_m(scores, 2, 4),
    "1:4": lambda scores: n_of_m(scores, 1, 4),
    "4:8": lambda scores: n_of_m(scores, 4, 8),
    "2:3": lambda scores: n_of_m(scores, 2, 3),
    "block:4x1": lambda scores: blocks(scores, 4, 1, "avg"),
    "block:4x1:max": lambda scores: blocks(scores, 4, 1, "max"),
    "block:2x2": lambda scores: blocks(scores, 2, 2, "avg"),
    "block:1x3:max": lambda scores: blocks(scores, 1, 3, "max"),
    "block:20x20": lambda scores: blocks(scores, 20, 20, "avg"),
}
"""Pattern -> the units of a weight: (score, places, whether it may go), in the order of their places."""


def keep_layer(scores, sparsity, pattern):
    """Drop the round(sparsity * units) lowest of one weight, or all that may go; ties by order."""
    units = UNITS[pattern](scores)
    keep = np.ones(scores.shape, bool)
    free = sorted((unit for unit in units if unit[2]), key=lambda unit: unit[0])
    drop = round(sparsity * len(units))
    if pattern[0].isdigit():
        n, m = (int(part) for part in pattern.split(":"))
        drop = len(free) if drop >= len(units) * (m - n) // m else drop  # n of each m is a promise
    for _, places, _ in free[:drop]:
        for place in places:
            keep[place] = False
    return keep


def keep_global(scores, sparsity, pattern, ceiling=1.0, rescale=lambda values: values):
    """Go through the units of all weights from the lowest on; a weight that is at its ceiling is passed over."""
    total = sum(values.size for values in scores.values())
    wanted = round(sparsity * total)
    queue = []
    for number, (path, values) in enumerate(scores.items()):
        units = UNITS[pattern](values)
        scaled = rescale([score for score, _, _ in units])
        queue += [(score, number, path, places) for score, (_, places, free) in zip(scaled, units, strict=True) if free]
    keeps = {path: np.ones(values.shape, bool) for path, values in scores.items()}
    gone = dict.fromkeys(scores, 0)
    for score, _, path, places in sorted(queue, key=lambda unit: unit[:2]):
        left = wanted - sum(gone.values())
        if left <= 0 or 2 * left <= len(places):  # as near as can be
            break
        if score > -math.inf and gone[path] + len(places) > ceiling * scores[path].size + 1e-9:
            continue
        for place in places:
            keeps[path][place] = False
        gone[path] += len(places)
    return keeps


def lamp(values):
    """Sort ascending, then W[u]^2 / sum of W[v]^2 over v >= u, as Lee et al. define it."""
    found = [-math.inf] * len(values)
    order = sorted((value, place) for place, value in enumerate(values) if value > -math.inf)
    for u, (value, place) in enumerate(order):
        rest = sum(other**2 for other, _ in order[u:])
        found[place] = value**2 / rest if rest else 0.0
    return found


def mean(values):
    """Divide by the mean of the absolute values, what was dropped counted as nothing."""
    live = [abs(value) for value in values if value > -math.inf]
    scale = sum(live) / len(values)
    return [value / scale if scale else value for value in values]


def rigl_densities(shapes, density):
    """Solve for eps over the weights that are not dense; what would be more than dense becomes dense, one a round."""
    dense = set()
    while True:
        size = {path: math.prod(shape) for path, shape in shapes.items()}
        left = density * sum(size.values()) - sum(size[path] for path in dense)
        raw = {path: sum(shape) / size[path] for path, shape in shapes.items() if path not in dense}
        eps = left / sum(raw[path] * size[path] for path in raw)
        highest = max(raw, key=lambda path: raw[path])
        if eps * raw[highest] <= 1:
            return {path: 1.0 if path in dense else eps * raw[path] for path in shapes}
        dense.add(highest)
