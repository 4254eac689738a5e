"""The one class that holds projections while a model trains."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.projections.averages import average_of
from kpipe.projections.gradients import GradientMap, trace_anew
from kpipe.projections.host import put, view
from kpipe.projections.mask import Mask, Projection, chain


class _Held(keras.constraints.Constraint):
    """Stand on `variable.constraint`: the user's constraint first, then every held projection in order.

    The optimizer averages weights (`use_ema`) before it applies constraints, so the average is projected here as well,
    inside the same train step.
    """

    def __init__(self, variable: keras.Variable):
        self.variable = variable
        self.raw: tf.Variable = variable.value
        self.before = variable.constraint
        self.projections: list[Projection] = []
        self.averages: list[Callable[[], keras.Variable | None]] = []

    def __call__(self, w: Any) -> Any:
        project = chain(*self.projections)
        for average in self.averaged:
            average.assign(project(average))
        return chain(self.before, project)(w)

    @property
    def averaged(self) -> list[keras.Variable]:
        """The optimizers' moving averages of the variable."""
        # Plain steps: AutoGraph cannot transform `:=`, and warns where a `tf.function` of one's own comes through here.
        found = [find() for find in self.averages]
        return list({id(average): average for average in found if average is not None}.values())

    def project(self) -> None:
        """Apply what is held now, without the user's constraint."""
        project = chain(*self.projections)
        for variable in (self.variable, *self.averaged):
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
        self._maps: list[GradientMap] = []

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
        trace_anew(self.model)

    def change_gradient(self, variable: keras.Variable, function: Callable[[Any], Any]) -> None:
        """Give the model's optimizer `function(gradient)` in place of a variable's gradient until `release`."""
        self._maps.append(GradientMap(self.model, variable, function))

    def mask(self, variable: keras.Variable, keep: np.ndarray) -> Mask:
        """Hold a keep-mask on a variable; it lies where the variable does, on every device that mirrors it."""
        with self.model.distribute_strategy.scope():
            mask = Mask(keep)
        self.hold(variable, mask)
        return mask

    def drop(self, variable: keras.Variable, mask: Mask, keep: np.ndarray, places: np.ndarray) -> None:
        """Change a mask that `mask` gave to one that keeps less, and set the variable to zero where it does.

        On the host: to copy a variable there and back takes less time than to project it whole, and writing single
        entries inside TensorFlow would let every later read of the variable make a copy.

        Args:
            variable: Held.
            mask: What is held on it.
            keep: The new keep-mask.
            places: Flat indices of the entries that are dropped now.
        """
        mask.assign(keep)
        held = variable.constraint
        if len(held.projections) > 1 or held.averaged:
            self.project([variable])
            return
        value = view(variable).copy()
        value.reshape(-1)[places] = 0
        put(held.raw, value)

    def project(self, variables: Iterable[keras.Variable] | None = None) -> None:
        """Apply what is held on these variables now; None for all that are held."""
        for variable in self.variables if variables is None else variables:
            variable.constraint.project()

    @property
    def variables(self) -> list[keras.Variable]:
        """List the held variables."""
        return list({id(variable): variable for variable, _, _ in self._held}.values())

    def release(self, project: bool = True) -> None:
        """Give every variable its own constraint back.

        Args:
            project: Apply the projections a last time before; not where the weights have been set anew meanwhile.
        """
        for change in self._maps:
            change.release()
        self._maps = []
        if not self._held:
            return
        if project:
            self.project()
        for variable, projection, average in self._held:
            held = variable.constraint
            held.projections = [other for other in held.projections if other is not projection]
            held.averages = [other for other in held.averages if other is not average]
            if not held.projections:
                variable.constraint = held.before
        self._held = []
        trace_anew(self.model)

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
