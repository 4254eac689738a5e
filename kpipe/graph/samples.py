"""Random input for comparing models."""

from typing import Any

import keras
import numpy as np


def random_inputs(model: keras.Model, seed: int = 0, batch: int = 2, open_size: int = 32) -> list[np.ndarray]:
    """Draw one array for each input of a model: numbers in [0, 2), or 0 and 1 where it takes whole ones or text.

    None is below 0: a model may take their logarithm, or look them up as tokens. The first of a sample is not below 1:
    no sequence is all padding.

    Args:
        model: A model with a graph.
        seed: Of the randomness.
        batch: How many samples, where the model leaves it open.
        open_size: Stands in for other sizes that are open.

    Returns:
        One array for each input.

    Example:
        >>> image, token = keras.Input((2, 3)), keras.Input((4,), dtype="int32")
        >>> [(one.shape, str(one.dtype)) for one in random_inputs(keras.Model([image, token], [image, token]))]
        [((2, 2, 3), 'float32'), ((2, 4), 'int32')]
    """
    rng = np.random.default_rng(seed)
    return [_random(tensor, rng, batch, open_size) for tensor in model.inputs]


def _random(tensor: Any, rng: np.random.Generator, batch: int, open_size: int) -> np.ndarray:
    first, *others = (*tensor.shape,)
    shape = (batch if first is None else first, *(open_size if size is None else size for size in others))
    whole = "int" in tensor.dtype or tensor.dtype in ("bool", "string")
    values = rng.integers(0, 2, shape) if whole else rng.uniform(0.0, 2.0, shape)
    if len(shape) > 1:
        values[:, :1] = np.maximum(values[:, :1], 1) if whole else 1 + values[:, :1] / 2
    if tensor.dtype == "string":
        return values.astype(str).astype(object)
    return values.astype(tensor.dtype if whole else "float32")
