"""Find inputs that a tf_keras model takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import flat, nodes_of, run, tensor_key
from .lookup import words_of
from .refusal import Refusal, shortened

SAMPLES = 2
OPEN_SIZES = ((8, 64), (32, 96), (128, 224), (512, 320))
"""What is tried, in turn, for sizes that the model leaves open: of sequences, and of images, which are to be large
enough for every place of a kernel to matter where strides have made them small."""
INTEGERS = (8, 1)
"""What is tried, in turn, as the bound of integers that reach no embedding."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a model: `values` in the model's structure, `flat` by the key of the input tensor; and its outputs."""

    values: Any
    flat: Mapping[str, np.ndarray]
    outputs: Any


def find_inputs(model: Any, samples: str | None) -> Inputs:
    """Draw inputs until the model takes them.

    Floats are normal, integers stay below the size of the embeddings they reach; the tail of the last sample is 0, as
    padding is.

    Args:
        model: A model of tf_keras.
        samples: An `.npz` whose arrays are the inputs to take instead, in the model's order.

    Raises:
        Refusal: When the model fails on all that is tried.
    """
    import tensorflow as tf

    symbolic = flat(model._nested_inputs)
    failure: Exception | None = None
    for arrays in _candidates(model, symbolic, samples):
        tensors = [
            tf.constant(array) if tensor.dtype.name == "string" else tf.cast(array, tensor.dtype)
            for array, tensor in zip(arrays, symbolic, strict=True)
        ]
        values = tf.nest.pack_sequence_as(model._nested_inputs, tensors)
        try:
            outputs = run(model, values)
        except Exception as error:  # a size or an index that this model does not take
            failure = failure or error
            continue
        by_key = {tensor_key(tensor): array for tensor, array in zip(symbolic, arrays, strict=True)}
        return Inputs(values, by_key, outputs)
    reason = shortened(failure) if failure else "nothing was tried"
    raise Refusal(f"the model does not run on {'random inputs' if samples is None else 'the given samples'}: {reason}")


def _candidates(model: Any, symbolic: list[Any], samples: str | None):
    if samples is not None:
        given = list(np.load(samples).values())
        if len(given) != len(symbolic):
            raise Refusal(f"the model has {len(symbolic)} inputs, but samples for {len(given)} were given")
        yield given
        return
    bounds, words = index_bounds(model), words_of(model)
    for sizes in OPEN_SIZES:
        for bound in INTEGERS:
            rng = np.random.default_rng(0)
            yield [
                random_strings(rng, _shape(tensor, sizes), words)
                if tensor.dtype.name == "string"
                else _random(tensor, rng, _shape(tensor, sizes), bounds.get(tensor_key(tensor)), bound)
                for tensor in symbolic
            ]


def _shape(tensor: Any, sizes: tuple[int, int]) -> tuple[int, ...]:
    batch, *rest = tensor.shape.as_list()
    open_size = sizes[len(rest) > 2]
    return (batch or SAMPLES, *[open_size if one is None else one for one in rest])


def random_strings(rng: np.random.Generator, shape: tuple[int, ...], words: list[str]) -> np.ndarray:
    """Draw strings: words by themselves in the first half of the batch, two words in the rest.

    Example:
        >>> random_strings(np.random.default_rng(0), (2, 1), ["a"]).tolist()
        [['a'], ['a a']]
    """
    first, second = rng.choice(words, shape), rng.choice(words, shape)
    second[: shape[0] // 2] = ""
    return np.char.strip(np.char.add(np.char.add(first, " "), second))


def _random(tensor: Any, rng: np.random.Generator, shape: tuple[int, ...], rows: int | None, bound: int) -> np.ndarray:
    if tensor.dtype.is_bool:
        return rng.integers(0, 2, shape).astype(bool)
    if tensor.dtype.is_integer or rows is not None:
        drawn = rng.integers(0, rows or (256 if tensor.dtype.name == "uint8" else bound), shape)
        drawn = drawn.astype(tensor.dtype.as_numpy_dtype)
    else:
        drawn = rng.normal(size=shape).astype(np.float32)
    if len(shape) > 1 and shape[0] > 1:
        drawn[-1, shape[1] - shape[1] // 3 :] = 0
    return drawn


def index_bounds(model: Any) -> dict[str, int]:
    """Map each input that reaches an embedding to the number of rows of the smallest such embedding."""
    from tf_keras import layers

    reached: dict[str, set[str]] = {}
    bounds: dict[str, int] = {}
    for node in nodes_of(model):
        feeding = set().union(*(reached.get(key, {key}) for key in map(tensor_key, node.keras_inputs)))
        for tensor in flat(node.outputs):
            reached[tensor_key(tensor)] = feeding
        for layer in node.layer._flatten_layers():
            if isinstance(layer, layers.Embedding):
                rows = int(layer.input_dim)
                bounds.update({key: min(rows, bounds.get(key, rows)) for key in feeding})
    return bounds
