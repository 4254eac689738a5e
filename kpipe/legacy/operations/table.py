"""Where the operations are kept, by TensorFlow's names."""

from collections.abc import Callable
from typing import Any

from kpipe.errors import KpipeError
from kpipe.registry import Registry

OPERATIONS: Registry[Callable[..., Any]] = Registry("TensorFlow operation")
"""TensorFlow's public name of an operation -> the same with `keras.ops`."""


def operation_named(symbol: str, layer: str) -> Callable[..., Any]:
    """Find what computes a TensorFlow operation.

    Args:
        symbol: TensorFlow's public name, without "tf.".
        layer: The layer that keeps it, for the message.

    Raises:
        KpipeError: When `keras.ops` has nothing for it, or it is not known here.
    """
    plain = symbol.removeprefix("compat.v1.")
    for name in (symbol, plain, f"math.{plain}"):
        if name in OPERATIONS:
            return OPERATIONS[name]
    raise KpipeError(
        f"Layer {layer!r} computes tf.{symbol}, for which no equal in keras.ops is known here. Put the computation "
        "into a layer of its own under Keras 2, save the model anew, and pass the layer's class as custom_objects."
    )
