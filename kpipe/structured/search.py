"""The search for the fewest channels whose removal meets a budget."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kpipe.errors import KpipeError
from kpipe.structured.ranking import Ranking

TOLERANCE = 0.02
"""How far below a budget a result may stay, as a fraction of it, before it is said why."""

MEASUREMENTS = 12
"""Most candidates that are measured for one budget."""

Removed = list[np.ndarray]
"""For each group the places that go, ascending."""


def fewest(ranking: Ranking, cost: Callable[[Removed], float], budget: float) -> tuple[int, ...]:
    """Find blocks whose removal meets a budget, as few and as little worth as the budget allows.

    A bisection finds the smallest ratio that does; then the last blocks of the groups come back one by one, those that
    are worth most first, wherever the budget has room: a dear channel that does not fit keeps no cheap one out.

    Args:
        ranking: What goes in which order.
        cost: Of the model without some channels; it does not rise when more go.
        budget: What it may be.

    Returns:
        How many blocks go of each group: all of them when that is not enough.

    Example:
        >>> from kpipe.structured.ranking import rank
        >>> ranking = rank([np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])], [(0,), (1,)], [1, 1])
        >>> fewest(ranking, lambda removed: 5.0 - sum(map(len, removed)), 3.0)
        (1, 1)
    """

    def fits(levels: Sequence[int]) -> bool:
        return cost(ranking.lowest(levels)) <= budget

    def at(ratio: float) -> tuple[int, ...]:
        return ranking.levels([pool.nearest(ratio) for pool in ranking.pools])

    low, high = 0.0, 1.0
    if fits(at(low)):
        return at(low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
        if at(low) == at(high):
            break
    return _give_back(ranking, at(high), fits)


def _give_back(ranking: Ranking, levels: tuple[int, ...], fits: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """Restore the last blocks of the groups, best first, where the budget has room for them."""
    opened = {n for n, count in enumerate(levels) if count}
    while opened:
        best = max(opened, key=lambda n: (ranking.ladders[n][1][levels[n] - 1], n))
        trial = (*levels[:best], levels[best] - 1, *levels[best + 1 :])
        fitting = fits(trial)
        levels = trial if fitting else levels
        if not fitting or not levels[best]:
            opened.discard(best)
    return levels


@dataclass
class Measured:
    """Candidates that were measured: the estimate of each, what it really costs, and the blocks of each group that go.

    Example:
        >>> seen = Measured()
        >>> seen.add(100.0, 50.0, (0,)), seen.add(20.0, 10.0, (9,)), seen.aim(30.0)
        (None, None, 60.0)
    """

    estimates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    levels: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, estimate: float, cost: float, levels: tuple[int, ...]) -> None:
        """Take a candidate."""
        self.estimates.append(estimate)
        self.costs.append(cost)
        self.levels.append(levels)

    def around(self, cost: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Give the (cost, estimate) of the dearest candidate at or below a cost, and of the cheapest above it."""
        pairs = list(zip(self.costs, self.estimates, strict=True))
        return max(pair for pair in pairs if pair[0] <= cost), min(pair for pair in pairs if pair[0] > cost)

    def aim(self, cost: float) -> float:
        """Give the estimate that likely comes to a cost: on the line through the two candidates around it."""
        below, above = self.around(cost)
        return below[1] + (above[1] - below[1]) * (cost - below[0]) / (above[0] - below[0])

    def aims(self, budget: float) -> Iterator[float]:
        """Give the estimates to try next, the likeliest first; the last is the next one below what was too dear."""
        below, above = self.around(budget)
        yield from (self.aim(budget * (1 - TOLERANCE / 2)), self.aim(budget))
        yield from ((below[1] + above[1]) / 2, math.nextafter(above[1], -math.inf))

    def best(self, budget: float) -> tuple[float, tuple[int, ...]]:
        """Give the dearest candidate that meets the budget: what it costs, and its levels."""
        return max((c, b) for c, b in zip(self.costs, self.levels, strict=True) if c <= budget)


def fewest_measured(
    ranking: Ranking,
    estimate: Callable[[Removed], float],
    measure: Callable[[Removed], float],
    budget: float,
    before: float,
    asked: str,
) -> tuple[float, tuple[int, ...]]:
    """Find the fewest blocks whose removal meets a budget of something that has to be measured.

    The estimate says what to try. Every candidate is measured, and what comes out says which estimate to aim at next,
    until one lies within `TOLERANCE` below the budget, or no other candidate lies between.

    Args:
        ranking: What goes in which order.
        estimate: Of the cost; only its order of candidates must be about right.
        measure: The cost.
        budget: What it may be.
        before: The cost when nothing goes, above the budget.
        asked: The target as it was asked for, for the error.

    Returns:
        The cost of the result, and how many blocks go of each group.

    Raises:
        KpipeError: When the smallest model that can be left costs more than the budget.
    """
    seen = Measured()
    none, everything = ranking.levels(ranking.none), ranking.levels(ranking.all)
    seen.add(estimate(ranking.lowest(none)), before, none)

    def try_out(levels: tuple[int, ...]) -> float:
        removed = ranking.lowest(levels)
        cost = measure(removed)
        seen.add(estimate(removed), cost, levels)
        return cost

    least = try_out(everything)
    if least > budget:
        raise out_of_reach(asked, least, before)
    if least >= budget * (1 - TOLERANCE):
        return least, everything  # near enough: nothing lies below that could be aimed at
    for _ in range(MEASUREMENTS - 2):
        likely = (fewest(ranking, estimate, aim) for aim in seen.aims(budget))
        levels = next((levels for levels in likely if levels not in seen.levels), None)
        if levels is None or budget * (1 - TOLERANCE) <= try_out(levels) <= budget:
            break
    return seen.best(budget)


def out_of_reach(asked: str, least: float, before: float) -> KpipeError:
    """Say that a budget cannot be met."""
    return KpipeError(
        f"The target {asked} cannot be reached: with all gone that may go, {least:,.4g} remain "
        f"({least / before:.3f} of the original's {before:,.4g}). Ask for more than that, lower round_to or "
        "min_channels, raise max_ratio, or let more layers be cut."
    )
