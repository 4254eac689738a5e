"""What the answers of a model come out of: its last activation, and whether they are probabilities."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras.src.ops import nn

from kpipe.graph.flow import functional, has_graph
from kpipe.layers import quantization_of

ACTIVATED = (
    *(L.Activation, L.Dense, L.EinsumDense, L.Conv1D, L.Conv2D, L.Conv3D),
    *(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose),
    *(L.DepthwiseConv1D, L.DepthwiseConv2D, L.SeparableConv1D, L.SeparableConv2D),
)
"""Layers that end in their own `activation`."""

OF_ITSELF: dict[type, Callable[..., Any]] = {
    L.Softmax: keras.activations.softmax,
    nn.Softmax: keras.activations.softmax,
    nn.Sigmoid: keras.activations.sigmoid,
}
"""Layers and operations that are an activation -> which."""

PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)

Passing = tuple[type, ...]
"""Layers that no rule knows and that hand on what they get, as those that round it."""


def last_activation(model: keras.Model, passing: Passing = ()) -> Callable[..., Any] | None:
    """Find the activation that a model ends in.

    The output is followed back to where its values are made: through layers that only move values, and into nested
    models and wrappers. An activation further back, as in a squeeze-and-excite block, says nothing.

    Args:
        model: A model; of several outputs the first counts.
        passing: Layers to go through beside those whose rule says that they hand values on.

    Returns:
        The function, `keras.activations.linear` for none; None where it is not known: for a model without a graph, and
        behind a layer that computes something else, such as a sum.

    Example:
        >>> last_activation(keras.Sequential([keras.Input((2,)), L.Dense(3), L.Softmax(), L.Reshape((3, 1))])).__name__
        'softmax'
    """
    return _activation(_made_by(model.outputs[0], passing)) if has_graph(model) else None


def _activation(last: Any) -> Callable[..., Any] | None:
    return last.activation if isinstance(last, ACTIVATED) else OF_ITSELF.get(type(last))


@contextmanager
def before_probabilities(*models: keras.Model) -> Iterator[None]:
    """Let models answer for a while with what a softmax or sigmoid at their ends is applied to.

    Probabilities hide how far apart two models are: where one is 1 up to rounding, all that led to it may change.

    Args:
        *models: Models; what does not end so, or has no graph, answers as it does.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), L.Activation("sigmoid")])
        >>> with before_probabilities(model):
        ...     logit = model(np.array([[3.0]]))
        >>> float(logit[0, 0]), round(float(model(np.array([[3.0]]))[0, 0]), 3)
        (3.0, 0.953)
    """
    ends = [_made_by(output, ()) for model in models if has_graph(model) for output in model.outputs]
    found = {id(end): end for end in ends if _activation(end) in PROBABILITIES}
    kept = [(end, end.activation) for end in found.values() if isinstance(end, ACTIVATED)]
    itself = [end for end in found.values() if not isinstance(end, ACTIVATED)]
    try:
        for end, _ in kept:
            end.activation = keras.activations.linear
        for end in itself:
            end.__dict__["call"] = lambda x, *_, **__: x
        yield
    finally:
        for end, activation in kept:
            end.activation = activation
        for end in itself:
            end.__dict__.pop("call", None)


def _made_by(tensor: Any, passing: Passing) -> Any:
    """Give the layer or operation that makes a tensor's values; None where they come from an input."""
    while True:
        layer, call, position = tensor._keras_history
        fed = layer._inbound_nodes[call].input_tensors
        while isinstance(layer, L.Wrapper):
            layer = layer.layer
        if has_graph(layer):
            made = _made_by(functional(layer).outputs[position], passing)
            if made is not None:
                return made
        elif not (isinstance(layer, passing) or quantization_of(layer) == "same"):
            return layer
        if not fed:
            return None
        tensor = fed[0]


def gives_probabilities(model: keras.Model, ask: Callable[[], np.ndarray] | None = None, passing: Passing = ()) -> bool:
    """Tell whether a model answers with probabilities rather than with logits.

    A softmax or a sigmoid at its end says that it does, and no activation that it does not. Where it ends in something
    else, its answers say it: all in [0, 1], and those of several classes with a sum of 1.

    Args:
        model: A model with one output.
        ask: Gives some answers of it, shape (..., classes). None: what ends in something else counts as logits.
        passing: As in `last_activation`.

    Example:
        >>> gives_probabilities(keras.Sequential([keras.Input((2,)), L.Dense(3, activation="softmax")]))
        True
    """
    activation = last_activation(model, passing)
    if activation in (*PROBABILITIES, keras.activations.linear) or ask is None:
        return activation in PROBABILITIES
    answers = ask()
    one = answers.shape[-1] == 1 or np.allclose(answers.sum(axis=-1), 1, atol=0.02)
    return bool(one and answers.min() >= 0 and answers.max() <= 1.0)
