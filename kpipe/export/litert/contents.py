"""The operations and tensors of a LiteRT file, as they are stored."""

from pathlib import Path
from typing import Any

import numpy as np

from kpipe.export import native
from kpipe.export.assembly import READERS, Reading, Step, Tensor
from kpipe.export.litert.text import enumeration, operator_names, ports, text

BITS = {"int2": 2, "int4": 4, "uint4": 4}
"""Types of which several share a byte, the first in its lowest bits."""
PLAIN = frozenset("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())


@READERS("tflite")
def read(path: Path) -> Reading:
    """Read a file; a tensor's key is (number of the graph, number in the graph)."""
    from ai_edge_litert import schema_py_generated as schema

    model, steps, tensors = native.read_litert(path), [], {}
    names, types = operator_names(model), enumeration(schema.TensorType)
    owners: dict[int, tuple[int, int]] = {}
    for g, graph in enumerate(model.subgraphs):
        for n, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data if tensor.buffer else None
            shared = data is not None and tensor.buffer in owners
            tensors[g, n] = _tensor(tensor, types[tensor.type].lower(), data, shared)
            owners.setdefault(tensor.buffer, (g, n))
        for operator in graph.operators:
            inputs, outputs = (
                tuple((g, int(n)) for n in places if n >= 0) for places in (operator.inputs, operator.outputs)
            )
            scope = tensors[outputs[0]].name if outputs else ""
            steps.append(Step(names[operator.opcodeIndex], scope, inputs, outputs))
    return Reading(steps, tensors, *ports(model))


def _tensor(tensor: Any, dtype: str, data: Any, shared: bool) -> Tensor:
    """Make a tensor of what is stored; the bytes of a buffer that several use stand at the first of them."""
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    signature = tensor.shapeSignature
    if signature is not None and data is None:
        shape = tuple(None if size < 0 else int(size) for size in signature)
    grid = tensor.quantization
    zeros = None if grid is None else grid.zeroPoint
    zero_point = int(zeros[0]) if zeros is not None and len(zeros) else 0
    if data is None:
        return Tensor(text(tensor.name), dtype, shape, zero_point=zero_point)
    raw = np.asarray(data, np.uint8)
    size = 0 if shared else raw.size
    return Tensor(text(tensor.name), dtype, shape, entries(raw, dtype, shape), size, zero_point)


def entries(raw: np.ndarray, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Read a buffer's entries; bytes as they are where the type has no numbers.

    Example:
        >>> entries(np.array([0x1F, 0x70], np.uint8), "int4", (3,))
        array([-1,  1,  0], dtype=int8)
    """
    if dtype in BITS:
        bits = BITS[dtype]
        count = int(np.prod([size or 0 for size in shape]))
        levels = (raw[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)  # (bytes, entries in a byte)
        levels = levels.reshape(-1)[:count].astype(np.int8)
        return levels if dtype.startswith("u") else np.where(levels >= 2 ** (bits - 1), levels - 2**bits, levels)
    if dtype in PLAIN:
        whole = raw[: raw.size - raw.size % np.dtype(dtype).itemsize]
        return np.frombuffer(whole.tobytes(), dtype)
    return raw
