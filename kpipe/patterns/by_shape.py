"""Sparser where a weight is large: densities after Erdős and Rényi."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from kpipe.patterns.pattern import Pattern
from kpipe.patterns.ranking import drop_count
from kpipe.patterns.scope import SCOPES, Scope, each


@SCOPES("erk")
@dataclass(frozen=True)
class ErdosRenyiKernel(Scope):
    """Keep of each weight a share proportional to the sum of its axes over their product: small weights stay denser.

    A kernel of shape (h, w, in, out) gets the density eps * (h + w + in + out) / (h * w * in * out), and never more
    than 1 or less than the pattern allows; eps is such that all the weights together have the sparsity asked for.
    Counts are rounded so that their sum is exact.

    Example:
        >>> shapes = {"small": (10, 10), "large": (30, 30)}  # 20/100 and 60/900: three times as dense
        >>> found = ErdosRenyiKernel().sparsities(shapes, 0.8)
        >>> {path: round(share, 3) for path, share in found.items()}
        {'small': 0.5, 'large': 0.833}

    References:
        Evci et al., Rigging the Lottery: Making All Tickets Winners (2020), https://arxiv.org/abs/1911.11134
    """

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "erk"."""
        return cls() if text == "erk" else None

    def keep(self, scores: Mapping[str, np.ndarray], sparsity: float, pattern: Pattern) -> dict[str, np.ndarray]:
        """Ask the pattern for each weight with the sparsity that its shape gets."""
        shares = self.sparsities({path: values.shape for path, values in scores.items()}, sparsity, pattern)
        return each(scores, shares, pattern)

    def sparsities(
        self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, pattern: Pattern | None = None
    ) -> dict[str, float]:
        """Give each weight its share, exact over all in units of the pattern."""
        limit = 1.0
        if pattern is not None:
            pattern.check(sparsity)
            limit = pattern.limit
        sizes = {path: _units(shape, pattern) for path, shape in shapes.items()}
        wanted = densities(shapes, 1 - sparsity, 1 - limit, sizes)
        exact = {path: (1 - wanted[path]) * size for path, size in sizes.items()}
        most = {path: int(limit * size + 1e-9) for path, size in sizes.items()}
        counts = round_together(exact, drop_count(sum(sizes.values()), sparsity), most)
        return {path: counts[path] / sizes[path] for path in shapes}

    def __str__(self) -> str:
        return "erk"


def _units(shape: tuple[int, ...], pattern: Pattern | None) -> int:
    sizes = None if pattern is None else pattern.sizes(shape)
    return int(np.prod(shape)) if sizes is None else sizes.size


def densities(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    lowest: float = 0.0,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Share out a density in proportion to (sum of the axes) / (their product), between `lowest` and 1.

    Args:
        shapes: Path -> shape.
        density: Of all the weights together, in (0, 1].
        lowest: No weight gets less.
        sizes: Path -> what the weight counts for; None for its number of entries.

    Returns:
        Path -> density; their mean, weighted by the sizes, is `density`.

    Example:
        >>> densities({"a": (2, 2), "b": (8, 8)}, 0.5)  # a would get more than 1: it stays dense, b gets the rest
        {'a': 1.0, 'b': 0.46875}
    """
    if not shapes:
        return {}
    products = [int(np.prod(shape)) for shape in shapes.values()]
    raw = np.array([sum(shape) / product for shape, product in zip(shapes.values(), products, strict=True)])
    weights = np.array(products if sizes is None else [sizes[path] for path in shapes], "float64")
    bends = np.unique(np.concatenate([lowest / raw, 1 / raw]))  # between these the total is linear in eps
    totals = [float(np.sum(weights * np.clip(eps * raw, lowest, 1))) for eps in bends]
    bends, totals = np.r_[0.0, bends], np.r_[lowest * weights.sum(), totals]
    eps = np.interp(density * weights.sum(), totals, bends)
    return dict(zip(shapes, np.clip(eps * raw, lowest, 1).tolist(), strict=True))


def round_together(wanted: Mapping[str, float], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Round several numbers so that their sum is `total`: down first, then up where the most was cut off.

    Args:
        wanted: Path -> number; rounded together they are `total`.
        total: Sum of the whole numbers; should `most` not allow as much, their sum is less.
        most: Path -> no more than this.

    Example:
        >>> round_together({"a": 1.4, "b": 1.4, "c": 2.2}, 5, {"a": 9, "b": 9, "c": 9})
        {'a': 2, 'b': 1, 'c': 2}
    """
    counts = {path: min(int(number + 1e-9), most[path]) for path, number in wanted.items()}
    order = sorted(wanted, key=lambda path: counts[path] - wanted[path])  # stable: ties by order
    total = min(total, sum(most.values()))
    while (missing := total - sum(counts.values())) > 0:
        for path in [path for path in order if counts[path] < most[path]][:missing]:
            counts[path] += 1
    return counts
