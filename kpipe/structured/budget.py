"""A target met: what goes, what the model costs before and after, and why it is not nearer to the budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import keras

from kpipe.errors import KpipeError
from kpipe.graph import Trace
from kpipe.structured.channels import remove_channels
from kpipe.structured.ranking import Ranking, keep_of
from kpipe.structured.request import Request
from kpipe.structured.search import TOLERANCE, Removed, fewest, fewest_measured, out_of_reach
from kpipe.structured.targets import TARGETS, Measure, Target, check_target


@dataclass(frozen=True)
class Choice:
    """Say what goes.

    Args:
        removed: For each group the places, ascending.
        costs: Name of what was measured -> (before, after).
        notes: What a reader should know.
    """

    removed: Removed
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose_for_target(
    model: keras.Model, traced: Trace, ranking: Ranking, asked: Request, measure: Measure | None = None
) -> Choice:
    """Choose the fewest channels that bring a model down to a budget: reached, never above.

    Args:
        model: The traced model.
        traced: Its trace.
        ranking: What goes in which order.
        asked: It holds the target.
        measure: A model -> what it costs, in place of how the target is measured otherwise.

    Returns:
        What goes.

    Raises:
        KpipeError: When even the smallest model that can be left is above the budget, or the target is counted and a
            measure was given.
    """
    kind, amount = check_target(asked.target)
    target = TARGETS[kind]
    if measure is not None and target.measure is None:
        raise KpipeError(f"The target {kind!r} is counted, not measured: leave measure out, or choose another target.")
    if measure is not None:
        target = target.measured_by(measure)
    if target.measure is None:
        found = _counted(target, model, traced, ranking, asked)
    else:
        found = _measured(target.measure(model), target, model, traced, ranking, asked)
    ((before, after),) = found.costs.values()
    budget, anything = target.budget(amount, before), any(len(places) for places in found.removed)
    if anything and after < budget * (1 - TOLERANCE):
        return replace(found, notes=(_short(kind, after, budget, target.measure is not None),))
    return found


def _counted(target: Target, model: keras.Model, traced: Trace, ranking: Ranking, asked: Request) -> Choice:
    """Meet a budget of something that is known of every candidate."""
    kind, amount = check_target(asked.target)
    estimate = target.estimate(model, traced)

    def cost(removed: Removed) -> float:
        return estimate(keep_of(traced, removed))

    before, least = cost(ranking.removed(ranking.none)), cost(ranking.removed(ranking.all))
    budget = target.budget(amount, before)
    if least > budget:
        raise out_of_reach(f"{kind}: {amount:,.4g}", least, before)
    removed = ranking.lowest(fewest(ranking, cost, budget))
    return Choice(removed, {kind: (before, cost(removed))})


def _measured(
    exact: Measure, target: Target, model: keras.Model, traced: Trace, ranking: Ranking, asked: Request
) -> Choice:
    """Meet a budget of something that has to be measured, led by an estimate."""
    kind, amount = check_target(asked.target)
    before = float(exact(model))
    budget = target.budget(amount, before)
    if before <= budget:
        return Choice(ranking.removed(ranking.none), {kind: (before, before)})
    estimate = target.estimate(model, traced)
    after, levels = fewest_measured(
        ranking,
        lambda removed: estimate(keep_of(traced, removed)),
        lambda removed: float(exact(remove_channels(model, traced, keep_of(traced, removed)))),
        budget,
        before,
        f"{kind}: {amount:,.4g}",
    )
    return Choice(ranking.lowest(levels), {kind: (before, after)})


def _short(kind: str, after: float, budget: float, measured: bool) -> str:
    nearer = "no candidate that was measured lies between" if measured else "one step more of any layer would be above"
    return (
        f"{kind}: {_number(after)} is {1 - after / budget:.1%} below the {_number(budget)} that may remain: channels "
        f"go whole, and {nearer}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
