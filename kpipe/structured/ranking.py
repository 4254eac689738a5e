"""Pure functions from scores to the channels that go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kpipe.errors import KpipeError
from kpipe.graph import Group, Trace


def step_of(group: Group, round_to: int) -> int:
    """Give the number of channels whose removal keeps each producing layer's width a multiple of `round_to`.

    Example:
        >>> [step_of(Group("g", ("g",), np.arange(6), (width,)), 8) for width in (1, 3, 4, 16)]
        [8, 8, 2, 1]
    """
    return math.lcm(*(round_to // math.gcd(round_to, width) for width in group.width))


def least_of(channels: int, step: int = 1, max_ratio: float | None = None, min_channels: int = 1) -> int:
    """Give the number of channels that a group keeps whatever their scores: a multiple of `step`, or all.

    Args:
        channels: How many it has.
        step: Of which kept channels are to be a multiple.
        max_ratio: Fraction that may go at most; None for all but one step.
        min_channels: How many stay at least, where there are so many.

    Example:
        >>> least_of(20), least_of(20, 8), least_of(20, max_ratio=0.75), least_of(20, 4, min_channels=6), least_of(5, 8)
        (1, 8, 5, 8, 5)
    """
    wanted = max(1, min_channels, 0 if max_ratio is None else channels - math.floor(max_ratio * channels + 1e-9))
    return min(math.ceil(wanted / step) * step, channels)


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Give the places of the `count` lowest scores, ties by place, in ascending order.

    Example:
        >>> lowest(np.array([3.0, 1.0, 2.0, 1.0]), 2).tolist()
        [1, 3]
    """
    return np.sort(np.argsort(scores, kind="stable")[:count])


@dataclass(frozen=True)
class Pool:
    """Blocks of channels that are ranked together, in the order in which they go.

    Args:
        owners: The group of each block, shape (blocks,).
        sizes: How many channels it has, shape (blocks,).
        worth: The mean of their scores, ascending, shape (blocks,).
        channels: How many there are in the pool's groups, with those that never go and those that went before.
        gone: How many of them went before.
    """

    owners: np.ndarray
    sizes: np.ndarray
    worth: np.ndarray
    channels: int
    gone: int = 0

    def nearest(self, ratio: float) -> int:
        """Give the number of blocks whose removal comes nearest to a fraction of the channels; of two, the smaller.

        Example:
            >>> step = {"owners": np.zeros(6, int), "sizes": np.ones(6, int), "worth": np.arange(6.0), "channels": 8}
            >>> Pool(**step).nearest(0.5), Pool(**step, gone=1).nearest(0.5)
            (4, 3)
        """
        gone = self.gone + np.r_[0, np.cumsum(self.sizes)]
        return int(np.argmin(np.abs(gone - math.floor(ratio * self.channels + 0.5))))


@dataclass(frozen=True)
class Ranking:
    """Say in which order channels go.

    Args:
        orders: For each group the places of its channels, lowest score first; ties by place.
        pools: What is ranked together; each group is in one of them.
    """

    orders: tuple[np.ndarray, ...]
    pools: tuple[Pool, ...]

    @property
    def none(self) -> tuple[int, ...]:
        """No block of any pool."""
        return tuple(0 for _ in self.pools)

    @property
    def all(self) -> tuple[int, ...]:
        """All the blocks of each pool."""
        return tuple(len(pool.sizes) for pool in self.pools)

    @cached_property
    def ladders(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """The blocks of each group in the order in which they go: their sizes, and what they are worth."""
        found = {n: (np.zeros(0, np.int64), np.zeros(0)) for n in range(len(self.orders))}
        for pool in self.pools:
            for n in np.unique(pool.owners).tolist():
                own = pool.owners == n
                found[n] = (pool.sizes[own], pool.worth[own])
        return tuple(found.values())

    def levels(self, blocks: Sequence[int]) -> tuple[int, ...]:
        """Give for each group how many of its blocks go, when so many blocks of each pool do."""
        gone = np.zeros(len(self.orders), np.int64)
        for pool, count in zip(self.pools, blocks, strict=True):
            gone += np.bincount(pool.owners[:count], minlength=len(self.orders))
        return tuple(gone.tolist())

    def lowest(self, levels: Sequence[int]) -> list[np.ndarray]:
        """Give for each group the places that go, ascending, when so many of its blocks do."""
        counts = [int(sizes[:level].sum()) for (sizes, _), level in zip(self.ladders, levels, strict=True)]
        return [np.sort(order[:count]) for order, count in zip(self.orders, counts, strict=True)]

    def removed(self, blocks: Sequence[int]) -> list[np.ndarray]:
        """Give for each group the places that go, ascending, when so many blocks of each pool do."""
        return self.lowest(self.levels(blocks))


def rank(
    scores: Sequence[np.ndarray],
    pools: Sequence[Sequence[int]],
    steps: Sequence[int],
    least: Sequence[int] | None = None,
    gone: Sequence[int] | None = None,
) -> Ranking:
    """Order channels by score, in blocks whose removal leaves each group a multiple of its step.

    Within a group the lowest go first. A group that is no multiple of its step begins with a smaller block. Blocks of a
    pool go by their mean score, equal ones in the order of the groups. So whatever goes scores no higher than what
    stays: block against block, and with steps of 1 channel against channel.

    Args:
        scores: For each group, shape (channels,); higher: keep.
        pools: The numbers of the groups that are ranked together; each in one.
        steps: For each group the multiple that its kept channels are to be.
        least: For each group how many stay in any case; None: one step. See `least_of`.
        gone: For each group how many channels went before, which ratios count too; None: none.

    Returns:
        The ranking.

    Example:
        >>> found = rank([np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 2.5])], [(0, 1)], [2, 1])
        >>> found.pools[0].owners.tolist(), found.pools[0].worth.tolist()
        ([0, 1], [1.5, 2.5])
        >>> [places.tolist() for places in found.removed([2])]
        [[0, 1], [1]]
    """
    least = [least_of(len(s), step) for s, step in zip(scores, steps, strict=True)] if least is None else least
    orders = tuple(np.argsort(values, kind="stable") for values in scores)
    blocks = [
        _blocks(values[order], step, stay)
        for values, order, step, stay in zip(scores, orders, steps, least, strict=True)
    ]
    gone = [0 for _ in scores] if gone is None else gone
    return Ranking(orders, tuple(_pool(members, blocks, [len(values) for values in scores], gone) for members in pools))


def _blocks(ascending: np.ndarray, step: int, stay: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the sizes and the mean scores of a group's blocks in the order in which they go."""
    free = len(ascending) - stay
    ends = np.unique([*range(free, 0, -step), 0])
    sizes = np.diff(ends)
    if not len(sizes):
        return sizes, np.zeros(0)
    worth = np.add.reduceat(ascending[:free].astype("float64"), ends[:-1]) / sizes
    return sizes, np.maximum.accumulate(worth)  # rounding of means must not turn the order around


def _pool(
    members: Sequence[int],
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
    channels: Sequence[int],
    gone: Sequence[int],
) -> Pool:
    owners = np.concatenate([np.full(len(blocks[n][0]), n, np.int64) for n in members])
    sizes, worth = (np.concatenate([blocks[n][i] for n in members]) for i in (0, 1))
    order = np.argsort(worth, kind="stable")
    before = sum(gone[n] for n in members)
    whole = sum(channels[n] for n in members) + before
    return Pool(owners[order], sizes[order].astype(np.int64), worth[order], whole, before)


def choose(
    scores: Sequence[np.ndarray],
    ratio: float | Sequence[float],
    scope: str | Sequence[Sequence[int]],
    steps: Sequence[int],
    least: Sequence[int] | None = None,
    gone: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Choose the channels that go at a ratio.

    Args:
        scores: For each group, shape (channels,); higher: keep. Where groups are ranked together they are compared.
        ratio: Fraction of the channels to remove, in [0, 1]; or one for each pool.
        scope: "layer" removes it from every group, "global" from all the groups together; or pools: the numbers of the
            groups that are ranked together.
        steps: For each group the multiple that its kept channels are to be; see `rank`.
        least: For each group how many stay in any case; None: one step.
        gone: For each group how many channels went before, of what the ratio is a fraction too; None: none.

    Returns:
        For each group the places that go, ascending.

    Raises:
        KpipeError: For another scope: `kpipe.structured.scopes.partition` turns it into pools.

    Example:
        >>> two = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0])]
        >>> [places.tolist() for places in choose(two, 0.5, "layer", [1, 1])]
        [[0, 1], [1]]
        >>> [places.tolist() for places in choose(two, 0.5, "global", [1, 1])]
        [[0, 1, 2], []]
    """
    if isinstance(scope, str):
        every = tuple(range(len(scores)))
        if scope not in ("layer", "global"):
            raise KpipeError(f"Expected 'layer', 'global' or the numbers of groups. Received: {scope!r}.")
        scope = [(n,) for n in every] if scope == "layer" else [every] * bool(every)
    ranking = rank(scores, scope, steps, least, gone)
    each = ratio if isinstance(ratio, Sequence) else [ratio] * len(ranking.pools)
    return ranking.removed([pool.nearest(r) for pool, r in zip(ranking.pools, each, strict=True)])


def keep_of(trace: Trace, removed: Sequence[np.ndarray]) -> np.ndarray:
    """Turn the places that go in each group into what stays of each class, shape (classes,), bool."""
    keep = np.ones(trace.class_count, bool)
    for group, places in zip(trace.groups, removed, strict=True):
        keep[group.classes[places]] = False
    return keep
