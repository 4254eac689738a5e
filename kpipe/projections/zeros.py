"""The kernels of a model, and the zeros they have."""

from collections.abc import Iterable

import keras
import numpy as np

from kpipe.layers import KERNEL_ROLES, weights_within
from kpipe.projections.holder import Holder


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
        keep = first_mask(variable.numpy())
        if not keep.all():
            holder.mask(variable, keep)
    return holder


def first_mask(weight: np.ndarray) -> np.ndarray:
    """Keep what is not zero: a weight that is sparse already stays so. All zeros is no pruning: keep all.

    Example:
        >>> first_mask(np.array([0.0, 2.0])).tolist(), first_mask(np.zeros(2)).tolist()
        ([False, True], [True, True])
    """
    keep = weight != 0
    return keep if keep.any() else ~keep


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
