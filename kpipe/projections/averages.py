"""What an optimizer holds of the weights themselves: their moving averages."""

from typing import Any

import keras


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
