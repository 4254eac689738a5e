"""A constant of a graph that a layer is called on, such as the positions 0, 1, 2 that have embeddings."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.layers import ChannelIds, Ids, Rule, rule

CHANGED = threading.RLock()
"""Held while `keras.Layer.__call__` is another one."""


@keras.saving.register_keras_serializable(package="kpipe")
class Constant(keras.layers.Layer):
    """Give the same values whatever goes in: a Keras graph holds no call of a layer that no input leads to.

    Args:
        value: Numbers of any shape, which has no batch axis.
        value_dtype: Their type.
        **kwargs: What a Keras layer takes.

    Example:
        >>> places = Constant([0, 1, 2], "int32")
        >>> places(keras.ops.ones((1, 3))).numpy().tolist(), places(keras.Input((3,))).shape
        ([0, 1, 2], (3,))
    """

    def __init__(self, value: Any, value_dtype: str, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, "dtype": "float32", **kwargs})
        self.value, self.value_dtype = np.asarray(value, value_dtype), value_dtype
        self.built, self.supports_masking = True, True

    def call(self, x: Any) -> Any:
        """Give the values, whatever `x` is."""
        return keras.ops.convert_to_tensor(self.value)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Hand no mask on."""

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        """Tell shape and type of the values."""
        return keras.KerasTensor(self.value.shape, self.value_dtype)

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        return {**super().get_config(), "value": self.value.tolist(), "value_dtype": self.value_dtype}


@rule(Constant, quantization="output")
def constant(layer: Constant, ids: ChannelIds, x: Ids) -> Rule:
    """Give values in which no channel goes; of what goes in nothing counts."""
    return Rule(ids.constant(f"{ids.path!r} is a constant"), samples=0)


class Constants:
    """Let layers that are called on constants alone be called on `Constant` layers instead.

    Args:
        model: Whose call becomes a graph.
        source: The tensor of the graph that the constants are called on.
    """

    def __init__(self, model: Any, source: keras.KerasTensor):
        self.source, self.made = source, dict[Any, Constant]()
        self.layers = list(model._flatten_layers())
        self.fed: dict[int, bool] = {}

    @contextmanager
    def given(self) -> Iterator[None]:
        """Change what layers with weights are called on, for a while; not those that are called inside of others."""
        with CHANGED:
            yield from self._given()

    def _given(self) -> Iterator[None]:
        own, depth, thread = keras.Layer.__call__, 0, threading.get_ident()

        @functools.wraps(own)
        def call(layer: Any, /, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if threading.get_ident() != thread:
                return own(layer, *args, **kwargs)
            if depth == 0 and self._is_fed(layer):
                args, kwargs = self._with_tensors(layer, args, kwargs)
            depth += 1
            try:
                return own(layer, *args, **kwargs)
            finally:
                depth -= 1

        keras.Layer.__call__ = call
        try:
            yield
        finally:
            keras.Layer.__call__ = own

    def _is_fed(self, layer: Any) -> bool:
        """Say whether a layer may have weights, the same at each of its calls: the first may build it."""
        return self.fed.setdefault(id(layer), bool(layer.weights) or not layer.built)

    def _with_tensors(self, layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if any(isinstance(one, keras.KerasTensor) for one in keras.tree.flatten((args, kwargs))):
            return args, kwargs
        return keras.tree.map_structure(lambda one: self._tensor(layer, one), (args, kwargs))

    def _tensor(self, layer: Any, value: Any) -> Any:
        """Give an array as a tensor of the graph: the same layer for the same values.

        A single number has no axis that could stand for samples, and a variable is no constant.
        """
        known = isinstance(value, np.ndarray) or (tf.is_tensor(value) and not tf.is_symbolic_tensor(value))
        if not known or isinstance(value, (keras.Variable, tf.Variable)) or not np.ndim(value):
            return value
        array = np.asarray(value)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self.made:
            taken = {one.name for one in (*self.layers, *self.made.values())}
            names = (f"{layer.name}_constant{number}" for number in ("", *range(1, len(taken) + 2)))
            name = next(name for name in names if name not in taken)
            self.made[key] = Constant(array, str(array.dtype), name=name)
        return self.made[key](self.source)

    def forget(self) -> None:
        """Take back the calls made so far, so that a graph holds those alone that come."""
        for one in self.made.values():
            one._inbound_nodes.clear()
            one._outbound_nodes.clear()
