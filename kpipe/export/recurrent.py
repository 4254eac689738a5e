"""Recurrent layers written out step by step, for files without a loop; docs/export.md tells what that brings."""

from typing import Any

import keras

from kpipe.errors import ExportError
from kpipe.graph import replay


def is_recurrent(layer: Any) -> bool:
    """Say whether a layer steps through a sequence: LSTM, GRU, SimpleRNN, RNN, or Bidirectional around one.

    Example:
        >>> is_recurrent(keras.layers.GRU(4)), is_recurrent(keras.layers.Dense(4))
        (True, False)
    """
    return isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)


def recurrence(model: keras.Model, unroll: bool) -> str | None:
    """Say how a file of a model steps through sequences: "loop" or "unrolled"; None where no layer does."""
    found = [layer for layer in model._flatten_layers() if is_recurrent(layer)]
    if not found:
        return None
    rolled = [layer for layer in found if isinstance(layer, keras.layers.RNN) and not layer.unroll]
    return "loop" if rolled and not unroll else "unrolled"


def unrolled(model: keras.Model) -> keras.Model:
    """Write the steps of recurrent layers out, one after another, with the weights that they have.

    Args:
        model: A model with recurrent layers; it is not changed.

    Returns:
        A Functional model that computes the same.

    Raises:
        ExportError: When no layer is recurrent, or the number of steps is open.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4)])
        >>> unrolled(model).layers[-1].unroll
        True
    """
    if recurrence(model, False) is None:
        raise ExportError(f"unroll=True: model {model.name!r} has no recurrent layer to be unrolled. Leave it out.")
    made: dict[int, Any] = {}

    def call(site: Any, *args: Any, **kwargs: Any) -> Any:
        layer = site.operation
        if not is_recurrent(layer):
            return layer(*args, **kwargs)
        if id(layer) not in made:
            made[id(layer)] = _written_out(layer, site.input_shapes[0])
        return made[id(layer)](*args, **kwargs)

    return replay(model, call)


def _written_out(layer: Any, shape: tuple[int | None, ...]) -> Any:
    if shape[1] is None:
        raise ExportError(
            f"unroll=True: {layer.name!r} takes sequences of an open length, {shape}. Fix the length in keras.Input."
        )
    config = layer.get_config()
    for part in ("layer", "backward_layer"):
        if config.get(part):
            config[part]["config"]["unroll"] = True
    if isinstance(layer, keras.layers.RNN):
        config["unroll"] = True
    copy = type(layer).from_config(config)
    copy.build(shape)
    copy.set_weights(layer.get_weights())
    return copy
