"""What an argument is: a number, a whole one, a seed."""

import math
from numbers import Integral, Real
from typing import Any

from kpipe.errors import KpipeError


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
