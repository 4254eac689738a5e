"""The same numbers in every run: TensorFlow's deterministic operations, for a while."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

# TensorFlow can switch determinism off and tell whether it is on only here; Keras asks the same module.
from tensorflow.python.framework import config


@contextlib.contextmanager
def deterministic_operations() -> Iterator[None]:
    """Let TensorFlow compute the same in every run; afterwards it is as it was.

    While it is on, Keras does not compile with XLA (`jit_compile`).

    Example:
        >>> with deterministic_operations():
        ...     inside = config.is_op_determinism_enabled()
        >>> inside, config.is_op_determinism_enabled()
        (True, False)
    """
    before = config.is_op_determinism_enabled()
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            config.disable_op_determinism()
