"""TensorFlow operations on shapes, indices and images, written with `keras.ops`."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from kpipe.errors import KpipeError
from kpipe.legacy.operations.arithmetic import constant
from kpipe.legacy.operations.table import OPERATIONS


@OPERATIONS("identity")
def identity(input: Any) -> Any:
    """Give what goes in."""
    return input


@OPERATIONS("cast")
def cast(x: Any, dtype: str) -> Any:
    """Turn values into another type."""
    return ops.cast(x, dtype)


@OPERATIONS("shape")
def shape(input: Any, out_type: Any = None, optimize: Any = None) -> tuple[int | None, ...]:
    """Give the sizes as numbers; None for those that are open."""
    return tuple(input.shape)


def _sizes(shape: Any) -> tuple[int, ...]:
    """Turn one open size into the -1 that stands for what is left."""
    if not isinstance(shape, Sequence):
        raise KpipeError("a shape that is computed from values of tensors")
    sizes = [-1 if size is None else int(size) for size in shape]
    if sizes.count(-1) > 1:
        raise KpipeError(f"a shape with more than one open size: {tuple(shape)}")
    return tuple(sizes)


@OPERATIONS("reshape")
def reshape(tensor: Any, shape: Any) -> Any:
    """Lay values out anew; one size may be open."""
    return ops.reshape(tensor, _sizes(shape))


@OPERATIONS("keras.backend.batch_flatten")
def batch_flatten(x: Any) -> Any:
    """Lay out each sample's values in a row, (batch, ...) -> (batch, n)."""
    size = 1
    for one in x.shape[1:]:
        size *= one
    return ops.reshape(x, (-1, size))


@OPERATIONS("transpose")
def transpose(a: Any, perm: Any = None, conjugate: bool = False) -> Any:
    """Put axes into another order; None reverses it."""
    return ops.transpose(a, perm)


@OPERATIONS("expand_dims")
def expand_dims(input: Any, axis: int) -> Any:
    """Put in an axis of size 1."""
    return ops.expand_dims(input, axis)


@OPERATIONS("squeeze")
def squeeze(input: Any, axis: Any = None) -> Any:
    """Take out axes of size 1."""
    return ops.squeeze(input, axis=tuple(axis) if isinstance(axis, list) else axis)


@OPERATIONS("concat")
def concat(values: Sequence[Any], axis: int) -> Any:
    """Join tensors along an axis."""
    return ops.concatenate(values, axis=axis)


@OPERATIONS("stack")
def stack(values: Sequence[Any], axis: int = 0) -> Any:
    """Stack tensors; sizes, some of which may be open, become a shape."""
    sizes = any(value is None or isinstance(value, int) for value in values)
    return tuple(values) if sizes else ops.stack(values, axis)


@OPERATIONS("unstack")
def unstack(value: Any, num: int | None = None, axis: int = 0) -> Any:
    """Take a tensor apart along an axis, which goes."""
    return ops.unstack(value, num=num, axis=axis)


@OPERATIONS("split")
def split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    """Cut a tensor along an axis, into equal parts or parts of given sizes."""
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    ends, total = [], 0
    for size in num_or_size_splits[:-1]:
        total += size
        ends.append(total)
    return ops.split(value, ends, axis=axis)


@OPERATIONS("tile")
def tile(input: Any, multiples: Any) -> Any:
    """Repeat a tensor as a whole along each axis."""
    return ops.tile(input, multiples)


@OPERATIONS("repeat")
def repeat(input: Any, repeats: int, axis: int | None = None) -> Any:
    """Repeat each entry along an axis."""
    return ops.repeat(input, repeats, axis=axis)


@OPERATIONS("reverse")
def reverse(tensor: Any, axis: Any) -> Any:
    """Turn axes around."""
    return ops.flip(tensor, axis=tuple(axis))


@OPERATIONS("broadcast_to")
def broadcast_to(input: Any, shape: Any) -> Any:
    """Repeat along axes of size 1 until the shape is another."""
    return ops.broadcast_to(input, shape)


@OPERATIONS("pad")
def pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    """Put values around a tensor, constant or from within it."""
    mode = mode.lower()
    return ops.pad(tensor, paddings, mode=mode, constant_values=constant_values if mode == "constant" else None)


@OPERATIONS("where")
def where(condition: Any, x: Any, y: Any) -> Any:
    """Choose entries of one tensor or the other."""
    return ops.where(condition, constant(x, y), constant(y, x))


@OPERATIONS("gather")
def gather(params: Any, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: Any = None) -> Any:
    """Take entries along an axis by their places; batch axes are refused."""
    if batch_dims:
        raise TypeError("batch_dims")
    return ops.take(params, indices, axis=axis)


@OPERATIONS("one_hot")
def one_hot(indices: Any, depth: int, on_value: Any = 1, off_value: Any = 0, axis: int = -1, dtype: Any = None) -> Any:
    """Give `on_value` at the place that an index names along a new axis, else `off_value`."""
    hot = ops.one_hot(indices, depth, axis=axis, dtype=dtype or "float32")
    return hot if (on_value, off_value) == (1, 0) else hot * (on_value - off_value) + off_value


@OPERATIONS("__operators__.getitem")
def getitem(tensor: Any, slice_spec: Any) -> Any:
    """Take a part of a tensor, or one of the sizes of a shape."""
    if isinstance(tensor, tuple):
        return tensor[_index(slice_spec)]
    spec = tuple(map(_index, slice_spec)) if isinstance(slice_spec, (list, tuple)) else _index(slice_spec)
    return ops.get_item(tensor, spec)


def _index(value: Any) -> Any:
    return slice(value["start"], value["stop"], value["step"]) if isinstance(value, dict) else value


@OPERATIONS("strided_slice")
def strided_slice(input_: Any, begin: Any, end: Any, strides: Any = None, **masks: int) -> Any:
    """Take a part by begins, ends and steps; masks but those of begin, end and shrinking are refused."""
    given = {name: bits for name, bits in masks.items() if bits and name not in _MASKS}
    if given:
        raise TypeError(f"masks {given}")
    begins, ends, shrinks = (masks.get(name) or 0 for name in _MASKS)
    spec: list[Any] = []
    for place, (first, last) in enumerate(zip(begin, end, strict=True)):
        bit, step = 1 << place, strides[place] if strides else None
        whole = slice(None if begins & bit else first, None if ends & bit else last, step)
        spec.append(first if shrinks & bit else whole)
    return ops.get_item(input_, tuple(spec))


_MASKS = ("begin_mask", "end_mask", "shrink_axis_mask")


@OPERATIONS("slice")
def slice_(input_: Any, begin: Sequence[int], size: Sequence[int]) -> Any:
    """Take a part by begins and sizes; -1 goes to the end."""
    spec = tuple(slice(first, None if n == -1 else first + n) for first, n in zip(begin, size, strict=True))
    return ops.get_item(input_, spec)


@OPERATIONS("nn.space_to_depth")
def space_to_depth(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    """Move blocks of places into channels."""
    return ops.space_to_depth(input, block_size, data_format=_format(data_format))


@OPERATIONS("nn.depth_to_space")
def depth_to_space(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    """Move channels into blocks of places."""
    return ops.depth_to_space(input, block_size, data_format=_format(data_format))


def _format(data_format: str) -> str:
    return "channels_first" if data_format.startswith("NC") else "channels_last"


@OPERATIONS("image.resize")
def resize(images: Any, size: Any, method: str = "bilinear", **flags: Any) -> Any:
    """Resize images; Keras takes the same half-pixel centres as TensorFlow 2."""
    if any(flags.values()):
        raise TypeError(f"flags {flags}")
    return ops.image.resize(images, _sizes(size), interpolation=method, data_format="channels_last")
