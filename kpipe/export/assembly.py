"""Operations put together with the constants that each of them brings, from what a format stores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.export.file import Port
from kpipe.registry import Registry


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file as its format stores it.

    Args:
        name: Its name.
        dtype: Name of its type.
        shape: Its shape; None where it is open.
        data: Its entries, flat, where it is a constant; whole numbers below 8 bits one by one.
        bytes: What the entries take up in the file.
        zero_point: The whole number that stands for 0.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    data: np.ndarray | None = None
    bytes: int = 0
    zero_point: int = 0


@dataclass(frozen=True)
class Step:
    """An operation of a file as its format stores it: its kind, its name, and the keys of its tensors."""

    name: str
    scope: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Reading:
    """A file as its format stores it.

    Args:
        steps: Its operations, in the order in which they run; those of loops and branches too.
        tensors: Key -> tensor.
        inputs: What goes in.
        outputs: What comes out.
    """

    steps: Sequence[Step]
    tensors: Mapping[Any, Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


READERS: Registry[Callable[[Path], Reading]] = Registry("reader of file contents")
"""Format -> what reads its files; `kpipe.export.contents` asks it."""


@dataclass(frozen=True)
class Constant:
    """A constant of a file.

    Args:
        name: Its name.
        dtype: Name of the type in which it is stored.
        shape: Its shape.
        bytes: What it takes up in the file.
        zeros: The fraction of its entries that stand for 0; None where there are none.
        values: How many different values its entries have.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    zeros: float | None
    values: int


@dataclass(frozen=True)
class Node:
    """An operation of a file with its constants.

    Args:
        name: Its kind.
        scope: Its name, or that of what it gives.
        inputs: Types of what goes in, those of the constants as they are stored.
        outputs: Types of what comes out.
        shape: The shape of what comes out first; None where a size is open.
        constants: Its constants; one that several operations share stands at the first.
    """

    name: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    constants: tuple[Constant, ...]

    @property
    def bytes(self) -> int:
        """What its constants take up in the file."""
        return sum(constant.bytes for constant in self.constants)

    @property
    def weight(self) -> Constant | None:
        """That of its constants with several axes which has the most entries, if it has one."""
        several = [each for each in self.constants if len(each.shape) > 1]
        return max(several, key=lambda each: math.prod(each.shape), default=None)


def assemble(reading: Reading) -> tuple[Node, ...]:
    """Put operations together with their constants; operations on constants alone disappear into what takes them.

    Such operations unpack weights that are stored rounded, and runtimes compute them once, when they load the file.
    """
    unpacked: dict[Any, list[Any]] = {}
    counted: set[Any] = set()
    types = {key: tensor.dtype for key, tensor in reading.tensors.items()}
    nodes = []
    for step in reading.steps:
        keys = [key for given in step.inputs for key in unpacked.get(given, [given]) if key in reading.tensors]
        held = [key for key in keys if reading.tensors[key].data is not None]
        if keys and len(held) == len(keys):
            unpacked |= {key: keys for key in step.outputs}
            types |= {key: types[keys[0]] for key in step.outputs}  # as it is stored
            continue
        new = [key for key in dict.fromkeys(held) if key not in counted]
        counted.update(new)
        first = reading.tensors[step.outputs[0]] if step.outputs and step.outputs[0] in reading.tensors else None
        outputs = tuple(types[key] for key in step.outputs if key in types)
        nodes.append(
            Node(
                name=step.name,
                scope=step.scope,
                inputs=tuple(types[given] for given in step.inputs if given in types),
                outputs=outputs,
                shape=first.shape if first else (),
                constants=tuple(described(reading.tensors[key]) for key in new),
            )
        )
    return tuple(nodes)


def described(tensor: Tensor) -> Constant:
    """Say what a constant takes up, how many of its entries stand for 0, and how many values they have.

    Example:
        >>> described(Tensor("w", "int8", (2, 2), np.array([3, 5, 3, 4], np.int8), 4, zero_point=3))
        Constant(name='w', dtype='int8', shape=(2, 2), bytes=4, zeros=0.5, values=3)
    """
    data = np.zeros(0) if tensor.data is None else tensor.data
    shape = tuple(size or 0 for size in tensor.shape)
    entries = max(int(np.prod(shape, dtype=np.int64)), data.size)
    missing = entries - data.size  # zeros that a sparse form leaves out
    zeros = (missing + int(np.count_nonzero(data == tensor.zero_point))) / entries if entries else None
    values = len(np.unique(data)) + (missing > 0 and not np.any(data == tensor.zero_point))
    return Constant(tensor.name, tensor.dtype, shape, tensor.bytes, zeros, int(values))
