"""Masks that tensors carry along, taken off where a layer would drop them with a warning."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOST_MASK = r"Layer .* was passed an input with a mask attached to it"
"""What Keras says when a layer drops a mask: it said so when the model was called first."""


@contextmanager
def without_masks(*tensors: Any) -> Iterator[list[Any]]:
    """Take from tensors the masks that Keras has hung on them, for a while.

    Args:
        *tensors: Tensors, or what else goes into a layer.

    Yields:
        Their masks; None for each that carries none.

    Example:
        >>> import keras
        >>> x = keras.layers.Masking()(keras.ops.ones((1, 2, 3)))
        >>> with without_masks(x) as masks:
        ...     print(x._keras_mask, masks[0].shape)
        None (1, 2)
        >>> x._keras_mask is masks[0]
        True
    """
    masks = [getattr(tensor, "_keras_mask", None) for tensor in tensors]
    masked = [(tensor, mask) for tensor, mask in zip(tensors, masks, strict=True) if mask is not None]
    for tensor, _ in masked:
        tensor._keras_mask = None
    try:
        yield masks
    finally:
        for tensor, mask in masked:
            tensor._keras_mask = mask
