"""Anything that `model.fit` takes, as NumPy batches or as checked samples for a model."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError


def batches(data: Any, batch_size: int = 32, limit: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Go through data in NumPy batches, whatever form of data `model.fit` takes.

    Args:
        data: An array, a list or dict of arrays (one an input), a tuple `(x, y)`, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, an iterator of batches, or a function that returns one (a generator function).
        batch_size: Samples a batch for arrays; other data comes in its own batches.
        limit: Most samples to give in all; None for no limit.

    Yields:
        `(x, y)` a batch, y None without labels; x and y keep the structure of the data. Sample weights are dropped.

    Raises:
        KpipeError: For data of another kind.

    Example:
        >>> [x.tolist() for x, y in batches(np.arange(5), batch_size=2, limit=3)]
        [[0, 1], [2]]
    """
    left = limit
    for x, y, _ in weighted_batches(data, batch_size):
        count = len(keras.tree.flatten(x)[0])
        if left is not None and count > left:
            x, y = _map(lambda a, n=left: a[:n], x), _map(lambda a, n=left: a[:n], y)
        if left is None or left > 0:
            yield x, y
        if left is not None:
            left -= count
            if left <= 0:
                return


def weighted_batches(data: Any, batch_size: int = 32) -> Iterator[tuple[Any, Any, Any]]:
    """Go through data as `batches` does, sample weights kept.

    Args:
        data: What `batches` takes; `(x, y, sample_weight)` too, as arrays or as each batch.
        batch_size: Samples a batch for arrays; other data comes in its own batches.

    Yields:
        `(x, y, sample_weight)` a batch; y and sample_weight None where there are none.

    Raises:
        KpipeError: For data of another kind.

    Example:
        >>> [w.tolist() for _, _, w in weighted_batches((np.zeros(3), np.zeros(3), np.arange(3)), batch_size=2)]
        [[0, 1], [2]]
    """
    for batch in _raw(data, batch_size):
        x, y, weight = _unpack(batch)
        yield _map(np.asarray, x), _map(np.asarray, y), _map(np.asarray, weight)


def _map(function: Callable[[Any], Any], structure: Any) -> Any:
    return keras.tree.map_structure(function, structure, none_is_leaf=False)


def _unpack(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple):
        return batch, None, None
    x, y, weight, *_ = (*batch, None, None)
    return x, y, weight


def _raw(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        return iter(data)
    if isinstance(data, keras.utils.PyDataset):
        return (data[index] for index in range(data.num_batches or 0))
    if isinstance(data, Iterator):
        return data
    if callable(data) and not isinstance(data, tf.Tensor | np.ndarray):
        made: Any = data()
        return iter(made)
    leaves = keras.tree.flatten(data)
    if not leaves or not all(isinstance(leaf, np.ndarray | tf.Tensor) for leaf in leaves if leaf is not None):
        raise KpipeError(
            f"Received data of type {type(data).__name__}; expected an array, a list or dict of arrays, (x, y), a "
            "tf.data.Dataset, a keras.utils.PyDataset or a generator function."
        )
    lengths = {len(leaf) for leaf in leaves if leaf is not None}
    if len(lengths) > 1:
        raise KpipeError(f"Received arrays of different lengths {sorted(lengths)}; expected one row a sample in each.")
    return _slices(data, lengths.pop(), batch_size)


def _slices(data: Any, count: int, batch_size: int) -> Iterator[Any]:
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        yield _map(lambda a, rows=rows: a[rows], data)


CALIBRATION_SAMPLES = 512
"""The most samples on which ranges are found, unless asked otherwise."""


def samples(data: Any, model: keras.Model, limit: int | None = 256, what: str = "calibration") -> list[np.ndarray]:
    """Collect input samples as one array an input of the model, checked.

    Args:
        data: Anything that `batches` takes; labels are left out.
        model: The model that the samples are for. The shapes are checked when it knows its inputs.
        limit: Most samples to take, from the start of the data; None for all.
        what: What the data is for, named in errors.

    Returns:
        The arrays in the order of `model.inputs`, in the inputs' own types, as `fit` would cast them.

    Raises:
        KpipeError: When the data is empty, misses an input, has a wrong shape or holds NaN or infinite values.

    Example:
        >>> net = keras.Sequential([keras.Input((2,), name="point"), keras.layers.Dense(1)])
        >>> samples(np.zeros((3, 5), "float32"), net)
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The calibration data for input 'point' has samples of shape (5,); expected (2,).
    """
    gathered = [_ordered(x, model, what) for x, _ in batches(data, 256, limit)]
    if not gathered or not len(gathered[0][0]):
        raise KpipeError(f"The {what} data is empty; expected at least one sample.")
    arrays = [np.concatenate(parts) for parts in zip(*gathered, strict=True)]
    for name, array in zip(_names(model) or [f"input {n}" for n in range(len(arrays))], arrays, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise KpipeError(f"The {what} data for input {name!r} holds {bad} NaN or infinite values; clean it first.")
    types = [tensor.dtype for tensor in model.inputs] if _names(model) else [array.dtype for array in arrays]
    return [
        array.astype(object if dtype == "string" else dtype, copy=False)
        for array, dtype in zip(arrays, types, strict=True)
    ]


def _names(model: keras.Model) -> list[str]:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return []
    structure = None if isinstance(model, keras.Sequential) else model.input
    return sorted(structure) if isinstance(structure, dict) else [tensor.name for tensor in inputs]


def _ordered(x: Any, model: keras.Model, what: str) -> list[np.ndarray]:
    names = _names(model)
    if isinstance(x, dict) and names:
        missing = [name for name in names if name not in x]
        if missing:
            raise KpipeError(f"The {what} data has no {', '.join(missing)}; its keys are {', '.join(x)}.")
        arrays = [x[name] for name in names]
        for name, array in zip(names, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise KpipeError(f"The {what} data holds a {type(array).__name__} for {name!r}; expected an array.")
    else:
        arrays = keras.tree.flatten(x)
    if not names:
        return arrays
    if len(arrays) != len(names):
        raise KpipeError(
            f"The {what} data has {len(arrays)} input arrays; the model {model.name!r} takes {len(names)}: "
            f"{', '.join(names)}. Give a list or dict of arrays, and (x, y) as a tuple."
        )
    for name, array, tensor in zip(names, arrays, model.inputs, strict=True):
        expected = tuple(tensor.shape[1:])
        if array.ndim != len(expected) + 1 or any(
            size not in (None, got) for size, got in zip(expected, array.shape[1:], strict=True)
        ):
            raise KpipeError(
                f"The {what} data for input {name!r} has samples of shape {array.shape[1:]}; expected {expected}."
            )
    return arrays
