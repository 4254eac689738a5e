"""At most n of each m consecutive weights that one output sums over: what sparse hardware reads, such as 2:4."""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.pattern import PATTERNS, Pattern, Rescale, sums_over
from kpipe.patterns.ranking import drop_count


@PATTERNS("n:m", example="2:4")
@dataclass(frozen=True)
class NofM(Pattern):
    """Keep at most n of each m consecutive entries along the inputs, such as 2:4; below its limit it keeps more.

    At the limit, 1 - n / m, the n highest of each group stay and no others, also where what was dropped before makes
    that more zeros than were asked for. Below it the lowest scores go that are not among the n highest of their group,
    so that a schedule can lead there. A last group of fewer than m keeps up to n as well, so that a weight whose inputs
    are no multiple of m may end below the sparsity asked for.

    Args:
        n: Entries of a group that may stay, at least 1.
        m: Entries of a group, more than n.

    Example:
        >>> NofM(2, 4)(np.array([[4.0], [1.0], [3.0], [2.0], [1.0], [5.0]]), 0.5)[:, 0].tolist()
        [True, False, True, False, True, True]
        >>> NofM(1, 4).limit, NofM.parse("1:4") == NofM(1, 4)
        (0.75, True)

    References:
        Mishra et al., Accelerating Sparse Deep Neural Networks (2021), https://arxiv.org/abs/2104.08378
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        whole = all(isinstance(part, int) and not isinstance(part, bool) for part in (self.n, self.m))
        if not whole or not 1 <= self.n < self.m:
            raise KpipeError(f"The pattern is '{self.n}:{self.m}'; expected whole numbers n:m, 1 <= n < m, as in 2:4.")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "2:4" and the like."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        return cls(int(found[1]), int(found[2])) if found else None

    @property
    def limit(self) -> float:
        """The sparsity at which n of each m are left."""
        return 1 - self.n / self.m

    def pool(self, scores: np.ndarray, rescale: Rescale | None = None) -> np.ndarray:
        """Give the scores, those of the n highest of each group as +inf; what was dropped before is never among them.

        Among equal scores of a group the lowest index goes first.
        """
        units = scores if rescale is None else rescale(scores)
        found = np.array(units, dtype=units.dtype if units.dtype.kind == "f" else "float64")
        inputs, outputs = scores.shape[-2:]
        whole = inputs - inputs % self.m
        groups = (*scores.shape[:-2], whole // self.m, self.m, outputs)
        for part, shape in ((np.s_[..., :whole, :], groups), (np.s_[..., whole:, :], None)):
            given = scores[part] if shape is None else scores[part].reshape(shape)  # (..., group, outputs)
            stays = highest(given, self.n) & (given > -np.inf)
            found[part][stays.reshape(found[part].shape)] = np.inf
        return found

    def reached(self, size: int, dropped: int, sparsity: float) -> bool:
        """Compare the counts below the limit; at it each group has to be looked at."""
        asked = drop_count(size, sparsity)
        return dropped >= asked and not self.at_limit(size, asked)

    def spread(self, keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Give the keep-mask as it is."""
        return keep

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        """Refuse a weight without two axes, and one with no more inputs than a group keeps."""
        if len(shape) < 2:
            return f"the pattern '{self}' goes along the inputs, and this weight has {len(shape)} axis"
        if shape[-2] <= self.n:
            return f"the pattern '{self}' keeps {self.n} of each group, and {sums_over(shape)}"
        return None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Tell which entries are among the `count` highest along the axis before the last.

    Each pair of places is compared once: for the few entries of a group this is faster than sorting.

    Args:
        scores: Shape (..., group, outputs).
        count: How many; all of a smaller group.

    Returns:
        Boolean, shaped like `scores`. Among equal scores the highest index counts as higher.

    Example:
        >>> highest(np.array([[3.0], [1.0], [3.0]]), 1)[:, 0].tolist()
        [False, False, True]
    """
    size = scores.shape[-2]
    above = np.zeros(scores.shape, np.min_scalar_type(size))  # how many of the group are higher
    for first in range(size):
        for second in range(first + 1, size):
            lower = scores[..., first, :] <= scores[..., second, :]
            above[..., first, :] += lower
            above[..., second, :] += ~lower
    return above < count
