"""Evidence from activations: the norm of what each weight of a layer multiplies."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

from kpipe.layers import layers_within, weights_within
from kpipe.saliency.batches import Pass, unlabelled
from kpipe.saliency.losses import traced, undisturbed
from kpipe.saliency.meters import CELLS, METERS, Meter


def input_norms(model: keras.Model, variables: Sequence[keras.Variable], loss: Any = None) -> Pass:
    """Prepare to take the L2 norm, over all samples and places, of the activations that each weight multiplies.

    - Dense, EinsumDense: of each input feature, over the samples and every axis that the kernel does not have.
    - Convolutions, transposed, depthwise and separable ones too: exact for each place of the window, over the samples
      and the places where the window lies; the zeros of the padding count.
    - Embedding: a token multiplies its row by one, so the norm is the square root of how often it occurs.
    - SimpleRNN, LSTM and GRU (alone or in Bidirectional): kernels like Dense, over the time steps that are not masked;
      recurrent kernels with the states that enter these steps. Not the recurrent kernel of a GRU with
      `reset_after=False`, for which a part of the states goes through a gate first.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: The weights.
        loss: Not used.

    Returns:
        From data, what `model.fit` takes, with labels or without, to an array for each weight that broadcasts to it;
        None where it is not known what the weight multiplies. It raises `KpipeError` when data are missing.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> input_norms(net, net.weights[:1])(np.array([[3.0, 1.0], [4.0, 0.0]]))[0].tolist()
        [[5.0], [1.0]]

    References:
        Sun et al., A simple and effective pruning approach for large language models (2023),
        https://arxiv.org/abs/2306.11695
    """
    wanted = {id(variable) for variable in variables}
    watches = [watch for watch in _watches(model) if id(watch.variable) in wanted]
    # Shapes are kept as they are: TimeDistributed goes through its steps in the open where their number is known.
    run = traced(lambda x: model(x, training=False), reduce_retracing=False)

    def through(data: Any) -> list[np.ndarray | None]:
        batches = unlabelled(data)
        for watch in watches:
            watch.clear()
        with undisturbed(model), _spying(watches):
            for x in batches:
                run(x)
        return [_norm([watch.total for watch in watches if watch.variable is variable]) for variable in variables]

    return through


def _norm(totals: Sequence[tf.Variable | None]) -> np.ndarray | None:
    found = [total.numpy() for total in totals if total is not None]  # None: the data never came to the layer
    return np.sqrt(sum(found)) if found else None


class _Watch:
    """Sum up what one weight multiplies, over all calls of its layer."""

    def __init__(self, variable: keras.Variable, layer: keras.Layer, measure: Meter):
        self.variable, self.layer, self.measure = variable, layer, measure
        self.total: tf.Variable | None = None

    def clear(self) -> None:
        """Begin a new sum."""
        if self.total is not None:
            self.total.assign(tf.zeros_like(self.total))

    def add(self, arguments: dict[str, Any]) -> None:
        """Add what the weight multiplies in one call."""
        x, *_ = arguments.values()
        found = self.measure(self.layer, x, arguments)
        if self.total is None:
            with tf.init_scope():
                self.total = tf.Variable(tf.zeros(found.shape, "float32"), trainable=False)
        self.total.assign_add(found)


def _watches(model: keras.Model) -> Iterator[_Watch]:
    """Find which layer to watch for each weight: its own, or the recurrent layer around its cell."""
    around = defaultdict(list)
    for layer in layers_within(model):
        if isinstance(layer, L.RNN):
            around[id(layer.cell)].append(layer)
    for weight in weights_within(model):
        own, name = weight.layer, weight.name
        found = (METERS.get((cls, name)) for cls in type(own).__mro__)
        measure = next((one for one in found if one is not None), None)
        gated = isinstance(own, L.GRUCell) and not own.reset_after and name == "recurrent_kernel"
        if measure is not None and not gated:
            for layer in around[id(own)] if isinstance(own, CELLS) else [own]:
                yield _Watch(weight.variable, layer, measure)


@contextmanager
def _spying(watches: Sequence[_Watch]) -> Iterator[None]:
    """Let the watches see every call of their layers meanwhile."""
    layers = {id(watch.layer): watch.layer for watch in watches}
    own: dict[int, Any] = {key: vars(layer) for key, layer in layers.items()}
    before = {key: attributes["call"] for key, attributes in own.items() if "call" in attributes}
    try:
        for key, layer in layers.items():
            own[key]["call"] = _spy(layer.call, [watch for watch in watches if id(watch.layer) == key])
        yield
    finally:
        for key, attributes in own.items():
            attributes.pop("call", None)
            if key in before:
                attributes["call"] = before[key]


def _spy(call: Callable[..., Any], watches: Sequence[_Watch]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    def spy(*args: Any, **kwargs: Any) -> Any:
        for watch in watches:
            watch.add(signature.bind(*args, **kwargs).arguments)
        return call(*args, **kwargs)

    return spy
