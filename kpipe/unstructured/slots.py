"""What an optimizer remembers of each weight: momentum, squares of gradients and the like."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.projections import inner_optimizer

_NO_SLOTS = ("_trainable_variables", "_model_variables_moving_average", "_accumulated_gradients")


def slots_of(optimizer: Any, variable: keras.Variable) -> list[tuple[keras.Variable, float]]:
    """List what an optimizer remembers of a variable, entry by entry, each with the value that it begins with.

    They are found where Keras's optimizers keep them: in lists with one place for each trainable variable. An optimizer
    that keeps them elsewhere, or has not been built, has none here. Averages of the weights themselves (`use_ema`) and
    gradients that are being accumulated are left out.

    Example:
        >>> kernel, adam = keras.Variable([1.0, 2.0]), keras.optimizers.Adam()
        >>> adam.build([kernel])
        >>> [(tuple(slot.shape), value) for slot, value in slots_of(adam, kernel)]
        [((2,), 0.0), ((2,), 0.0)]
    """
    optimizer = inner_optimizer(optimizer)
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):  # older versions of Keras have none
        return [slot for one in optimizer.optimizers for slot in slots_of(one, variable)]
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not optimizer.built:
        return []
    known = [id(one) for one in optimizer._trainable_variables]
    if id(variable) not in known:
        return []
    place, found = known.index(id(variable)), []
    for name, slots in vars(optimizer).items():
        if name in _NO_SLOTS or not isinstance(slots, list) or len(slots) != len(known):
            continue
        slot = slots[place]
        if isinstance(slot, keras.Variable) and tuple(slot.shape) == tuple(variable.shape):
            start = getattr(optimizer, "initial_accumulator_value", 0.0) if name == "_accumulators" else 0.0
            found.append((slot, float(start)))
    return found


def reset_slots(optimizer: Any, variable: keras.Variable, places: np.ndarray) -> None:
    """Let an optimizer forget some entries of a variable.

    Args:
        optimizer: Of the model.
        variable: One of its trainable variables.
        places: Boolean, shaped like the variable.

    Example:
        >>> kernel, sgd = keras.Variable([1.0, 2.0]), keras.optimizers.SGD(0.5, momentum=0.9)
        >>> sgd.apply([np.array([1.0, 1.0], "float32")], [kernel])
        >>> reset_slots(sgd, kernel, np.array([True, False]))
        >>> sgd.momentums[0].numpy().tolist()
        [0.0, -0.5]
    """
    for slot, start in slots_of(optimizer, variable):
        value = tf.convert_to_tensor(slot)
        slot.assign(tf.where(places, tf.constant(start, value.dtype), value))
