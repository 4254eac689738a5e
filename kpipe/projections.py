"""Maps w -> w that hold during training, and the one class that holds them."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.layers import KERNEL_ROLES, weights_within

Projection = Callable[[Any], Any]
"""w -> w of the same shape; applying it twice changes nothing more."""


def chain(*projections: Projection | None) -> Projection:
    """Apply several projections one after the other: the last one wins. None stands for no projection.

    Example:
        >>> chain(None, abs, lambda w: min(w, 2))(-3)
        2
    """
    given = [projection for projection in projections if projection is not None]

    def apply(w: Any) -> Any:
        for projection in given:
            w = projection(w)
        return w

    return apply


class Mask:
    """Keep the entries of a keep-mask and set all others to exactly zero, whatever they hold (NaN too).

    The keep-mask is a variable of one byte an entry, so that it can change while a compiled train step uses it.

    Example:
        >>> Mask(np.array([True, False]))(np.array([1.0, np.nan])).numpy().tolist()
        [1.0, 0.0]
    """

    def __init__(self, keep: np.ndarray):
        self.keep = tf.Variable(tf.constant(keep, tf.bool), trainable=False, name="keep")

    def __call__(self, w: Any) -> Any:
        w = tf.convert_to_tensor(w)
        # The plain kernel: tf.where takes one that can broadcast, and half as long again.
        return tf.raw_ops.Select(condition=self.keep, x=w, y=tf.zeros_like(w))

    def assign(self, keep: np.ndarray) -> None:
        """Change the keep-mask."""
        self.keep.assign(keep)

    def numpy(self) -> np.ndarray:
        """Give the keep-mask."""
        return self.keep.numpy()


class _Held(keras.constraints.Constraint):
    """Stand on `variable.constraint`: the user's constraint first, then every held projection in order.

    The optimizer averages weights (`use_ema`) before it applies constraints, so the average is projected here as well,
    inside the same train step.
    """

    def __init__(self, variable: keras.Variable):
        self.variable = variable
        self.before = variable.constraint
        self.projections: list[Projection] = []
        self.averages: list[Callable[[], keras.Variable | None]] = []

    def __call__(self, w: Any) -> Any:
        project = chain(*self.projections)
        for average in self._averages():
            average.assign(project(average))
        return chain(self.before, project)(w)

    def _averages(self) -> list[keras.Variable]:
        # Plain steps: AutoGraph cannot transform `:=`, and warns where a `tf.function` of one's own comes through here.
        found = [find() for find in self.averages]
        return list({id(average): average for average in found if average is not None}.values())

    def project(self) -> None:
        """Apply what is held now, without the user's constraint."""
        project = chain(*self.projections)
        for variable in (self.variable, *self._averages()):
            variable.assign(project(variable))


class Holder:
    """Hold projections on variables of a model while it trains; the one place that touches `variable.constraint`.

    A Keras optimizer applies `variable.constraint` after its update, inside the compiled train step. So a projection
    holds under any optimizer, `steps_per_execution`, `jit_compile`, and in a loop of one's own that calls
    `optimizer.apply`. A constraint that the variable had before is applied first, and is given back by `release`.
    Several holders may hold the same variable; they are applied in the order in which they came.

    Args:
        model: The model that is fit: its train step is compiled anew, so that what was traced before is not used, and
            its optimizer's weight averages are projected too.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> with Holder(net) as holder:
        ...     holder.hold(net.layers[0].kernel, Mask(np.array([[True], [False]])))
        ...     _ = net.layers[0].kernel.assign(net.layers[0].kernel.constraint(np.ones((2, 1))))
        >>> net.layers[0].kernel.numpy().tolist(), net.layers[0].kernel.constraint
        ([[1.0], [0.0]], None)
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._held: list[tuple[keras.Variable, Projection, Callable[[], keras.Variable | None]]] = []

    def hold(self, variable: keras.Variable, projection: Projection) -> None:
        """Apply `projection` to `variable` now and after every optimizer update until `release`."""
        if not isinstance(variable.constraint, _Held):
            variable.constraint = _Held(variable)

        def average() -> keras.Variable | None:
            return average_of(self.model.optimizer if self.model.compiled else None, variable)

        variable.constraint.projections.append(projection)
        variable.constraint.averages.append(average)
        self._held.append((variable, projection, average))
        variable.constraint.project()
        self._renew()

    def mask(self, variable: keras.Variable, keep: np.ndarray) -> Mask:
        """Hold a keep-mask on a variable; it lies where the variable does, on every device that mirrors it."""
        with self.model.distribute_strategy.scope():
            mask = Mask(keep)
        self.hold(variable, mask)
        return mask

    def project(self, variables: Iterable[keras.Variable] | None = None) -> None:
        """Apply what is held on these variables now; None for all that are held."""
        for variable in self.variables if variables is None else variables:
            variable.constraint.project()

    @property
    def variables(self) -> list[keras.Variable]:
        """List the held variables."""
        return list({id(variable): variable for variable, _, _ in self._held}.values())

    def release(self) -> None:
        """Apply the projections a last time, then give every variable its own constraint back."""
        if not self._held:
            return
        self.project()
        for variable, projection, average in self._held:
            held = variable.constraint
            held.projections = [other for other in held.projections if other is not projection]
            held.averages = [other for other in held.averages if other is not average]
            if not held.projections:
                variable.constraint = held.before
        self._held = []
        self._renew()

    def _renew(self) -> None:
        """Forget the traced train step: it has the constraints of its time built in."""
        if self.model.train_function is not None:
            self.model.make_train_function(force=True)

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def held_on(variable: keras.Variable) -> tuple[Any, tuple[Projection, ...]]:
    """Give the constraint that a variable has of its own, and the projections that are held on it now.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_constraint="non_neg")])
        >>> with Holder(net) as holder:
        ...     holder.hold(net.layers[0].kernel, abs)
        ...     own, held = held_on(net.layers[0].kernel)
        >>> type(own).__name__, held == (abs,), held_on(net.layers[0].bias)
        ('NonNeg', True, (None, ()))
    """
    constraint = variable.constraint
    if isinstance(constraint, _Held):
        return constraint.before, tuple(constraint.projections)
    return constraint, ()


def hold_zeros(model: keras.Model, variables: Iterable[keras.Variable] | None = None) -> Holder:
    """Hold the exact zeros that a model's kernels have, so that further training does not lose them.

    A kernel of nothing but zeros is left alone: it has not been pruned, it has not been trained yet.

    Args:
        model: The model that is going to be fit, or a `keras.distillation.Distiller` around it.
        variables: The variables to hold; None for every kernel of the layers that kpipe knows.

    Returns:
        A `Holder`; call its `release` after training, or use it in a `with` statement.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> _ = net.layers[0].kernel.assign([[0.0], [1.0]])
        >>> net.compile("sgd", "mse")
        >>> with hold_zeros(net):
        ...     _ = net.fit(np.ones((4, 2)), np.ones(4), verbose=0)
        >>> float(net.layers[0].kernel[0, 0])
        0.0
    """
    holder = Holder(model)
    for variable in kernels(trained_model(model)) if variables is None else variables:
        keep = variable.numpy() != 0
        if keep.any() and not keep.all():
            holder.mask(variable, keep)
    return holder


def kernels(model: keras.Model) -> list[keras.Variable]:
    """List every kernel of a model once, depthwise ones too.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        >>> [tuple(variable.shape) for variable in kernels(net)]
        [(2, 3), (3, 1)]
    """
    return [weight.variable for weight in weights_within(model) if weight.role in KERNEL_ROLES]


def trained_model(model: keras.Model) -> keras.Model:
    """Give the model whose weights a fit trains: the student inside a `keras.distillation.Distiller`, else itself.

    Example:
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> distiller = keras.distillation.Distiller(teacher, student, keras.distillation.LogitsDistillation())
        >>> trained_model(distiller) is student, trained_model(student) is student
        (True, True)
    """
    return model.student if isinstance(model, keras.distillation.Distiller) else model


def inner_optimizer(optimizer: Any) -> Any:
    """Give the optimizer that updates the weights: the one inside a `LossScaleOptimizer`, else itself.

    Example:
        >>> sgd = keras.optimizers.SGD()
        >>> inner_optimizer(keras.optimizers.LossScaleOptimizer(sgd)) is sgd, inner_optimizer(sgd) is sgd
        (True, True)
    """
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def average_of(optimizer: Any, variable: keras.Variable) -> keras.Variable | None:
    """Give the optimizer's moving average of a variable, or None when it keeps none (`use_ema` is off).

    Example:
        >>> variable = keras.Variable([1.0, 2.0])
        >>> optimizer = keras.optimizers.SGD(use_ema=True)
        >>> optimizer.build([variable])
        >>> tuple(average_of(optimizer, variable).shape), average_of(keras.optimizers.SGD(), variable)
        ((2,), None)
    """
    optimizer = inner_optimizer(optimizer)
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):  # older versions of Keras have none
        found = (average_of(one, variable) for one in optimizer.optimizers)
        return next((average for average in found if average is not None), None)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not optimizer.built or not optimizer.use_ema:
        return None
    for known, average in zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True):
        if known is variable:
            return average
    return None
