"""The gradients of a training, seen where the optimizer gets them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.projections.averages import inner_optimizer
from kpipe.projections.gradients import AtApply, dense_gradient, trace_anew

FIELDS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "grad": lambda weight, gradient: gradient,
    "movement": lambda weight, gradient: -weight * gradient,
}
"""What can be gathered: name -> function of (weight before the update, gradient), summed over the updates."""


class GradientTap:
    """Sum up, inside the train step, what the gradients of some variables say; no data is passed over for it.

    The tap stands on `apply` of the model's optimizer, or of the one inside a `LossScaleOptimizer`: so it sees the
    gradients of the loss without its scale, before they are clipped, of every batch that is accumulated, and those of
    no step that was left out for its infinities. It holds under `steps_per_execution`, `jit_compile`, mixed precision
    and `tf.distribute.MirroredStrategy`. Sums take the memory of the variables once for each field, in float32.

    Args:
        model: The compiled model that is fit; its train step is compiled anew.
        variables: Whose gradients are wanted.
        fields: "grad", the mean gradient, and "movement", the sum of -w * dL/dw.

    Raises:
        KpipeError: For a field that is not known.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.compile("sgd", "mse")
        >>> kernel = net.layers[0].kernel
        >>> _ = kernel.assign([[1.0], [0.0]])
        >>> with GradientTap(net, [kernel], ["grad", "movement"]) as tap:
        ...     _ = net.train_on_batch(np.array([[1.0, 2.0]]), np.array([0.0]))  # d(w1 + 2 w2)² = 2 (1, 2)
        ...     found = tap.read()[id(kernel)]
        >>> found["grad"].ravel().tolist(), found["movement"].ravel().tolist()
        ([2.0, 4.0], [-2.0, 0.0])

    References:
        Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning (2020), https://arxiv.org/abs/2005.07683
    """

    def __init__(self, model: keras.Model, variables: Iterable[keras.Variable], fields: Sequence[str] = ("grad",)):
        for field in fields:
            if field not in FIELDS:
                raise KpipeError(f"A tap gathers {', '.join(FIELDS)}; received {field!r}.")
        self.model, self.fields = model, tuple(fields)
        self._variables = {id(variable): variable for variable in variables}
        self._optimizer = inner_optimizer(model.optimizer)
        with model.distribute_strategy.scope():
            self._sums = {
                (key, field): _summing(tf.zeros(variable.shape, tf.float32))
                for key, variable in self._variables.items()
                for field in self.fields
            }
            self._late: dict[int, int] = {}  # id of a variable -> batches that were counted before it came
            self._count = _summing(tf.constant(0, tf.int64))
            self._from = tf.Variable(tf.constant(0, tf.int64), trainable=False, name="tap_from")
        AtApply.on(self._optimizer).taps.append(self)
        trace_anew(model)

    @property
    def count(self) -> int:
        """Batches whose gradients are in the sums of every variable."""
        return self._seen() - max(self._late.values(), default=0)

    def _seen(self) -> int:
        return int(self._count.read_value().numpy()) // self.model.distribute_strategy.num_replicas_in_sync

    def read(self) -> dict[int, dict[str, np.ndarray]]:
        """Give what was gathered since the last reset: id of a variable -> field -> array of its shape."""
        seen = self._seen()
        found: dict[int, dict[str, np.ndarray]] = {}
        for (key, field), total in self._sums.items():
            value = total.read_value().numpy()
            count = np.float32(max(1, seen - self._late.get(key, 0)))
            found.setdefault(key, {})[field] = value / count if field == "grad" else value
        return found

    def reset(self, fields: Sequence[str] | None = None, since: int = 0) -> None:
        """Begin the sums anew.

        Args:
            fields: Which; None for all. The count, by which "grad" is a mean, goes with "grad".
            since: Number of optimizer updates from which on they are summed: gradients of earlier steps cost nothing.
        """
        for (_, field), total in self._sums.items():
            if fields is None or field in fields:
                total.assign(tf.zeros_like(total.read_value()))
        if fields is None or "grad" in fields:
            self._count.assign(0)
            self._late = {}
        self._from.assign(since)

    def take_over(self, other: "GradientTap") -> None:
        """Begin with what another tap has summed up of the variables that both have; the others come late."""
        for key, total in self._sums.items():
            if key in other._sums:
                total.assign(other._sums[key].read_value())
        self._count.assign(other._count.read_value())
        seen = other._seen()
        self._late = {key: other._late.get(key, 0 if key in other._variables else seen) for key in self._variables}

    def release(self) -> None:
        """Take the tap off the optimizer."""
        stand = AtApply.on(self._optimizer)
        if self in stand.taps:
            stand.taps.remove(self)
            trace_anew(self.model)
        stand.leave()

    def add(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Add the gradients of one update to the sums; called inside the train step."""
        scale = self._optimizer.loss_scale_factor
        mine = [
            (self._variables[id(variable)], gradient)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None and id(variable) in self._variables
        ]

        def sum_up() -> tf.Tensor:
            for variable, gradient in mine:
                dense = dense_gradient(gradient, variable)
                dense = dense if scale is None else dense / scale
                weight = tf.cast(tf.convert_to_tensor(variable), tf.float32)
                for field in self.fields:
                    self._sums[id(variable), field].assign_add(FIELDS[field](weight, dense))
            self._count.assign_add(1)
            return tf.constant(True)

        step = tf.cast(tf.convert_to_tensor(self._optimizer.iterations), tf.int64)
        tf.cond(step >= self._from, sum_up, lambda: tf.constant(False))

    def __enter__(self) -> "GradientTap":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def _summing(value: tf.Tensor) -> tf.Variable:
    """Make a variable to which every replica adds by itself; read from outside, it is the sum over all."""
    return tf.Variable(
        value,
        trainable=False,
        name="tap",
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
