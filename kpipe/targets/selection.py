"""Which layers a user means: by path, by class, by a function."""

import re
from collections.abc import Callable, Sequence

import keras

from kpipe.errors import KpipeError
from kpipe.layers import layers_within, weight_facts_of

LayerFilter = str | type | Sequence[type] | Callable[[keras.Layer], bool] | None
"""None for every layer, a regular expression on the weight's path, layer classes, or a function of the layer."""

Selector = Callable[[keras.Layer, Sequence[str]], bool]
"""From the layer that holds a weight, and the paths that the weight goes by, to whether it is meant."""


def selector(model: keras.Model, layers: LayerFilter) -> Selector:
    """Make a function that says which weights of a model a filter means.

    Args:
        model: The model.
        layers: None for all; a regular expression searched in the path; a layer class or several, each of which means
            what is inside it too, as the cell of an LSTM; or a function of the layer that holds the weight. Of parts
            that a Keras layer makes for itself, as the cell of an LSTM or the projections of an attention, the function
            is given the layer itself.

    Raises:
        KpipeError: When the filter is none of these.

    Example:
        >>> lstm = keras.layers.LSTM(2, name="memory")
        >>> net = keras.Sequential([keras.Input((4, 3)), lstm])
        >>> chosen = selector(net, keras.layers.LSTM), selector(net, lambda layer: layer.name == "memory")
        >>> [selects(lstm.cell, ["memory/lstm_cell/kernel"]) for selects in chosen]
        [True, True]
    """
    if layers is None:
        return lambda layer, paths: True
    if isinstance(layers, keras.Layer):  # it can be called, but not to ask it about another layer
        raise KpipeError(_unfit(layers))
    if isinstance(layers, str):
        return _by_path(layers)
    if isinstance(layers, type | list | tuple):
        classes, around = _classes(layers), _surroundings(model)
        return lambda layer, paths: any(isinstance(one, classes) for one in around(layer))
    if callable(layers):
        around = _surroundings(model)
        return lambda layer, paths: bool(layers(_whole(around(layer))))
    raise KpipeError(_unfit(layers))


def _by_path(expression: str) -> Selector:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise KpipeError(f"layers is {expression!r}, which is no regular expression: {error}.") from error
    return lambda layer, paths: any(pattern.search(path) for path in paths)


def _classes(layers: type | Sequence[type]) -> tuple[type, ...]:
    classes = (layers,) if isinstance(layers, type) else tuple(layers)
    if not classes or not all(isinstance(one, type) and issubclass(one, keras.Layer) for one in classes):
        raise KpipeError(_unfit(layers))
    return classes


def _unfit(layers: object) -> str:
    return (
        f"layers is {layers!r}; expected None, a regular expression on paths such as 'block1/|block2/', a layer class "
        "or a tuple of them, or a function of a layer."
    )


def _surroundings(model: keras.Model) -> Callable[[keras.Layer], list[keras.Layer]]:
    """Make a function that gives a layer and all that stand around it, from the inside out."""
    parents: dict[int, list[keras.Layer]] = {}
    for outer in layers_within(model):
        for inner in outer._layers:
            parents.setdefault(id(inner), []).append(outer)

    def around(layer: keras.Layer) -> list[keras.Layer]:
        found = [layer]
        for one in found:  # grows while it is gone through
            found += [outer for outer in parents.get(id(one), ()) if all(outer is not other for other in found)]
        return found

    return around


def _whole(around: Sequence[keras.Layer]) -> keras.Layer:
    """Give the outermost layer that counts what is inside it as parts of itself; the layer when there is none."""
    return next((one for one in reversed(around) if weight_facts_of(one).whole), around[0])
