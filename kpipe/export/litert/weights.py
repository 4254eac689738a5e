"""Weights of a LiteRT file stored in fewer bits, by a pass of our own over the flatbuffer.

The converter rounds weights anew, by max|w| / 127, and leaves small ones in float: only a pass that takes the levels as
they are loses nothing.
"""

from typing import Any

import numpy as np

from kpipe.export.litert.flatbuffer import read, write
from kpipe.export.litert.text import operator_names
from kpipe.fake_quant.affine import channel_scales, grid_of, to_levels

KERNELS = {
    "CONV_2D": (1, (0,)),
    "FULLY_CONNECTED": (1, (0,)),
    "DEPTHWISE_CONV_2D": (1, (3,)),
    "TRANSPOSE_CONV": (1, (0,)),
    "BATCH_MATMUL": (1, (-1, -2)),
    "GATHER": (0, (-1,)),
}
"""Operation -> the place of its kernel among the inputs, and the axes that may be its channels."""
HYBRID = {"CONV_2D": {8: 5, 4: 7}, "FULLY_CONNECTED": {8: 12, 4: 12}}
"""Operations with fast kernels of float values and whole weights -> bits -> the least version that has them."""
NARROW = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 12}
"""Operations with integer kernels of 4-bit weights, and the least version that has them."""
WIDE_LEVELS = np.round(np.arange(-7, 8) * 127 / 7)
"""What the converter writes for levels of 4 bits."""
DEQUANTIZE = {8: 5, 4: 6}
"""Bits -> the least version that has a scale for each channel."""


def store_weights(content: bytes) -> bytes:
    """Store the kernels of a float file that lie on a grid of whole numbers as these.

    Convolutions and dense layers take them as they are, in kernels that round what comes in to 8 bits. All others get a
    DEQUANTIZE in front, which the runtime computes once: their hybrid kernels are slower than float, or do not exist.

    Args:
        content: A float LiteRT file.

    Returns:
        The new content.
    """
    model = read(content)
    for graph in model.subgraphs:
        _Floats(model, graph).store()
    return packed(model)


def narrow_weights(content: bytes) -> bytes:
    """Store the kernels of a file in whole numbers that lie on a grid of 4 bits so, two in a byte.

    The converter knows 8 bits alone, and gives a level k of -7 to 7 as round(127 k / 7). Scales grow by 127 / 7, and
    the whole numbers of biases shrink by it. Kernels of greatest entries and zeros alone stay as they are.

    Args:
        content: A LiteRT file in whole numbers.

    Returns:
        The new content.
    """
    model = read(content)
    names = operator_names(model)
    for graph in model.subgraphs:
        narrow: set[int] = set()
        for operator in graph.operators:
            name = names[operator.opcodeIndex]
            if name in NARROW and _narrow(model, graph, int(operator.inputs[1]), narrow):
                code = model.operatorCodes[operator.opcodeIndex]
                code.version = max(code.version, NARROW[name])
                bias = int(operator.inputs[2]) if len(operator.inputs) > 2 else -1
                if bias >= 0 and bias not in narrow:
                    _rescale(model, graph.tensors[bias], np.int32)
                    narrow.add(bias)
    return packed(model)


def _narrow(model: Any, graph: Any, index: int, narrow: set[int]) -> bool:
    """Store a kernel in 4 bits, once; say whether it is so."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data
    if index not in narrow and data is not None and tensor.type == schema.TensorType.INT8:
        found = np.unique(np.frombuffer(bytes(data), np.int8))
        if np.isin(found, WIDE_LEVELS).all() and not np.isin(found, WIDE_LEVELS[[0, 7, 14]]).all():
            _rescale(model, tensor, np.int8)
            tensor.type = schema.TensorType.INT4
            narrow.add(index)
    return index in narrow


def _rescale(model: Any, tensor: Any, dtype: type) -> None:
    """Give a constant scales 127 / 7 times as great, and a buffer of its own with whole numbers as much smaller."""
    from ai_edge_litert import schema_py_generated as schema

    levels = np.frombuffer(bytes(model.buffers[tensor.buffer].data), dtype)
    smaller = np.round(levels.astype(np.float64) * 7 / 127).astype(dtype)
    buffer: Any = schema.BufferT()
    buffer.data = in_bytes(smaller, 4) if dtype is np.int8 else smaller.view(np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(127 / 7)


class _Floats:
    """Store the kernels of one graph of a float file."""

    def __init__(self, model: Any, graph: Any):
        self.model, self.graph = model, graph
        self.names = operator_names(model)
        self.behind: dict[int, int] = {}
        """Tensor of whole numbers, by that of the floats that it stands for."""

    def store(self) -> None:
        """Store them in place."""
        operators: list[Any] = []
        for operator in self.graph.operators:
            name = self.names[operator.opcodeIndex]
            place, axes = KERNELS.get(name, (len(operator.inputs), ()))
            index = int(operator.inputs[place]) if place < len(operator.inputs) else -1
            floats = self.floats(index)
            grid = None if floats is None else _grid(floats, axes)
            if floats is not None and grid is not None:
                levels = self.levels_for(index, floats, *grid)
                if self.is_hybrid(name, operator, floats):
                    self.make_hybrid(name, operator, levels, grid[1])
                else:
                    operators.append(self.dequantized(levels, index, grid[1]))
            operators.append(operator)
        self.graph.operators = operators

    def floats(self, index: int) -> np.ndarray | None:
        """Give the values of a float constant with several axes; None for any other tensor."""
        from ai_edge_litert import schema_py_generated as schema

        if index < 0:
            return None
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.type != schema.TensorType.FLOAT32 or len(tensor.shape) < 2:
            return None
        return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)

    def is_hybrid(self, name: str, operator: Any, floats: np.ndarray) -> bool:
        """Say whether a fast kernel takes float values and whole weights; those of grouped convolutions are not."""
        if name not in HYBRID or floats[0].size == 1:
            return False
        return name != "CONV_2D" or self.graph.tensors[operator.inputs[0]].shape[-1] == floats.shape[-1]

    def make_hybrid(self, name: str, operator: Any, levels: int, bits: int) -> None:
        """Let an operation take whole weights, and round what comes in by a zero point of its own."""
        operator.inputs[1] = levels
        operator.opcodeIndex = self.code(name, HYBRID[name][bits])
        if name == "FULLY_CONNECTED":
            operator.builtinOptions.asymmetricQuantizeInputs = True

    def levels_for(self, index: int, floats: np.ndarray, axis: int, bits: int) -> int:
        """Add the tensor of whole numbers that a float one stands for, once."""
        if index not in self.behind:
            scales = channel_scales(floats, (axis,), bits)
            source = self.graph.tensors[index]
            tensor = whole_tensor(self.model, source.name, to_levels(floats, scales, bits), scales, axis, bits)
            self.graph.tensors.append(tensor)
            self.behind[index] = len(self.graph.tensors) - 1
        return self.behind[index]

    def dequantized(self, levels: int, index: int, bits: int) -> Any:
        """Give the operation that makes a float tensor of whole numbers, and take its constant away."""
        from ai_edge_litert import schema_py_generated as schema

        self.graph.tensors[index].buffer = 0
        operator: Any = schema.OperatorT()
        operator.opcodeIndex = self.code("DEQUANTIZE", DEQUANTIZE[bits])
        operator.inputs, operator.outputs = np.asarray([levels], np.int32), np.asarray([index], np.int32)
        return operator

    def code(self, name: str, version: int) -> int:
        """Find the entry of an operation in the file's table, of a version or a later one; add it if need be."""
        from ai_edge_litert import schema_py_generated as schema

        for index, (known, code) in enumerate(zip(self.names, self.model.operatorCodes, strict=True)):
            if known == name and code.version >= version:
                return index
        code: Any = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = version
        self.model.operatorCodes.append(code)
        self.names.append(name)
        return len(self.names) - 1


def _grid(kernel: np.ndarray, axes: tuple[int, ...]) -> tuple[int, int] | None:
    """Find the axis along which a kernel lies on a grid, and its bits."""
    found = ((axis % kernel.ndim, grid_of(kernel, axis % kernel.ndim)) for axis in axes)
    return next(((axis, bits) for axis, bits in found if bits is not None), None)


def whole_tensor(model: Any, name: Any, levels: np.ndarray, scales: np.ndarray, axis: int, bits: int) -> Any:
    """Make a constant of whole numbers with a scale for each channel; its buffer is added to the file."""
    from ai_edge_litert import schema_py_generated as schema

    buffer: Any = schema.BufferT()
    buffer.data = in_bytes(levels, bits)
    model.buffers.append(buffer)
    tensor: Any = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, np.asarray(levels.shape, np.int32), len(model.buffers) - 1
    tensor.type = schema.TensorType.INT4 if bits == 4 else schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scales.reshape(-1).astype(np.float32)
    tensor.quantization.zeroPoint = np.zeros(scales.size, np.int64)
    tensor.quantization.quantizedDimension = axis
    return tensor


def in_bytes(levels: np.ndarray, bits: int) -> np.ndarray:
    """Lay whole numbers out as the file does: one a byte, or two of 4 bits with the first in the lower half.

    Example:
        >>> in_bytes(np.array([1, -1, 7], np.int8), 4).tolist()
        [241, 7]
    """
    flat = levels.reshape(-1).astype(np.int8).view(np.uint8)
    if bits == 8:
        return flat
    pairs = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2) & 0xF
    return pairs[:, 0] | pairs[:, 1] << 4


def packed(model: Any) -> bytes:
    """Write a model as a file, without the tensors and buffers that nothing takes any more."""
    for number, graph in enumerate(model.subgraphs):
        _drop_tensors(graph, [one for one in model.signatureDefs or () if one.subgraphIndex == number])
    taken = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    taken |= {entry.buffer for entry in model.metadata or ()}
    kept = {0: 0}
    for place in sorted(taken - {0}):
        kept[place] = len(kept)
    model.buffers = [model.buffers[place] for place in kept]
    for holder in [tensor for graph in model.subgraphs for tensor in graph.tensors] + list(model.metadata or ()):
        holder.buffer = kept[holder.buffer]
    return write(model)


def _drop_tensors(graph: Any, signatures: list[Any]) -> None:
    """Take out the tensors of a graph that nothing refers to, and number the others anew."""
    holders = [(graph, "inputs"), (graph, "outputs")]
    holders += [(each, end) for each in graph.operators for end in ("inputs", "outputs", "intermediates")]
    named = [entry for one in signatures for entry in (*one.inputs, *one.outputs)]
    lists = [(holder, end, places) for holder, end in holders if (places := getattr(holder, end)) is not None]
    taken = {int(place) for _, _, places in lists for place in places} | {entry.tensorIndex for entry in named}
    kept = {-1: -1} | {place: number for number, place in enumerate(sorted(taken - {-1}))}
    graph.tensors = [graph.tensors[place] for place in kept if place >= 0]
    for holder, end, places in lists:
        setattr(holder, end, np.asarray([kept[int(place)] for place in places], np.int32))
    for entry in named:
        entry.tensorIndex = kept[entry.tensorIndex]
