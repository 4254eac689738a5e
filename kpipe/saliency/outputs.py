"""Evidence from activations: what the channels that a weight produces put out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L
from keras.src.ops import nn, numpy

from kpipe.graph import Site, Trace, at_inference, evaluate, functional, trace
from kpipe.layers import ELEMENTWISE, KERNEL_ROLES
from kpipe.saliency.batches import Pass, unlabelled
from kpipe.saliency.losses import traced, undisturbed

Statistic = Callable[[Any], Any]
"""Values of a tensor -> what is averaged over them, elementwise."""

ACTIVATION_LAYERS = (L.Activation, L.ReLU, L.LeakyReLU, L.PReLU, L.ELU, L.Softmax)


def _operations() -> Iterator[type]:
    """Give the operations of `keras.ops` that are activation functions: `LeakyRelu` for `leaky_relu`."""
    for function in ELEMENTWISE - {keras.activations.linear}:
        name = "".join(part.capitalize() for part in function.__name__.split("_"))
        for module in (nn, numpy):
            if isinstance(found := getattr(module, name, None), type):
                yield found


ACTIVATION_OPERATIONS = tuple(_operations())


def mean_outputs(model: keras.Model, variables: Sequence[keras.Variable], loss: Any = None) -> Pass:
    """Prepare to take the mean |a| over samples and places, a the activations of the channels that a weight produces.

    A channel's activations are read behind the activation functions: at every layer or operation that applies one and
    puts the channel out, be it the layer that produces it, one behind its batch norm or one behind the addition that it
    goes into; their means are averaged. A channel that passes no such function is read where it is produced.

    Args:
        model: A built Functional or Sequential model; it runs in inference mode and stays as it is.
        variables: The weights.
        loss: Not used.

    Returns:
        From data, what `model.fit` takes, with labels or without, to an array for each weight that broadcasts to it:
        one value for each channel that it produces. None for a weight that is no kernel, or produces none. It raises
        `KpipeError` when data are missing.

    Raises:
        SurgeryError: When the model's graph cannot be read.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.ReLU()])
        >>> net.set_weights([np.array([[1.0, -1.0]]), np.zeros(2)])
        >>> mean_outputs(net, net.weights[:1])(np.array([[3.0], [5.0]]))[0].tolist()
        [[4.0, 0.0]]
    """
    return _by_channel(model, variables, tf.abs)


def active_outputs(model: keras.Model, variables: Sequence[keras.Variable], loss: Any = None) -> Pass:
    """Prepare to take the fraction of the activations that are not zero: 1 minus the "average percentage of zeros".

    The arguments, what is given back and where activations are read are those of `mean_outputs`.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.ReLU()])
        >>> net.set_weights([np.array([[1.0, -1.0]]), np.zeros(2)])
        >>> active_outputs(net, net.weights[:1])(np.array([[3.0], [5.0], [-1.0], [1.0]]))[0].tolist()
        [[0.75, 0.25]]

    References:
        Hu et al., Network trimming: a data-driven neuron pruning approach (2016), https://arxiv.org/abs/1607.03250
    """
    return _by_channel(model, variables, lambda values: tf.cast(values != 0, "float32"))


def _by_channel(model: keras.Model, variables: Sequence[keras.Variable], statistic: Statistic) -> Pass:
    found = trace(model, unknown="freeze")
    places = {id(w.variable): place for w in found.weights if (place := _produced(found, w)) is not None}
    wanted = np.zeros(found.class_count, bool)
    for variable in variables:
        if id(variable) in places:
            wanted[found.class_of[places[id(variable)][1]]] = True
    read = _where_read(found, wanted)
    # Shapes are kept as they are: layers may depend on a number of steps that is known.
    look = traced(lambda x: _look(found, model, read, statistic, x), reduce_retracing=False)

    def through(data: Any) -> list[np.ndarray | None]:
        sums: dict[int, np.ndarray] = {}
        counts: dict[int, float] = {}
        batches = unlabelled(data)
        with undisturbed(model):
            for x in batches:
                for key, (total, count) in look(x).items():
                    sums[key] = sums.get(key, 0.0) + total.numpy().astype("float64")
                    counts[key] = counts.get(key, 0.0) + float(count)
        by_class = _average(found, read, {key: total / counts[key] for key, total in sums.items()})
        return [_spread(found, by_class, variable, places.get(id(variable))) for variable in variables]

    return through


def _produced(found: Trace, weight: Any) -> tuple[int, np.ndarray] | None:
    """Give the axis along which a kernel produces channels, and their ids; None where there is none."""
    if weight.role not in KERNEL_ROLES:
        return None
    axes = [axis for axis in weight.axes if axis not in weight.summed]
    return (axes[-1], weight.axes[axes[-1]]) if axes else None


def _where_read(found: Trace, wanted: np.ndarray) -> dict[int, np.ndarray]:
    """Map the key of each tensor that is looked at to the classes that are read there, shape (classes,), bool."""
    read: dict[int, np.ndarray] = {}
    seen, first = np.zeros(found.class_count, bool), np.full(found.class_count, -1)
    for site in found.flow.sites:
        for key in site.outputs:
            carried = np.zeros(found.class_count, bool)
            carried[found.class_of[found.tensors[key]].reshape(-1)] = True
            first[carried & (first < 0)] = key
            if applies_activation(site) and (carried & wanted).any():
                read[key] = carried & wanted
                seen |= carried
    for key in np.unique(first[wanted & ~seen & (first >= 0)]):
        read[int(key)] = read.get(int(key), False) | (wanted & ~seen & (first == key))
    return read


def applies_activation(site: Site) -> bool:
    """Say whether a site applies an activation function other than the identity.

    Example:
        >>> from kpipe.graph import sites
        >>> net = keras.Sequential([keras.Input((1,)), L.Dense(2), L.ReLU(), L.Dense(2, activation="tanh")])
        >>> [applies_activation(site) for site in sites(net).sites]
        [False, False, True, True]
    """
    activation = getattr(site.operation, "activation", None)
    if activation is not None:
        return activation is not keras.activations.linear
    return isinstance(site.operation, (*ACTIVATION_LAYERS, *ACTIVATION_OPERATIONS))


def _look(found: Trace, model: keras.Model, read: Mapping[int, Any], statistic: Statistic, x: Any) -> dict[int, Any]:
    """Run a batch: key -> (sum of the statistic for each entry along the channels' axis, number of summands)."""
    result: dict[int, Any] = {}

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        y = at_inference(site.operation, *args, **kwargs)
        for key, values in zip(site.outputs, keras.tree.flatten(y), strict=True):
            if key in read:
                ids = found.tensors[key]
                along = {1 + axis for axis, size in enumerate(ids.shape) if size > 1}
                others = [axis for axis in range(len(values.shape)) if axis not in along]
                total = tf.reduce_sum(statistic(tf.cast(values, "float32")), axis=others)
                count = tf.size(values, out_type="int64") // tf.size(total, out_type="int64")
                result[key] = tf.reshape(total, [-1]), count
        return y

    evaluate(found.flow, functional(model)._standardize_inputs(x), call)
    return result


def _average(found: Trace, read: Mapping[int, np.ndarray], means: Mapping[int, np.ndarray]) -> np.ndarray:
    """Average over the entries of each class in a tensor, then over the tensors; NaN for what was read nowhere."""
    totals, tensors = np.zeros(found.class_count), np.zeros(found.class_count)
    for key, values in means.items():
        classes = found.class_of[found.tensors[key].reshape(-1)]
        entries = np.bincount(classes, minlength=found.class_count)
        here = read[key] & (entries > 0)
        totals[here] += np.bincount(classes, weights=values, minlength=found.class_count)[here] / entries[here]
        tensors += here
    return np.divide(totals, tensors, out=np.full(found.class_count, np.nan), where=tensors > 0)


def _spread(
    found: Trace, by_class: np.ndarray, variable: keras.Variable, place: tuple[int, np.ndarray] | None
) -> np.ndarray | None:
    if place is None:
        return None
    axis, ids = place
    values = by_class[found.class_of[ids]]
    if np.isnan(values).any():
        return None
    return values.reshape([-1 if i == axis else 1 for i in range(len(variable.shape))])
