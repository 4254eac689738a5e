"""What an argument is: a number, a whole one, a seed; and which weights are no numbers."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from kpipe.errors import KpipeError

NAMED = 3
"""So many more weights than the first are named."""


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, of Python or of NumPy, and no truth value.

    Example:
        >>> is_number(0.5), is_number(True), is_number("1"), is_number(float("nan"))
        (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int = 0) -> bool:
    """Tell whether a value is a whole number, of Python or of NumPy, of at least so much.

    Example:
        >>> is_whole(3), is_whole(-1), is_whole(3.0), is_whole(True), is_whole(1, least=2)
        (True, False, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_seed(seed: Any) -> None:
    """Refuse what cannot seed random numbers.

    Raises:
        KpipeError: When it is no whole number of at least 0.
    """
    if not is_whole(seed):
        raise KpipeError(f"seed is {seed!r}; expected a whole number of at least 0.")


def not_finite(array: Any) -> int:
    """Count the values of an array that are NaN or infinite; 0 where it holds no floats.

    Example:
        >>> not_finite(np.array([1.0, np.nan, np.inf])), not_finite(np.array([1, 2])), not_finite(np.array(["a"]))
        (2, 0, 0)
    """
    array = np.asarray(array)
    return int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" or "float" in array.dtype.name else 0


def broken_weights(weights: Iterable[tuple[str, Any]]) -> str:
    """Name the weights that hold values that are not finite, and say what to do; nothing where all are finite.

    Args:
        weights: The path of each, and its value or its variable.

    Example:
        >>> broken_weights([("a/kernel", np.array([1.0, np.nan])), ("a/bias", np.zeros(2))])
        "Weight 'a/kernel' holds 1 value that is not finite (NaN or infinity). Train the model again, or load a
        checkpoint from before."
        >>> broken_weights([("a/bias", np.zeros(2))])
        ''
    """
    found = [(path, count) for path, value in weights if (count := not_finite(value))]
    if not found:
        return ""
    (path, count), *others = found
    what = "1 value that is" if count == 1 else f"{count} values that are"
    more = "".join(f", {path!r} {count}" for path, count in others[:NAMED])
    left = f", and {len(others) - NAMED} more weights hold some" if len(others) > NAMED else ""
    return (
        f"Weight {path!r} holds {what} not finite (NaN or infinity){more}{left}. Train the model again, or load a "
        "checkpoint from before."
    )


def broken_in(model: Any) -> str:
    """Say of a model what `broken_weights` says of its weights, by their paths within it.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a")], name="net")
        >>> net.set_weights([np.zeros((2, 1)), np.array([np.inf])])
        >>> broken_in(net)[:27]
        "Weight 'a/bias' holds 1 val"
    """
    return broken_weights((variable.path.removeprefix(f"{model.name}/"), variable) for variable in model.weights)
