"""What an operation is called with: tensors with channel ids, constant arrays, plain values."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule

BATCH = -1
"""The batch axis, where axes are counted without it."""


def classes(module: str, names: str) -> tuple[type, ...]:
    """Give operation classes of a module of `keras.ops`; Keras exports functions and keeps the classes to itself."""
    held = vars(sys.modules[f"{keras.Operation.__module__.rpartition('.')[0]}.{module}"])
    return tuple(held[name] for name in names.split())


@dataclass(frozen=True)
class Operand:
    """Hold one argument of a call.

    Args:
        place: Its position or name.
        port: Which of the input tensors it is; None for what is no tensor of the graph.
        value: Channel ids of the tensor, or the constant.
        shape: Of the tensor, without its batch axis; of the constant.
    """

    place: int | str
    port: int | None
    value: Any
    shape: tuple[int | None, ...]


def operands(ids: ChannelIds, inputs: Sequence[Ids]) -> list[Operand]:
    """Read the arguments of the call at hand; constants that are arrays, lists or tensors become NumPy arrays.

    Raises:
        SurgeryError: When a tensor is inside a list, or an argument is a variable that no layer of the graph holds.
    """
    args, kwargs = ids.arguments
    found: list[Operand] = []
    port = 0
    for place, value in [*enumerate(args), *sorted(kwargs.items())]:
        if port < len(inputs) and value is inputs[port]:
            found.append(Operand(place, port, value, ids.input_shapes[port]))
            port += 1
        elif isinstance(value, keras.Variable):
            ids.refuse(f"it takes the variable {value.path!r}, which no layer of the graph holds")
        else:
            value = _constant(value)
            found.append(Operand(place, None, value, np.shape(value)))
    if port < len(inputs):
        ids.refuse("it takes tensors in a list or a dict")
    return found


def _constant(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, np.ndarray, np.generic)):
        return value
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value))  # as the operation itself would take a list


def frozen(ids: ChannelIds, inputs: Sequence[Ids], why: str) -> Rule:
    """Freeze all that goes in and comes out of the operation at hand."""
    reason = f"the operation {ids.path!r} {why}"
    for x in inputs:
        ids.freeze(x, reason)
    return Rule(tuple(ids.constant(reason, number) for number in range(len(ids.output_shapes))))


def across_batch(ids: ChannelIds, inputs: Sequence[Ids], why: str) -> Rule:
    """Freeze all round an operation that does not keep to the samples: from there on they are not counted."""
    return replace(frozen(ids, inputs, why), samples=None)


def axes_of(axis: Any, rank: int) -> set[int]:
    """Count axes without the batch axis, which is `BATCH`.

    Args:
        axis: As the operation holds it: None for all axes, an integer or several, counted with the batch axis.
        rank: Of the tensor, with the batch axis.

    Example:
        >>> sorted(axes_of((1, -1), 4)), sorted(axes_of(None, 2)), axes_of(0, 3)
        ([0, 2], [-1, 0], {-1})
    """
    every = range(rank) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]
    return {one % rank - 1 for one in every}
