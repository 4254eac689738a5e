"""Batch norm's statistics taken anew: after a cut, the mean and variance of what the layers see now."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

from kpipe.checks import is_whole
from kpipe.copies import copy_model
from kpipe.data import weighted_batches
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.layers import located
from kpipe.saliency import check_data
from kpipe.saliency.losses import traced


def reestimate_batch_norm(
    model: keras.Model,
    data: Any,
    batches: int | None = None,
    batch_size: int = 256,
    layer_by_layer: bool = False,
) -> keras.Model:
    """Take the mean and variance of every batch norm anew, over the data and not as a moving average.

    What a network has learned of its activations no longer holds once channels or layers are gone. This needs no
    labels and no training. Each batch is normalized with its own mean and variance, as in training, but dropout and
    what else differs in training is off; with n values of a channel in a batch, of mean m and variance v, the layer
    gets

        mean = sum(n * m) / sum(n),  variance = sum(n * (v + m ** 2)) / sum(n) - mean ** 2

    which is exact whatever the sizes of the batches. Give batches that are mixed as in training, not sorted by class.
    With `layer_by_layer` each layer is measured in a pass of its own, behind layers that have their new statistics
    already: just what it sees in inference, however the data are batched, at a pass over the data for each layer.

    Args:
        model: A built Keras model; it is not changed.
        data: What `model.fit` takes; labels and sample weights are left out.
        batches: How many batches to take from the start; None: all.
        batch_size: Samples a batch for arrays; other data comes in its own batches.
        layer_by_layer: Measure one layer after another.

    Returns:
        A copy of the model, not compiled, with new statistics. Layers that are frozen (`trainable=False`) keep theirs.

    Raises:
        KpipeError: When the data are empty, never end, or are used up too early, or an argument is out of range.

    Warns:
        NoEffectWarning: When a batch norm, or all of them, keep their statistics; it names them with the reason.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> norm = reestimate_batch_norm(net, np.array([[1.0], [3.0], [8.0]]), batch_size=2).layers[0]
        >>> norm.moving_mean.numpy().tolist(), round(float(norm.moving_variance.numpy()[0]), 4)
        ([4.0], 8.6667)

    References:
        Wu and Johnson, Rethinking "batch" in BatchNorm (2021), https://arxiv.org/abs/2105.07576
    """
    _check(data, batches, batch_size, layer_by_layer)
    twin = copy_model(model)
    norms = {path: layer for path, layer in located(twin).items() if isinstance(layer, L.BatchNormalization)}
    tallies = {path: _Tally(layer) for path, layer in norms.items() if layer.trainable}
    if not tallies:
        what = f"are frozen: {', '.join(norms)}" if norms else "there are none"
        _warn(f"No BatchNormalization of {model.name!r} takes new statistics: {what}. The result is a copy.")
        return twin
    reached = _pass(twin, list(tallies.values()), data, batches, batch_size)
    for tally in reached:
        if layer_by_layer:
            tally.clear()
            _pass(twin, [tally], data, batches, batch_size)
        if not tally.is_empty:
            tally.assign()
    kept = [f"{path} (frozen)" for path in norms if path not in tallies]
    kept += [f"{path} (never called on these data)" for path, tally in tallies.items() if tally not in reached]
    empty = [path for path, tally in tallies.items() if tally in reached and tally.is_empty]
    kept += [f"{path} (all that it sees on these data is masked)" for path in empty]
    if kept:
        _warn(f"These BatchNormalization layers of {model.name!r} keep their statistics: {', '.join(kept)}.")
    return twin


def _check(data: Any, batches: Any, batch_size: Any, layer_by_layer: bool) -> None:
    if data is None:
        raise KpipeError("reestimate_batch_norm needs data to measure. Received: data=None. Pass data=x.")
    for name, value in (("batches", batches), ("batch_size", batch_size)):
        if not (value is None and name == "batches") and not is_whole(value, 1):
            raise KpipeError(f"{name} is {value!r}; expected a number of at least 1.")
    if batches is None:
        check_data(data)
    if layer_by_layer and isinstance(data, Iterator):
        check_data(data, again="reestimate_batch_norm(layer_by_layer=True)")


def _warn(text: str) -> None:
    warnings.warn(text, NoEffectWarning, stacklevel=3)


class _Tally:
    """Gather number, mean and sum of squared deviations of what one layer normalizes, for each channel."""

    def __init__(self, layer: Any):
        self.layer = layer
        zeros = tf.zeros(layer.moving_mean.shape, "float64")
        self.count, self.mean, self.squares = (tf.Variable(zeros, trainable=False) for _ in range(3))

    def clear(self) -> None:
        """Begin anew."""
        for variable in (self.count, self.mean, self.squares):
            variable.assign(tf.zeros_like(variable))

    @property
    def is_empty(self) -> bool:
        """Whether there was no value at all: what was normalized is masked."""
        return not self.count.numpy().any()

    def add(self, count: Any, mean: Any, variance: Any) -> None:
        """Take up a batch: number of values, their mean and their variance, for each channel."""
        total, delta = self.count + count, mean - self.mean
        share = tf.math.divide_no_nan(count, total)
        self.squares.assign_add(count * variance + delta**2 * self.count * share)
        self.mean.assign_add(delta * share)
        self.count.assign(total)

    def assign(self) -> None:
        """Give the layer what was gathered; those of batch renormalization follow from it."""
        layer, mean = self.layer, self.mean.numpy()
        variance = self.squares.numpy() / self.count.numpy()
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        if layer.renorm:
            layer.renorm_mean.assign(mean)
            for deviation in (layer.moving_stddev, layer.renorm_stddev):
                deviation.assign(np.sqrt(variance + layer.epsilon))


def _pass(twin: Any, tallies: Sequence[_Tally], data: Any, batches: int | None, batch_size: int) -> list[_Tally]:
    """Gather over the data; give the tallies whose layers were reached, in the order of their first calls."""
    run = traced(lambda x: twin(x, training=False), reduce_retracing=False)
    reached: list[_Tally] = []
    empty = True
    with _watching(tallies, reached):
        for x, _, _ in islice(weighted_batches(data, batch_size), batches):
            run(x)
            empty = False
    if empty:
        raise KpipeError("reestimate_batch_norm needs data to measure. Received: no batch at all.")
    return reached


@contextmanager
def _watching(tallies: Sequence[_Tally], reached: list[_Tally]) -> Iterator[None]:
    """Let layers normalize each batch by itself meanwhile, and tell their tallies."""
    before = [(t.layer, dict(vars(t.layer)), [np.asarray(v) for v in t.layer.variables]) for t in tallies]
    try:
        for tally in tallies:
            own: Any = vars(tally.layer)
            own["call"] = _watched(tally.layer.call, tally, reached)
            # With no momentum, the moving statistics after a call are those of its batch.
            own["momentum"], own["renorm"] = 0.0, False
            tally.layer.moving_mean.assign(np.zeros(tally.layer.moving_mean.shape))
            tally.layer.moving_variance.assign(np.ones(tally.layer.moving_variance.shape))
        yield
    finally:
        for layer, attributes, values in before:
            own: Any = vars(layer)
            own.pop("call", None)
            own.update({name: attributes[name] for name in ("call", "momentum", "renorm") if name in attributes})
            for variable, value in zip(layer.variables, values, strict=True):
                variable.assign(value)


def _watched(call: Callable[..., Any], tally: _Tally, reached: list[_Tally]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if tally not in reached:
            reached.append(tally)
        arguments = signature.bind(*args, **kwargs).arguments | {"training": True}
        outputs = call(**arguments)
        x, mask = arguments["inputs"], arguments.get("mask")
        moments = tally.layer.moving_mean, tally.layer.moving_variance
        tally.add(_count(tally.layer, x, mask), *(tf.cast(tf.convert_to_tensor(one), "float64") for one in moments))
        return outputs

    return watched


def _count(layer: L.BatchNormalization, x: Any, mask: Any) -> Any:
    """Count the values of each channel, shape (channels,), or one number where there is no mask."""
    axes = [axis for axis in range(len(x.shape)) if axis != layer.axis % len(x.shape)]
    if mask is None:
        shape = tf.cast(tf.shape(x), "float64")
        return math.prod(shape[axis] for axis in axes)
    return tf.reduce_sum(tf.cast(tf.broadcast_to(tf.expand_dims(mask, -1), tf.shape(x)), "float64"), axes)
