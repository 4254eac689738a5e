"""How closely each part of a converted model can be held to the old one: what is made in half precision is rounded."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kpipe.legacy.rebuild import Rebuild

HALF = {"float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
"""What is allowed of what is made in half precision: four units in the last place of 1."""


def tolerances(making: Rebuild, tolerance: float) -> tuple[dict[str, float], list[float]]:
    """Say what difference is allowed of what each call gives: of values up to 1, and relative to larger ones.

    It is `tolerance` for what only layers in full precision have had a part in, and `HALF`, where that is more, from
    the first layer on that computes in half precision.

    Args:
        making: What the model was made with.
        tolerance: What is allowed in full precision.

    Returns:
        What is allowed by the place of the call, and for each output of the model in flat order.
    """
    graph, places = making.reading.graph, {}
    inputs = {key: max(tolerance, HALF.get(spec["dtype"], 0.0)) for key, spec in graph["specs"].items()}
    known = _followed(making, graph, inputs, "", places)
    return places, [known[key] for key in strings(graph["outputs"])]


def _followed(
    making: Rebuild, graph: Mapping[str, Any], inputs: Mapping[str, float], place: str, places: dict[str, float]
) -> dict[str, float]:
    """Follow the calls of a graph, and of the models in it; give what is allowed of each tensor by its key."""
    known = dict(inputs)
    for number, call in enumerate(graph["calls"]):
        entry, layer, here = making.reading.layers[call["layer"]], making.layer(call["layer"]), f"{place}{number}"
        given = strings([call["args"], call["kwargs"]])
        allowed = max(known.get(one, HALF.get(one, 0.0)) for one in given)  # an operation may name a type to cast to
        if "graph" in entry:
            inner = dict.fromkeys(strings(entry["graph"]["inputs"]), allowed)
            inside = _followed(making, entry["graph"], inner, f"{here}.", places)
            found = [inside[key] for key in strings(entry["graph"]["outputs"])]
        else:
            kinds = {one.compute_dtype for one in layer._flatten_layers()} if isinstance(layer, keras.Layer) else ()
            places[here] = max([allowed, *(HALF.get(kind, 0.0) for kind in kinds)])
            found = [places[here]] * len(list(strings(call["outputs"])))
        known.update(zip(strings(call["outputs"]), found, strict=True))
    return known


def strings(value: Any) -> Iterator[str]:
    """Give the strings in a description, among them the keys of its tensors; what is in a dict by its sorted keys.

    Example:
        >>> list(strings([{"b": {"$tensor": "y"}, "a": {"$tuple": [{"$tensor": "x"}, 2]}}, "float16"]))
        ['x', 'y', 'float16']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from strings(value[key])
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
