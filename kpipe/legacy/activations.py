"""Activation functions of Keras 2 that mean something else in Keras 3."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kpipe", name="keras2_hard_sigmoid")
def keras2_hard_sigmoid(x: Any) -> Any:
    """Compute Keras 2's hard sigmoid: clip(0.2 · x + 0.5, 0, 1).

    Keras 3 uses clip(x / 6 + 0.5, 0, 1) under the same name.

    Args:
        x: A tensor.

    Returns:
        A tensor of the same shape.

    Example:
        >>> [round(float(value), 4) for value in keras2_hard_sigmoid(ops.array([-3.0, 0.0, 1.0, 3.0]))]
        [0.0, 0.5, 0.7, 1.0]
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)
