"""Activation functions written as layers that both runtimes compute in the same whole numbers."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L

from kpipe.layers.operations.operands import classes

FUNCTIONS = dict(
    zip(
        classes("nn", "HardSigmoid HardSilu Silu"),
        (keras.activations.hard_sigmoid, keras.activations.hard_silu, keras.activations.silu),
        strict=True,
    )
)
"""Operation -> the activation function that it is."""
Naming = Callable[[str], str]
"""Gives a name that is free, beginning with another one."""


def function_parts(function: Callable[..., Any], name: str, free: Naming) -> list[keras.Layer]:
    """Give layers that together are a function of `WRITTEN`, for `applied`; the last has the name.

    A hard sigmoid is min(max(x / 6 + 1 / 2, 0), 1); a swish is x · sigmoid(x), a hard one x · hard sigmoid(x).
    """
    gate = name if function is keras.activations.hard_sigmoid else free(f"{name}_gate")
    if function is keras.activations.silu:
        return [L.Activation("sigmoid", name=gate), L.Multiply(name=name)]
    layers = [L.Rescaling(1 / 6, 0.5, name=free(f"{gate}_rescaled")), L.ReLU(1.0, name=gate)]
    return layers if gate == name else [*layers, L.Multiply(name=name)]


def applied(function: list[keras.Layer], x: Any) -> Any:
    """Call layers that together are a function; one that multiplies takes what went in too."""
    y = x
    for layer in function:
        y = layer([x, y]) if isinstance(layer, L.Multiply) else layer(y)
    return y


def unique(name: str, taken: set[str]) -> str:
    """Give `name`, or `name` with a number that is not taken, and take it."""
    number, candidate = 1, name
    while candidate in taken:
        number, candidate = number + 1, f"{name}_{number}"
    taken.add(candidate)
    return candidate
