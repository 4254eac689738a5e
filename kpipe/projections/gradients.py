"""The one place in front of the optimizer where the gradients of a training are seen, added to, and changed."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from kpipe.projections.averages import inner_optimizer


class Tap(Protocol):
    """Be told the gradients of each update."""

    def add(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Take the gradients of one update; called inside the train step."""
        ...


class AtApply:
    """Stand in for one optimizer's `apply`: tell the taps, let the pulls add theirs, let the maps change, then apply.

    So taps see the gradients of the loss alone. It stands on the optimizer inside a `LossScaleOptimizer`, and holds
    under `steps_per_execution`, `jit_compile`, mixed precision, accumulation and `tf.distribute.MirroredStrategy`.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.taps: list[Tap] = []
        self.pulls: list[GradientPull] = []
        self.maps: list[GradientMap] = []
        self.before = vars(optimizer).get("apply")  # the user's own, on this very optimizer
        self.apply = optimizer.apply

    @staticmethod
    def on(optimizer: Any) -> "AtApply":
        """Give what stands on an optimizer, new if need be."""
        found = vars(optimizer).get("apply")
        if not isinstance(found, AtApply):
            found = AtApply(optimizer)
            optimizer.apply = found
        return found

    def __call__(self, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        known = self.optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
        for tap in self.taps:
            tap.add(grads, known)
        for pull in self.pulls:
            grads = pull.added(grads, known)
        for change in self.maps:
            grads = change.changed(grads, known)
        return self.apply(grads, trainable_variables if trainable_variables is None else known)

    def leave(self) -> None:
        """Give `apply` back where nothing is left to do."""
        if self.taps or self.pulls or self.maps or vars(self.optimizer).get("apply") is not self:
            return
        del self.optimizer.apply
        if self.before is not None:
            self.optimizer.apply = self.before


def trace_anew(model: keras.Model) -> None:
    """Forget the traced train step: it has the taps, the pulls and the maps of its time built in."""
    if model.train_function is not None:
        model.make_train_function(force=True)


class GradientPull:
    """Add to the gradients of some variables, inside the train step, what a function of the step gives.

    What is added is of the loss without its scale, comes before the gradients are clipped, and is added once however
    many devices take the step together. So a pull of `s * w` is an L2 penalty of `s / 2`.

    Args:
        model: The compiled model that is fit; its train step is compiled anew.
        variables: To whose gradients something may be added.
        function: From the number of optimizer updates done so far, an int64 tensor, to id of a variable -> tensor in
            float32 of its shape. It is called when the train step is traced.
        until: Number of updates after which nothing is added any more; None: to the end.

    Example:
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.compile(keras.optimizers.SGD(0.5), "mse")
        >>> kernel = net.layers[0].kernel
        >>> _ = kernel.assign([[2.0]])
        >>> pull = GradientPull(net, [kernel], lambda step: {id(kernel): 0.1 * tf.convert_to_tensor(kernel)})
        >>> _ = net.train_on_batch(np.zeros((1, 1)), np.zeros((1, 1)))  # the loss has no gradient there
        >>> pull.release()
        >>> round(float(kernel[0, 0]), 4)  # 2 - 0.5 * (0.1 * 2)
        1.9
    """

    def __init__(
        self,
        model: keras.Model,
        variables: Iterable[keras.Variable],
        function: Callable[[tf.Tensor], Mapping[int, tf.Tensor]],
        until: int | None = None,
    ):
        self.model, self._function, self._until = model, function, until
        self._ids = {id(variable) for variable in variables}
        self._optimizer = inner_optimizer(model.optimizer)
        AtApply.on(self._optimizer).pulls.append(self)
        trace_anew(model)

    def release(self) -> None:
        """Add nothing from now on."""
        stand = AtApply.on(self._optimizer)
        if self in stand.pulls:
            stand.pulls.remove(self)
            trace_anew(self.model)
        stand.leave()

    def added(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Give the gradients of one update with what is added to them; called inside the train step."""
        places = _places(grads, variables, self._ids)
        dense = [dense_gradient(grads[place], variables[place]) for place in places]
        share = (self._optimizer.loss_scale_factor or 1.0) / self.model.distribute_strategy.num_replicas_in_sync
        step = tf.cast(tf.convert_to_tensor(self._optimizer.iterations), tf.int64)

        def pulled() -> list[tf.Tensor]:
            extra = self._function(step)
            whole = [extra.get(id(variables[place])) for place in places]
            return [g if e is None else g + share * e for g, e in zip(dense, whole, strict=True)]

        if not places:
            return list(grads)
        found = pulled() if self._until is None else tf.cond(step < self._until, pulled, lambda: list(dense))
        return _replaced(grads, dict(zip(places, found, strict=True)))


class GradientMap:
    """Give the optimizer, in place of the gradient of a variable, what a function makes of it, inside the train step.

    The function gets the gradient of the loss with all that is added to it. Where devices take a step together each
    maps its own part, and where batches are accumulated each is mapped: so a linear function acts as on the whole.

    Args:
        model: The model that is fit; its train step is compiled anew.
        variable: Whose gradient is changed.
        function: From the gradient, a tensor in float32 of the variable's shape, to one of the same shape. It is called
            when the train step is traced.

    Example:
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.compile(keras.optimizers.SGD(0.1), "mse")
        >>> kernel = net.layers[0].kernel
        >>> _ = kernel.assign([[2.0]])
        >>> change = GradientMap(net, kernel, lambda gradient: gradient / 4)
        >>> _ = net.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))  # the gradient of w² is 2 · 2
        >>> change.release()
        >>> round(float(kernel[0, 0]), 4)  # 2 - 0.1 · 4 / 4
        1.9
    """

    def __init__(self, model: keras.Model, variable: keras.Variable, function: Callable[[tf.Tensor], tf.Tensor]):
        self.model, self.variable, self._function = model, variable, function
        self._optimizer = inner_optimizer(model.optimizer)
        AtApply.on(self._optimizer).maps.append(self)
        trace_anew(model)

    def release(self) -> None:
        """Change nothing from now on."""
        stand = AtApply.on(self._optimizer)
        if self in stand.maps:
            stand.maps.remove(self)
            trace_anew(self.model)
        stand.leave()

    def changed(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Give the gradients of one update with the changed one; called inside the train step."""
        places = _places(grads, variables, {id(self.variable)})
        return _replaced(grads, {n: self._function(dense_gradient(grads[n], variables[n])) for n in places})


def _places(grads: Sequence[Any], variables: Sequence[Any], ids: Collection[int]) -> list[int]:
    """Find the variables that have one of these ids, and a gradient."""
    both = enumerate(zip(grads, variables, strict=True))
    return [place for place, (gradient, variable) in both if gradient is not None and id(variable) in ids]


def _replaced(grads: Sequence[Any], changed: Mapping[int, tf.Tensor]) -> list[Any]:
    """Put changed gradients in their places, in the type of those that stood there."""
    return [tf.cast(changed[n], g.dtype) if n in changed else g for n, g in enumerate(grads)]


def dense_gradient(gradient: Any, variable: keras.Variable) -> tf.Tensor:
    """Give a gradient in float32 and in the variable's shape, also that of an Embedding's rows."""
    if isinstance(gradient, tf.IndexedSlices):  # the same row perhaps several times
        values = tf.cast(gradient.values, tf.float32)
        return tf.math.unsorted_segment_sum(values, gradient.indices, variable.shape[0])
    return tf.cast(gradient, tf.float32)
