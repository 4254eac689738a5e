"""TensorFlow operations that Keras 2 kept as layers, each written with `keras.ops`.

A function takes the arguments under TensorFlow's names, for that is how Keras 2 stored them; `name`, and what is None,
is left out before it is called.
"""

from kpipe.legacy.operations import arithmetic, shaping
from kpipe.legacy.operations.table import OPERATIONS, operation_named

__all__ = ["OPERATIONS", "arithmetic", "operation_named", "shaping"]
