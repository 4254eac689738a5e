"""What was pruned and what was not: data, and a table when printed."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kpipe.targets import Skipped, Target


@dataclass(frozen=True)
class Row:
    """Tell of one weight: its path, shape, count and fraction of zeros; or why it was skipped."""

    path: str
    shape: tuple[int, ...]
    zeros: int
    sparsity: float
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """Hold one row a weight; printed, it is a table.

    Example:
        >>> report = Report((Row("d/kernel", (4, 2), 6, 0.75), Row("d/bias", (2,), 0, 0.0, "its role is 'bias'")))
        >>> print(report)
        weight    shape  zeros  sparsity
        d/kernel    4x2      6     75.0%
        d/bias        2      -         -  skipped: its role is 'bias'
        >>> report.sparsity, [row.path for row in report.skipped]
        (0.75, ['d/bias'])
    """

    rows: tuple[Row, ...]

    @property
    def pruned(self) -> tuple[Row, ...]:
        """List the rows of the weights that are pruned."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """List the rows of the weights that are not, each with its reason."""
        return tuple(row for row in self.rows if row.reason is not None)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned weights together."""
        entries = sum(int(np.prod(row.shape)) for row in self.pruned)
        return sum(row.zeros for row in self.pruned) / entries if entries else 0.0

    def to_list(self) -> list[dict[str, Any]]:
        """Give the rows as plain data."""
        return [{**asdict(row), "shape": list(row.shape)} for row in self.rows]

    def __str__(self) -> str:
        lines = [("weight", "shape", "zeros", "sparsity", "")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            if row.reason is None:
                lines.append((row.path, shape, f"{row.zeros:,}", f"{row.sparsity:.1%}", ""))
            else:
                lines.append((row.path, shape, "-", "-", f"skipped: {row.reason}"))
        wide = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            f"{path:<{wide[0]}}  {shape:<{wide[1]}}  {zeros:>{wide[2]}}  {share:>{wide[3]}}  {reason}".rstrip()
            for path, shape, zeros, share, reason in lines
        )


def make_report(
    targets: Iterable[Target], skipped: Iterable[Skipped], keeps: Mapping[str, np.ndarray] | None = None
) -> Report:
    """Count the zeros that the targets hold now.

    Args:
        targets: What is pruned.
        skipped: What is not.
        keeps: Path -> keep-mask of weights of which a zero that is kept does not count.

    Example:
        >>> import keras
        >>> make_report([Target("d/kernel", "kernel", keras.Variable([0.0, 1.0]))], []).pruned
        (Row(path='d/kernel', shape=(2,), zeros=1, sparsity=0.5, reason=None),)
    """
    rows = []
    for target in targets:
        value = target.variable.numpy()
        zero = value == 0
        if keeps is not None and target.path in keeps:
            zero &= ~keeps[target.path]
        zeros = int(np.count_nonzero(zero))
        rows.append(Row(target.path, tuple(value.shape), zeros, zeros / value.size))
    rows += [Row(row.path, row.shape, 0, 0.0, row.reason) for row in skipped]
    return Report(tuple(rows))
