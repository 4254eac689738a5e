"""Integer channel ids: which channels of which tensors live and die together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NoReturn

import numpy as np

from kpipe.errors import SurgeryError

Ids = np.ndarray
"""Channel ids of a tensor: an integer array that broadcasts to the tensor's shape without its batch axis."""


@dataclass(frozen=True)
class Mint:
    """Say where ids come from.

    Args:
        path: The layer or operation that minted them.
        part: What they are: "channels", or a part of its own such as the "heads" of an attention.
        width: Entries that each takes along its axis, of which `round_to` is to make a multiple.
    """

    path: str
    part: str = "channels"
    width: int = 1

    @property
    def name(self) -> str:
        """The path, and the part where it is not the channels."""
        return self.path if self.part == "channels" else f"{self.path}:{self.part}"


@dataclass(frozen=True, eq=False)
class Compressed:
    """Stand for an array, such as a constant of the graph, that loses the entries of the channels that go.

    Args:
        array: The array.
        axes: Axis -> channel ids along it.
    """

    array: np.ndarray
    axes: Mapping[int, Ids]


class ChannelIds:
    """Mint channel ids, tie them, freeze them.

    A tensor's ids have its rank without the batch axis and vary along one axis at most; an axis of size 1 stands for
    "the same id all along". Two tied ids are removed together or not at all; a frozen id is never removed.

    Example:
        >>> ids = ChannelIds()
        >>> a, b = ids.fresh(3), ids.fresh(3)
        >>> ids.tie(a, b)
        >>> ids.freeze(a[2], "an output")
        >>> ids.classes().tolist()
        [0, 1, 2, 0, 1, 2]
        >>> ids.frozen_classes()
        {2: 'an output'}
    """

    def __init__(self):
        self.mints: list[Mint] = []
        self._mint_of: list[int] = []
        self._parent: list[int] = []
        self._frozen: list[tuple[Ids, str]] = []
        self.at("", (), ())

    def at(
        self,
        path: str,
        input_shapes: Sequence[tuple],
        output_shapes: Sequence[tuple],
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> "ChannelIds":
        """Tell which layer is asked next.

        Args:
            path: Of the layer or operation.
            input_shapes: Of its input tensors, batch axis included.
            output_shapes: Of its outputs, likewise.
            arguments: Of the call, by position and by name, with the ids of the tensors in the tensors' places.
        """
        self.path, self.arguments = path, arguments
        self.input_shapes = [tuple(shape[1:]) for shape in input_shapes]
        self.output_shapes = [tuple(shape[1:]) for shape in output_shapes]
        return self

    @contextmanager
    def within(
        self,
        input_shapes: Sequence[tuple],
        output_shapes: Sequence[tuple],
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> Iterator[None]:
        """Show the shapes that a layer inside the one at hand sees, batch axis left out, and the arguments it gets."""
        before = self.input_shapes, self.output_shapes, self.arguments
        self.input_shapes, self.output_shapes, self.arguments = list(input_shapes), list(output_shapes), arguments
        try:
            yield
        finally:
            self.input_shapes, self.output_shapes, self.arguments = before

    def fresh(self, count: int, part: str = "channels", width: int = 1) -> Ids:
        """Mint `count` new ids, shape (count,); see `Mint`."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._mint_of.extend([len(self.mints)] * count)
        self.mints.append(Mint(self.path, part, width))
        return np.arange(start, start + count, dtype=np.int64)

    def tie(self, a: Ids, b: Ids) -> None:
        """Let the ids of `a` and `b`, broadcast against each other, live and die together."""
        a, b = np.broadcast_arrays(a, b)
        differ = a != b
        for first, second in set(zip(a[differ].tolist(), b[differ].tolist(), strict=True)):
            first, second = self._root(first), self._root(second)
            if first != second:
                self._parent[max(first, second)] = min(first, second)

    def tie_blocks(self, x: Ids, blocks: int) -> Ids:
        """Tie the same place of each of `blocks` equal blocks of `x`, shape (n,); give the first block."""
        table = x.reshape(blocks, -1)  # (blocks, n / blocks)
        self.tie(table, table[:1])
        return table[0]

    def tie_alike(self, a: Any, b: Any, reason: str) -> None:
        """Tie the ids that stand at the same place of two structures, such as those that a `Rule` holds.

        Args:
            a: Ids in mappings, tuples, lists, slices and `Compressed` arrays, with plain values among them.
            b: Likewise.
            reason: Why ids are frozen that have no counterpart at their place.

        Example:
            >>> ids = ChannelIds()
            >>> a, b, c = ids.fresh(2), ids.fresh(2), ids.fresh(1)
            >>> ids.tie_alike({"units": a, "shape": (3, c)}, {"units": b, "shape": (3, 1)}, "only one has it")
            >>> ids.classes().tolist(), ids.frozen_classes()
            ([0, 1, 0, 1, 2], {2: 'only one has it'})
        """
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
            self.tie(a, b)
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in {**a, **b}:
                self.tie_alike(a.get(key), b.get(key), reason)
        elif type(a) is type(b) and (parts := _parts(a)) is not None:
            for one, other in zip_longest(parts, _parts(b) or ()):
                self.tie_alike(one, other, reason)
        else:
            for found in (*_ids_in(a), *_ids_in(b)):
                self.freeze(found, reason)

    def freeze(self, x: Ids, reason: str) -> None:
        """Forbid the removal of all of `x`'s ids."""
        self._frozen.append((np.unique(x), reason))

    def constant(self, reason: str, output: int = 0) -> Ids:
        """Mint one frozen id that stands for a whole output."""
        out = self.fresh(1).reshape((1,) * len(self.output_shapes[output]))
        self.freeze(out, reason)
        return out

    def sizes(self, x: Ids, shape: Sequence[int | None]) -> tuple:
        """Write a shape for a config: the ids along the axis that varies, the plain size (or -1) along the others."""
        return tuple(x.reshape(-1) if n > 1 and size != -1 else size for n, size in zip(x.shape, shape, strict=True))

    def along(self, x: Ids, axis: int, port: int = 0) -> Ids:
        """Give the ids along one axis of input `port`, shape (n,), tied over all the other axes."""
        size = self.input_shapes[port][axis]
        moved = np.moveaxis(x, axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])  # (other axes, n or 1)
        self.tie(flat, flat[:1])
        if flat.shape[-1] == 1 and size is None:
            return flat[0]
        return np.broadcast_to(flat[0], (size,))

    def spread(self, x: Ids, axis: int, rank: int | None = None) -> Ids:
        """Lay ids of shape (n,) along one axis of a tensor of the output's rank; all other axes get size 1."""
        shape = [1] * (len(self.output_shapes[0]) if rank is None else rank)
        shape[axis] = -1
        return x.reshape(shape)

    def whole(self, x: Ids, port: int = 0) -> Ids:
        """Write the ids of input `port` out to its full shape; a size that is not known is refused."""
        shape = self.input_shapes[port]
        if None in shape and x.size > 1:
            self.refuse(f"its input shape {shape} has an open size; build the model with a fixed input shape")
        return np.broadcast_to(x, [1 if size is None else size for size in shape])

    def settle(self, x: Ids) -> Ids:
        """Let ids vary along one axis at most: the last of those that vary; ties hold over the others."""
        varying = [axis for axis in range(x.ndim) if x.shape[axis] > 1 and (x != x.take([0], axis)).any()]
        for axis in varying[:-1]:
            self.tie(x, x.take([0], axis))
        for axis in range(x.ndim):
            if axis not in varying[-1:]:
                x = x.take([0], axis)
        return x

    def refuse(self, reason: str) -> NoReturn:
        """Raise a `SurgeryError` that names the layer at hand."""
        raise SurgeryError(f"Layer {self.path!r}: {reason}.")

    def mint_of(self) -> np.ndarray:
        """Give the index into `mints` of every id, shape (ids,)."""
        return np.asarray(self._mint_of, dtype=np.int64)

    def classes(self) -> np.ndarray:
        """Give the class of every id, shape (ids,): tied ids have one class; classes are numbered in minting order."""
        roots = np.fromiter((self._root(i) for i in range(len(self._parent))), np.int64, len(self._parent))
        return np.unique(roots, return_inverse=True)[1]

    def frozen_classes(self) -> dict[int, str]:
        """Map each frozen class to the first reason given."""
        classes = self.classes()
        found: dict[int, str] = {}
        for ids, reason in self._frozen:
            for one in np.unique(classes[ids]).tolist():
                found.setdefault(one, reason)
        return found

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i


def _parts(value: Any) -> Sequence[Any] | None:
    """Give the parts of a value that may hold ids; None for one that has no parts."""
    if isinstance(value, Compressed):
        return (value.axes,)
    if isinstance(value, slice):
        return value.start, value.stop
    if isinstance(value, Mapping):
        return tuple(value.values())
    return value if isinstance(value, (tuple, list)) else None


def _ids_in(value: Any) -> Iterator[Ids]:
    """Give the ids in a structure."""
    if isinstance(value, np.ndarray):
        yield value
    for part in _parts(value) or ():
        yield from _ids_in(part)
