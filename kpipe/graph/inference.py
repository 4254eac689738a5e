"""A call of one layer or operation as a model makes it in inference."""

from collections.abc import Callable
from typing import Any


def at_inference(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer, an operation or a function on values, told that nothing is trained.

    Outside of a model, layers that vary images do so unless they are told.

    Args:
        function: What is called.
        *args: Its arguments.
        **kwargs: Likewise.

    Returns:
        What comes out.

    Example:
        >>> import keras
        >>> vary = keras.layers.RandomBrightness(0.9, value_range=(0, 1))
        >>> at_inference(vary, keras.ops.ones((1, 1, 1, 1))).numpy().item()
        1.0
    """
    if getattr(function, "_call_has_training_arg", False):
        kwargs["training"] = False
    return function(*args, **kwargs)
