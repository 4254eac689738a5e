"""The time of each operation of a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OperationTime:
    """How long one operation of a file takes.

    Args:
        name: What it is, as the runtime calls it.
        scope: Which one: its name in the file, or that of what it gives.
        ms: Milliseconds. Where it is a difference of two times, it may be below zero by their noise.
        share: The fraction of the sum over all operations.
    """

    name: str
    scope: str
    ms: float
    share: float


def with_shares(times: list[tuple[str, str, float]]) -> tuple[OperationTime, ...]:
    """Give each operation's (name, scope, milliseconds) its share of their sum.

    Example:
        >>> [time.share for time in with_shares([("CONV_2D", "a", 3.0), ("SOFTMAX", "b", 1.0)])]
        [0.75, 0.25]
    """
    total = sum(ms for _, _, ms in times) or 1.0
    return tuple(OperationTime(name, scope, round(ms, 6), round(ms / total, 6)) for name, scope, ms in times)
