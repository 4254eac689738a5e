"""What the answers of a model come out of: its last activation, and whether they are probabilities."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras.src.ops import nn

from kpipe.graph.flow import has_graph, sites
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
    return _activation(_made_by(model, passing)) if has_graph(model) else None


def _activation(last: Any) -> Callable[..., Any] | None:
    return last.activation if isinstance(last, ACTIVATED) else OF_ITSELF.get(type(last))


@contextmanager
def before_probabilities(model: keras.Model, twin: keras.Model) -> Iterator[list[Callable[..., Any] | None]]:
    """Let two models answer for a while with what the softmax or sigmoid at their ends is applied to.

    Probabilities hide how far apart two models are: where one is 1 up to rounding, all that led to it may change.

    Args:
        model: A model.
        twin: One with as many outputs. Left out is what both end in, under the same name, and use nowhere else.

    Yields:
        For each output the function that was left out, None where none was.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), L.Activation("sigmoid")])
        >>> with before_probabilities(model, model) as (left_out,):
        ...     logit = model(np.array([[3.0]]))
        >>> float(logit[0, 0]), round(float(left_out(logit)[0, 0]), 3), round(float(model(np.array([[3.0]]))[0, 0]), 3)
        (3.0, 0.953, 0.953)
    """
    pairs = zip(_ends(model), _ends(twin), strict=True)
    alike = [
        pair
        if None not in pair and pair[0].name == pair[1].name and _activation(pair[0]) is _activation(pair[1])
        else None
        for pair in pairs
    ]
    with ExitStack() as undo:
        functions = [None if pair is None else [_left_out(end, undo) for end in pair] for pair in alike]
        yield [None if pair is None else pair[0] for pair in functions]


def _ends(model: keras.Model) -> list[Any]:
    """Give for each output the layer or operation that makes probabilities of it; None where there is none.

    One that is called elsewhere too, or whose answers go on, is none.
    """
    if not has_graph(model):
        return [None] * len(model.outputs or [])
    flow = sites(model)
    makers = {key: site for site in flow.sites for key in site.outputs}
    calls = Counter(id(site.operation) for site in flow.sites)
    found = []
    for key in flow.outputs:
        site, end = makers[key], makers[key].operation
        alone = calls[id(end)] == 1 and flow.outputs.count(key) == 1 and not flow.consumers(site)
        while isinstance(end, L.Wrapper):
            end = end.layer
        plain = len(site.inputs) == 1 and (site.node.arguments.kwargs or {}).get("mask") is None
        found.append(end if alone and plain and _activation(end) in PROBABILITIES else None)
    return found


def _left_out(end: Any, undo: ExitStack) -> Callable[..., Any]:
    """Let a layer or operation hand on what its function is applied to; give the function."""
    if isinstance(end, ACTIVATED):
        undo.callback(setattr, end, "activation", end.activation)
        function, end.activation = end.activation, keras.activations.linear
        return function
    function, own = end.call, end.__dict__.get("call")
    undo.callback(end.__dict__.pop if own is None else end.__dict__.__setitem__, "call", own)
    end.__dict__["call"] = lambda x, *_, **__: x
    return function


def _made_by(model: keras.Model, passing: Passing) -> Any:
    """Give the layer or operation that makes the values of a model's first output; None where an input has them."""
    flow = sites(model)
    makers = {key: site for site in flow.sites for key in site.outputs}
    taken = flow.outputs[:1]
    while taken:
        site = makers[taken[0]]
        layer, taken = site.operation, site.inputs[:1]
        while isinstance(layer, L.Wrapper):
            layer = layer.layer
        if has_graph(layer):
            layer = _made_by(layer, passing)
        if not (layer is None or isinstance(layer, passing) or quantization_of(layer) == "same"):
            return layer
    return None


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
