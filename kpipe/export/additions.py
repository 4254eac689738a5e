"""Additions as they are meant, where Keras takes what is added for a bias."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend

CHANGED = threading.RLock()
"""Held while Keras's addition is another one."""


@contextmanager
def broadcast_additions() -> Iterator[None]:
    """Let `keras.ops.add` broadcast for a while, as it says that it does.

    In TensorFlow it calls what is added a bias as soon as a single axis of it is longer than 1, and adds it along the
    last axis or along that behind the batch, whichever is as long. In a batch of one that holds for many a tensor: a
    number for each step, (1, t, 1), would be added along the wrong axis where there are t channels too, and elsewhere
    be written as an operation that the converters refuse. A bias proper is left to Keras: the converters know it.

    Example:
        >>> x, y = keras.ops.zeros((1, 2, 2)), keras.ops.array([[[1.0], [2.0]]])
        >>> with broadcast_additions():
        ...     keras.ops.add(x, y)[0].numpy().tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """
    with CHANGED:
        yield from _broadcasting()


def _broadcasting() -> Iterator[None]:
    own = backend.numpy.add

    def add(x1: Any, x2: Any) -> Any:
        if isinstance(x1, (int, float)) or isinstance(x2, (int, float)):
            return own(x1, x2)
        x1, x2 = keras.ops.convert_to_tensor(x1), keras.ops.convert_to_tensor(x2)
        if is_bias(tuple(x1.shape), tuple(x2.shape)) and keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(x2.dtype)
        ):
            return own(x1, x2)
        dtype = keras.backend.result_type(x1.dtype, x2.dtype)
        return tf.add(tf.cast(x1, dtype), tf.cast(x2, dtype))

    backend.numpy.add = add
    try:
        yield
    finally:
        backend.numpy.add = own


def is_bias(shape: tuple[int | None, ...], added: tuple[int | None, ...]) -> bool:
    """Say whether what is added to a tensor of a shape has no axis but that of channels, and is not as large as it.

    Example:
        >>> [is_bias((1, 5, 3), added) for added in ((3,), (1, 1, 3), (1, 5, 1), (1, 5, 3))]
        [True, True, False, False]
    """
    alone = added != shape and added[-1:] == shape[-1:] and all(size == 1 for size in added[:-1])
    return len(added) == 1 or alone
