"""TFMOT's arguments of pruning: what they mean here, and what does not fit."""

from collections.abc import Callable
from typing import Any

from kpipe.errors import KpipeError
from kpipe.patterns import Block, NofM, Pattern, Unstructured

PruningSchedule = Callable[[Any], tuple[Any, Any]]
"""step -> (update now, sparsity): a `Schedule` or `EpochSchedule` of kpipe, or one of TFMOT's, with `get_config`."""

POOLINGS = ("AVG", "MAX")


def pattern_for(block_size: Any, block_pooling_type: Any, sparsity_m_by_n: Any) -> Pattern:
    """Make a pattern from TFMOT's arguments.

    Raises:
        KpipeError: For arguments that do not fit, or that ask for blocks and m by n at once.

    Example:
        >>> str(pattern_for((1, 1), "AVG", None)), str(pattern_for((4, 1), "MAX", None))
        ('unstructured', 'block:4x1:max')
        >>> str(pattern_for((1, 1), "AVG", (3, 4)))
        '1:4'
    """
    if block_pooling_type not in POOLINGS:
        raise KpipeError(f"block_pooling_type is {block_pooling_type!r}; expected 'AVG' or 'MAX'.")
    rows, columns = two_whole("block_size", block_size)
    if not sparsity_m_by_n:
        return Unstructured() if (rows, columns) == (1, 1) else Block(rows, columns, block_pooling_type.lower())
    if (rows, columns) != (1, 1):
        raise KpipeError(
            f"block_size is {block_size!r} and sparsity_m_by_n {sparsity_m_by_n!r}; expected one of them, or "
            "block_size=(1, 1)."
        )
    zeros, group = two_whole("sparsity_m_by_n", sparsity_m_by_n)
    if not 1 <= zeros < group:
        raise KpipeError(
            f"sparsity_m_by_n is {sparsity_m_by_n!r}; expected (m, n) with 1 <= m < n: m zeros in each n, such as "
            "(2, 4)."
        )
    return NofM(group - zeros, group)


def two_whole(name: str, value: Any) -> tuple[int, int]:
    """Give two whole numbers as a tuple, or say what is wrong with them."""
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(part, int) and not isinstance(part, bool) for part in pair):
        raise KpipeError(f"{name} is {value!r}; expected two whole numbers, such as (2, 4).")
    return pair


def refuse_schedule(schedule: Any) -> None:
    """Refuse what cannot be asked and saved as a schedule."""
    if isinstance(schedule, type) or not callable(getattr(schedule, "get_config", None)):
        raise KpipeError(
            f"pruning_schedule is {schedule!r}; expected a schedule, such as kpipe.schedules.ConstantSparsity(0.5, 0)."
        )
