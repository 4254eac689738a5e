"""Clusters of weights that share a value: found in a weight that has them, and held while it trains."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.layers import KERNEL_ROLES, NATURAL, Layout, weights_within
from kpipe.projections.holder import Holder, held_on
from kpipe.projections.zeros import trained_model

_LARGE = 2**14
"""Entries from which on sums over clusters are compiled by XLA: a tenth of the time, after a tenth of a second."""


class Codebook:
    """Set each entry of a weight to the mean of its cluster, and those of cluster 0 to exactly zero.

    The mean is taken as v + mean(w - v), v the cluster's first entry: where all are alike already nothing is rounded,
    so that applying it twice changes nothing more, and a cluster of millions does not drift.

    Args:
        assignment: Of the weight's shape: the number of each entry's cluster; 0 for those that are held at zero.

    Example:
        >>> codebook = Codebook(np.array([0, 1, 1, 2]))
        >>> codebook(np.array([0.5, 1.0, 3.0, 7.0], "float32")).numpy().tolist()
        [0.0, 2.0, 2.0, 7.0]
        >>> codebook.shared(tf.constant([0.5, 1.0, 3.0, 7.0])).numpy().tolist()
        [0.0, 4.0, 4.0, 7.0]
    """

    def __init__(self, assignment: np.ndarray):
        assignment = np.asarray(assignment)
        used, first, counts = np.unique(assignment, return_index=True, return_counts=True)
        self.shape, self.count = assignment.shape, int(used[-1]) + 1
        starts, sizes = np.zeros(self.count, np.int64), np.ones(self.count, np.float32)
        starts[used], sizes[used] = first, counts
        self._first, self._sizes = tf.constant(starts), tf.constant(sizes)
        self._assignment = tf.constant(assignment.ravel().astype(np.min_scalar_type(self.count - 1)))
        compiled = True if assignment.size >= _LARGE and not tf.config.list_logical_devices("GPU") else None
        self._mean = tf.function(self._mean_of, autograph=False, jit_compile=compiled)
        self._shared = tf.function(self._sum_of, autograph=False, jit_compile=compiled)

    def __call__(self, w: Any) -> Any:
        return self._mean(tf.convert_to_tensor(w))

    def shared(self, gradient: Any, mean: bool = False) -> Any:
        """Give every entry the sum of its cluster's gradients, which is the gradient of their common value.

        Those of cluster 0 get zero, so that an optimizer gathers nothing for them.

        Args:
            gradient: One number an entry.
            mean: Give the mean, not the sum.

        References:
            Han et al., Deep Compression (2015), equation 3.
        """
        return self._shared(tf.convert_to_tensor(gradient), mean)

    def numpy(self) -> np.ndarray:
        """Give the number of each entry's cluster."""
        return self._assignment.numpy().reshape(self.shape)

    def _mean_of(self, w: tf.Tensor) -> tf.Tensor:
        numbers, flat = self._numbers(), self._flat(w)
        first = tf.gather(flat, self._first)
        away = tf.math.unsorted_segment_sum(flat - tf.gather(first, numbers), numbers, self.count)
        return self._spread(first + away / tf.cast(self._sizes, flat.dtype), numbers, w.dtype)

    def _sum_of(self, gradient: tf.Tensor, mean: bool) -> tf.Tensor:
        numbers, flat = self._numbers(), self._flat(gradient)
        total = tf.math.unsorted_segment_sum(flat, numbers, self.count)
        return self._spread(total / tf.cast(self._sizes, flat.dtype) if mean else total, numbers, gradient.dtype)

    def _numbers(self) -> tf.Tensor:
        return tf.cast(self._assignment, tf.int32)

    def _flat(self, values: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.reshape(values, [-1]), tf.float64 if values.dtype == tf.float64 else tf.float32)

    def _spread(self, values: tf.Tensor, numbers: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Give each entry the value of its cluster; that of cluster 0 is 0, whatever stands there."""
        values = tf.concat([tf.zeros([1], values.dtype), values[1:]], 0)
        return tf.reshape(tf.gather(tf.cast(values, dtype), numbers), self.shape)


def first_codebook(
    weight: np.ndarray, most: int = 256, layout: Layout | None = None, zeros: bool = True
) -> np.ndarray | None:
    """Find the clusters of a weight that has been clustered: equal entries are of one cluster.

    Args:
        weight: Any shape.
        most: More distinct values, zero counted, are no clusters.
        layout: Its axes, where each output channel has a codebook of its own; None where the weight has one.
        zeros: Exact zeros are cluster 0, which is held at zero; else they are one cluster among the others.

    Returns:
        Of the weight's shape: the number of each entry's cluster, from 1; 0 for exact zeros. None for a weight that is
        not clustered: too many distinct values, no two entries alike and none zero, or nothing but zeros, which has not
        been trained yet.

    Example:
        >>> first_codebook(np.array([0.0, 0.5, -1.0, 0.5])).tolist()
        [0, 2, 1, 2]
        >>> first_codebook(np.array([0.1, 0.2, 0.3])) is None, first_codebook(np.array([1.0, 1.0]), most=0) is None
        (True, True)
    """
    turned = np.reshape(weight, (-1, 1)) if layout is None else layout.turn(weight)
    columns = turned.reshape(-1, turned.shape[-1])
    numbers, known = np.zeros(columns.shape, np.int64), 0
    for column, values in enumerate(columns.T):
        distinct, places = np.unique(values, return_inverse=True)
        if len(distinct) > most:
            return None
        zero = distinct == 0 if zeros else np.zeros(len(distinct), bool)
        of_value = np.where(zero, 0, known + np.cumsum(~zero))
        numbers[:, column] = of_value[places]
        known += np.count_nonzero(~zero)
    if known == 0 or known == numbers.size:
        return None
    numbers = numbers.reshape(turned.shape)
    return numbers.reshape(np.shape(weight)) if layout is None else layout.back(numbers, np.shape(weight))


def hold_clusters(
    model: keras.Model, variables: Iterable[keras.Variable] | None = None, most: int = 256, mean: bool = False
) -> Holder:
    """Hold the clusters that a model's kernels have, so that further training moves their values and adds none.

    Equal entries stay equal, exact zeros stay zero, and every entry is given the sum of its cluster's gradients. A
    kernel that has more than `most` distinct values is looked at by output channels; one that has more there too is
    left alone, as is one of nothing but zeros.

    Args:
        model: The compiled model that is going to be fit, or a `keras.distillation.Distiller` around it.
        variables: The variables to hold; None for every kernel of the layers that kpipe knows.
        most: Distinct values of a kernel, or of a channel, that still count as clusters.
        mean: Give the mean of the gradients, not the sum.

    Returns:
        A `Holder`; call its `release` after training, or use it in a `with` statement.

    Raises:
        KpipeError: When the model has no optimizer yet.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> _ = net.layers[0].kernel.assign([[0.5, 0.5], [0.0, -1.0]])
        >>> net.compile("sgd", "mse")
        >>> with hold_clusters(net):
        ...     _ = net.fit(np.ones((4, 2)), np.ones((4, 2)), verbose=0)
        >>> kernel = net.layers[0].kernel.numpy()
        >>> bool(kernel[0, 0] == kernel[0, 1]), bool(kernel[0, 0] != 0.5), float(kernel[1, 0])
        (True, True, 0.0)
    """
    if getattr(model, "optimizer", None) is None:
        raise KpipeError(
            f"hold_clusters shares out the gradients that the model's optimizer gets, and {model.name!r} has none. "
            "Compile the model first."
        )
    holder = Holder(model)
    hold_codebooks(holder, variables, most, mean)
    return holder


def hold_codebooks(
    holder: Holder, variables: Iterable[keras.Variable] | None = None, most: int = 256, mean: bool = False
) -> None:
    """Let a holder hold the clusters that the kernels of its model have; see `hold_clusters`."""
    known = {id(weight.variable): weight for weight in weights_within(trained_model(holder.model))}
    kernels = [weight.variable for weight in known.values() if weight.role in KERNEL_ROLES]
    for variable in kernels if variables is None else variables:
        value = variable.numpy()
        found = first_codebook(value, most)
        if found is None:
            layout = known[id(variable)].layout if id(variable) in known else NATURAL
            found = first_codebook(value, most, layout)
        if found is not None:
            hold_codebook(holder, variable, found, mean)


def hold_codebook(holder: Holder, variable: keras.Variable, assignment: np.ndarray, mean: bool = False) -> Codebook:
    """Hold clusters on a variable: their values after every update, their gradients in front of the optimizer.

    Args:
        holder: What holds them, until it is released.
        variable: The weight.
        assignment: As `Codebook` takes it.
        mean: Give the mean of the gradients, not the sum.

    Raises:
        KpipeError: When clusters are held on the variable already.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> net.compile("sgd", "mse")
        >>> with Holder(net) as holder:
        ...     codebook = hold_codebook(holder, net.layers[0].kernel, np.array([[1], [1]]))
        >>> len(np.unique(net.layers[0].kernel.numpy())), codebook.numpy().tolist()
        (1, [[1], [1]])
    """
    if any(isinstance(projection, Codebook) for projection in held_on(variable)[1]):
        raise KpipeError(
            f"The clusters of {variable.path} are held already: a second time its gradients would be summed twice. "
            "Give each kernel to one WeightClustering or hold_clusters, and call on_train_end() of one whose fit broke "
            "off."
        )
    codebook = Codebook(assignment)
    holder.hold(variable, codebook)
    holder.change_gradient(variable, lambda gradient: codebook.shared(gradient, mean))
    return codebook
