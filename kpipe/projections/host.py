"""Values of variables on the host, without the copies that the runtime's own ways make."""

from typing import Any

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
    found = np.asarray(tf.convert_to_tensor(variable))
    found.flags.writeable = False
    return found


def put(variable: Any, value: np.ndarray) -> None:
    """Write an array into a variable, which may take it over as it is: do not write to the array afterwards.

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
