"""What is asked of a schedule's numbers, each refusal with what to give instead."""

import operator
from typing import Any

from kpipe.checks import is_number
from kpipe.errors import KpipeError


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is no fraction of zeros in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise KpipeError(f"{name} is {value!r}; expected a fraction of zeros in [0, 1), such as 0.8.")


def check_above(name: str, value: Any, least: float, hint: str) -> None:
    """Refuse what is no finite number above `least`."""
    if not is_number(value) or value <= least:
        raise KpipeError(f"{name} is {value!r}; expected a number above {least}. {hint}")


def check_whole(name: str, value: Any, what: str = "steps") -> None:
    """Refuse what is no whole number."""
    try:
        operator.index(value)
    except TypeError:
        raise KpipeError(f"{name} is {value!r}; expected a whole number of {what}.") from None
    if isinstance(value, bool):
        raise KpipeError(f"{name} is {value!r}; expected a whole number of {what}.")


def check_way(begin: Any, end: Any, endless: bool = False) -> None:
    """Refuse a first and a last step that do not stand in order; -1 is no end where `endless` says so."""
    check_whole("begin_step", begin)
    check_whole("end_step", end)
    if begin < 0:
        raise KpipeError(f"begin_step is {begin}; expected 0 or more. Use 0 to begin before the first batch.")
    if end < begin and not (endless and end == -1):
        rest = ", or -1 for no end" if endless else ""
        raise KpipeError(f"end_step is {end} and begin_step {begin}; expected end_step >= begin_step{rest}.")


def check_frequency(frequency: Any) -> None:
    """Refuse what is no count of steps between two updates."""
    check_whole("frequency", frequency)
    if frequency < 1:
        raise KpipeError(f"frequency is {frequency}; expected 1 or more steps between two updates.")
