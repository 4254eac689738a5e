"""How much memory TFLite Micro's arena takes: where its planner lays the tensors that live at the same time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALIGNMENT = 16
"""Bytes to whose multiples the planner rounds each tensor up."""

PER_TENSOR, PER_OPERATION, PER_CHANNEL, PER_END, FIXED = 24, 160, 8, 96, 1088
"""Bytes for what the interpreter keeps beside the tensors: a description of each tensor, the node and the kernel's own
numbers for each operation, multiplier and shift for each output channel of per-channel weights, a longer description of
each input and output, and the interpreter's own. So it is with pointers of 64 bits; those of 32 bits take less."""

PLANNED, PLANNING = 40, 32
"""Bytes that the planner itself takes while it lays out: for each tensor that it places, and for each that there is."""


@dataclass(frozen=True)
class Lifetime:
    """Hold what a tensor needs: bytes, and the first and last operation, in their order, between which it lives."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Hold an estimate of the arena in bytes.

    Args:
        activations: What the planner lays out for the tensors that flow between operations.
        persistent: What the interpreter keeps beside them, estimated.
        planning: What the planner takes before the tensors do, in the same place, estimated.
    """

    activations: int
    persistent: int
    planning: int

    @property
    def total(self) -> int:
        """Give what is kept, and the greater of the tensors and of the planner that makes room for them."""
        return self.persistent + max(self.activations, self.planning)


def aligned(size: int) -> int:
    """Round up to a multiple of 16 bytes.

    Example:
        >>> aligned(1), aligned(16), aligned(17)
        (16, 16, 32)
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Lay tensors into one piece of memory, greedily by size.

    The largest goes first, of equal ones the last; each goes into the lowest gap that is large enough among those
    already placed that live at the same time. That is what TFLite Micro's own planner does.

    Args:
        lifetimes: The tensors.

    Returns:
        The offset of each in bytes. Two that live at the same time never overlap.

    Example:
        >>> plan([Lifetime(16, 0, 1), Lifetime(64, 1, 2), Lifetime(32, 2, 3)])
        [64, 0, 64]
    """
    order = sorted(range(len(lifetimes)), key=lambda index: (-lifetimes[index].size, -index))
    offsets: dict[int, int] = {}
    for index in order:
        one = lifetimes[index]
        taken = sorted(
            (offset, offset + lifetimes[other].size)
            for other, offset in offsets.items()
            if lifetimes[other].first <= one.last and one.first <= lifetimes[other].last
        )
        place = 0
        for start, end in taken:
            if start - place >= one.size:
                break
            place = max(place, end)
        offsets[index] = place
    return [offsets[index] for index in range(len(lifetimes))]


def peak(lifetimes: Sequence[Lifetime]) -> int:
    """Give the bytes that a plan takes: the greatest end of a tensor.

    Example:
        >>> peak([Lifetime(16, 0, 1), Lifetime(64, 1, 2), Lifetime(32, 2, 3)])
        96
    """
    return max((offset + one.size for offset, one in zip(plan(lifetimes), lifetimes, strict=True)), default=0)


def lifetimes(model: Any, graph: Any) -> list[Lifetime]:
    """Give the tensors of a graph that are no constants, with the operations between which each lives.

    Inputs live from the start, outputs to the end; any other from the operation that makes it to the last that takes
    it.
    """
    first: dict[int, int] = {int(index): 0 for index in graph.inputs}
    last: dict[int, int] = dict(first)
    operators: list[Any] = list(graph.operators or ())
    for step, operator in enumerate(operators):
        for index in operator.outputs:
            first.setdefault(int(index), step)
        for index in (*operator.inputs, *operator.outputs):
            last[int(index)] = step
    last |= {int(index): len(operators) for index in graph.outputs}
    found = []
    for index in sorted(first):
        tensor = graph.tensors[index]
        if model.buffers[tensor.buffer].data is None and not tensor.isVariable:
            found.append(Lifetime(aligned(_bytes(tensor)), first[index], last[index]))
    return found


def _bytes(tensor: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.TensorType
    wide = {kinds.FLOAT32: 4, kinds.INT32: 4, kinds.UINT32: 4, kinds.INT64: 8, kinds.INT16: 2, kinds.FLOAT16: 2}
    return int(np.prod(tensor.shape if tensor.shape is not None else ())) * wide.get(tensor.type, 1)


def arena(model: Any) -> Arena:
    """Estimate the arena that TFLite Micro needs for a file.

    activations = the greatest end of a tensor in the plan, each rounded up to 16 bytes; graphs within the graph, such
    as the body of a loop, are added whole, and so are variables. persistent = 1088 + 24 · tensors + 160 · operations +
    8 · output channels of per-channel weights + 96 · inputs and outputs. planning = 40 · tensors that are placed + 32 ·
    tensors, in the same place as the activations and before them: it counts where there are many small tensors, as in
    recurrent layers written out. Not counted are the scratch buffers of kernels, which some of those that are made for
    one processor take, such as CMSIS-NN's; `arena_used_bytes()` of the interpreter tells what it was.

    Args:
        model: The file as `operators.read` gives it.

    Returns:
        The estimate.
    """
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    variables = sum(aligned(_bytes(tensor)) for tensor in tensors if tensor.isVariable)
    living = [lifetimes(model, graph) for graph in model.subgraphs]
    planned = sum(map(peak, living))
    operations = sum(len(graph.operators or ()) for graph in model.subgraphs)
    channels = sum(_channels(tensors))
    ends = len(model.subgraphs[0].inputs) + len(model.subgraphs[0].outputs)
    described = PER_TENSOR * len(tensors) + PER_OPERATION * operations + PER_CHANNEL * channels + PER_END * ends
    return Arena(
        activations=planned + variables,
        persistent=aligned(FIXED + described),
        planning=aligned(PLANNED * sum(map(len, living)) + PLANNING * len(tensors)),
    )


def _channels(tensors: Iterable[Any]) -> Iterable[int]:
    for tensor in tensors:
        scale = tensor.quantization.scale if tensor.quantization is not None else None
        if scale is not None and len(scale) > 1 and len(tensor.shape) > 1:
            yield len(scale)
