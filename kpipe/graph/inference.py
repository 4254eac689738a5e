"""Calls as they are made in inference: of one layer or operation, and of a model whose states are at rest."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kpipe.graph.flow import functional


def at_inference(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer, an operation or a function on values, told that nothing is trained.

    Outside of a model, layers that vary images do so unless they are told.

    Args:
        function: What is called.
        *args: Its arguments.
        **kwargs: Likewise.

    Returns:
        What comes out.

    Example:
        >>> import keras
        >>> vary = keras.layers.RandomBrightness(0.9, value_range=(0, 1))
        >>> at_inference(vary, keras.ops.ones((1, 1, 1, 1))).numpy().item()
        1.0
    """
    if getattr(function, "_call_has_training_arg", False):
        kwargs["training"] = False
    return function(*args, **kwargs)


def at_rest(model: keras.Model) -> keras.StatelessScope:
    """Give a scope in which stateful layers start from zero, and nothing that a call changes lasts."""
    stateful = [one for one in model._flatten_layers() if isinstance(one, keras.layers.RNN) and one.stateful]
    states = [state for layer in stateful for state in keras.tree.flatten(layer.states)]
    return keras.StatelessScope(state_mapping=[(state, keras.ops.zeros_like(state)) for state in states])


def answer_at_rest(model: keras.Model, inputs: Sequence[Any]) -> list[Any]:
    """Compute a model's outputs in inference, from one array for each input."""
    with at_rest(model):
        packed = keras.tree.pack_sequence_as(functional(model)._inputs_struct, list(inputs))
        return keras.tree.flatten(model(packed, training=False))
