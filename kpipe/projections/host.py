"""Values of variables on the host, without the copies that the runtime's own ways make."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def view(variable: Any) -> np.ndarray:
    """Give a variable's value where it lies, if that is the host's memory, else as a copy; it cannot be written to.

    The value stays what it is: an update of the variable while the view is in use takes memory of its own.

    Args:
        variable: Of Keras or TensorFlow; one that a strategy mirrors gives its first replica.

    Example:
        >>> variable = tf.Variable([1.0, 2.0])
        >>> seen = view(variable)
        >>> _ = variable.assign([3.0, 4.0])
        >>> seen.tolist(), view(variable).tolist()
        ([1.0, 2.0], [3.0, 4.0])
    """
    raw = variable.value if isinstance(variable, keras.Variable) else variable
    if isinstance(raw, tf.distribute.DistributedValues):
        tensor = tf.convert_to_tensor(raw)
    else:  # the operation itself: what leads to it takes twice as long, of which a small weight feels nothing else
        tensor = tf.raw_ops.ReadVariableOp(resource=raw.handle, dtype=raw.dtype)
    found = np.asarray(tensor)
    found.flags.writeable = False
    return found


def put(variable: Any, value: np.ndarray) -> None:
    """Write an array into a variable, which may take it over as it is.

    Do not write to the array afterwards, and give no `view` of another variable.

    Args:
        variable: Of TensorFlow; one that a strategy mirrors gets it on every replica.
        value: Of the variable's shape and type.

    Example:
        >>> variable = tf.Variable([1.0, 2.0])
        >>> put(variable, np.array([3.0, 4.0], "float32"))
        >>> variable.numpy().tolist()
        [3.0, 4.0]
    """
    if isinstance(variable, tf.distribute.DistributedValues):
        variable.assign(value, read_value=False)
    else:
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
