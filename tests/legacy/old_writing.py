"""How models of Keras 2 are written to files, in a process of tf_keras: each with its inputs and outputs beside it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Builder(NamedTuple):
    """How a model is made and saved.

    Attributes:
        forms: How it is saved.
        build: Builds the model, or it and another that gives the outputs to be met.
        as_built: Whether its weights are left as they are: wrappers keep some of their own, tables are no arrays.
    """

    forms: tuple[str, ...]
    build: Callable[[], Any]
    as_built: bool = False


MODELS: dict[str, Builder] = {}
FORMATS = {"h5": ".h5", "keras": ".keras", "tf": ""}


def saved_as(*forms: str, as_built: bool = False, among: dict[str, Builder] = MODELS) -> Callable:
    def register(build: Callable) -> Callable:
        among[build.__name__] = Builder(forms, build, as_built)
        return build

    return register


def prepare() -> None:
    """Let Keras be tf_keras in this process."""
    os.environ.update({"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"})
    import tf_keras

    sys.modules["keras"] = tf_keras


def write(models: dict[str, Builder], folder: str) -> None:
    """Build models, save them, and save inputs and outputs beside them."""
    import tensorflow as tf
    import tf_keras

    for name, builder in models.items():
        tf_keras.utils.set_random_seed(1)
        built = builder.build()
        model, truth = built if isinstance(built, tuple) else (built, built)
        if not builder.as_built:
            shaken(model)
        for form in builder.forms:
            model.save(Path(folder) / (name + FORMATS[form]), save_format=form)
        rng = np.random.default_rng(2)
        if not isinstance(model, tf_keras.Sequential) and not model._is_graph_network:
            continue
        inputs = [_sample(rng, tensor) for tensor in tf.nest.flatten(model.input)]
        tensors = [tf.constant(array) for array in inputs]
        outputs = tf.nest.flatten(truth(tf.nest.pack_sequence_as(truth.input, tensors), training=False))
        arrays = {f"input_{number:02d}": array for number, array in enumerate(inputs)}
        arrays.update({f"output_{number:02d}": _array(output) for number, output in enumerate(outputs)})
        np.savez(Path(folder) / f"{name}.npz", **arrays)


def _array(tensor):
    array = tensor.numpy()
    return array.astype(bytes) if array.dtype == object else array


def shaken(model):
    """Move all weights, so that no bias, mean or variance is what it starts as; variances stay positive."""
    rng = np.random.default_rng(3)
    model.set_weights([_near(rng, weight) for weight in model.get_weights()])
    return model


def _near(rng, weight):
    if weight.dtype.kind != "f":
        return weight
    return (weight * rng.uniform(0.8, 1.2, weight.shape) + rng.uniform(0.0, 0.3, weight.shape)).astype(weight.dtype)


def _sample(rng, tensor):
    shape = [3, *(5 if size is None else size for size in tensor.shape[1:])]
    if tensor.dtype.name == "string":
        return rng.choice(["cat", "the dog", "dog", "nobody"], shape)
    if tensor.dtype.is_integer or tensor.name.startswith("words"):
        return rng.integers(1, 5, shape).astype(tensor.dtype.as_numpy_dtype)
    return rng.normal(size=shape).astype(tensor.dtype.as_numpy_dtype)
