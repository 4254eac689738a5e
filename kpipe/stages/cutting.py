"""What the stages that cut share: rounds of cutting and training, and when they end."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import keras
import numpy as np
from pydantic import Field

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.measure import measure
from kpipe.pipeline import Context
from kpipe.pipeline.examine import BATCH
from kpipe.pipeline.task import accuracy, gives_probabilities
from kpipe.stages.fields import Until
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import RetrainingStage, evidence, train
from kpipe.structured import FilterPlan
from kpipe.structured.batch_norm import reestimate_batch_norm
from kpipe.structured.composition import compose

MOST_ROUNDS = 100
"""Rounds after which a stage ends that goes on `until` its budget is spent."""


class CuttingStage(RetrainingStage):
    """Describe a stage that cuts a model and trains what is left, at once or in rounds.

    Args:
        rounds: In how many rounds of cutting and training the amount is reached, in equal parts of what is left. None
            for one; with `until`, each round takes the amount, for as long as the budget lasts.
        until: When to stop, such as {max_accuracy_drop: 0.01}: the last model within it is given on.
        reestimate_batch_norm: Take the statistics of batch norms anew after each cut, before the training.
    """

    rounds: Annotated[int, Field(ge=1)] | None = None
    until: Until | None = None
    reestimate_batch_norm: bool = False

    @property
    def shares(self) -> int | None:
        """Into how many rounds the amount is divided; None where each round takes it."""
        return self.rounds if self.until is not None else self.rounds or 1


@dataclass(frozen=True)
class Cut:
    """Hold what a cut leaves.

    Args:
        model: The smaller model.
        plan: What has gone of the model before it, by channels; None for what is no plan.
    """

    model: keras.Model
    plan: FilterPlan | None = None


CutRound = Callable[[keras.Model, int, FilterPlan | None], Cut | None]
"""(model, number of the round, from 1, the plan of all rounds before) -> what the cut leaves; None: nothing can go."""


@dataclass
class _Rounds:
    """Follow the rounds: the model so far, what has been cut of the first one, and what each round came to."""

    model: keras.Model
    plan: FilterPlan | None = None
    rows: list[dict[str, Any]] | None = None
    end: str = ""


def cut_in_rounds(stage: CuttingStage, given: keras.Model, context: Context, cut_round: CutRound) -> keras.Model:
    """Cut and train, round by round; the record tells what came of each.

    Args:
        stage: The stage.
        given: The model as it came; it stays as it is.
        context: The run's context.
        cut_round: Cuts the model of one round; how much it takes rests on what went before.

    Returns:
        The last model within the budget; without a budget the last one.

    Raises:
        KpipeError: When there is a budget of accuracy, and the labels are no classes.
    """
    budget = None if stage.until is None else _Budget(stage, given, context)
    rounds = _Rounds(given, rows=[])
    for number in range(1, (stage.shares or MOST_ROUNDS) + 1):
        cut = _next(stage, rounds, cut_round, number)
        if cut is None:
            break
        if not _take(stage, given, context, rounds, cut, budget):
            break
    _tell(stage, context, rounds, budget)
    return rounds.model


def _next(stage: CuttingStage, rounds: _Rounds, cut_round: CutRound, number: int) -> Cut | None:
    """Cut once more, or note why the rounds end; what is wrong from the start, or without a budget, is a fault."""
    try:
        with warnings.catch_warnings():
            if stage.shares != 1:  # one of several rounds may take nothing; what all came to is said below
                warnings.simplefilter("ignore", NoEffectWarning)
            cut = cut_round(rounds.model, number, rounds.plan)
    except KpipeError as fault:
        if stage.until is None or number == 1 or isinstance(fault, SurgeryError):
            raise
        rounds.end = f"round {number} cannot be cut: {fault}"
        return None
    if cut is None:
        rounds.end = f"round {number} finds nothing more to cut"
    return cut


def _take(
    stage: CuttingStage, given: keras.Model, context: Context, rounds: _Rounds, cut: Cut, budget: "_Budget | None"
) -> bool:
    """Train what a cut has left; tell whether it is within the budget, and if so take it."""
    small = cut.model
    if stage.reestimate_batch_norm:
        small = reestimate_batch_norm(small, evidence(context)[0])
    plan = cut.plan if rounds.plan is None or cut.plan is None else compose(rounds.plan, cut.plan)
    trained = train(stage, small, context, teacher=teacher_of(stage.distill, context, given, plan))
    counts, rows = measure(trained), rounds.rows or []
    row: dict[str, Any] = {"round": len(rows) + 1, "params": counts.params, "macs": counts.macs}
    reached = _accuracy(trained, context)
    if reached is not None:
        row["validation accuracy"] = reached
    inside = budget is None or budget.holds(reached)
    if budget is not None:
        row |= {"accuracy drop": budget.drop(reached), "within the budget": inside}
    rounds.rows = [*rows, row]
    if inside:
        rounds.model, rounds.plan = trained, plan
    else:
        rounds.end = f"round {row['round']} is beyond it"
    return inside


def _tell(stage: CuttingStage, context: Context, rounds: _Rounds, budget: "_Budget | None") -> None:
    details, rows = context.record.details, rounds.rows or []
    if rounds.plan is not None:
        rounds.plan.save(context.folder / "plan.json")
        details["plan"] = rounds.plan.to_dict()
    if stage.rounds is not None or budget is not None:
        details["rounds"] = rows
    if stage.shares != 1 and rounds.plan is not None and not rounds.plan.ratio:
        text = f"{stage.stage} removes nothing in {len(rows)} rounds. Ask for a larger ratio, or a smaller round_to."
        warnings.warn(text, NoEffectWarning, stacklevel=2)
    if budget is None:
        return
    taken = sum(row["within the budget"] for row in rows)
    end = rounds.end or f"all {len(rows)} rounds are within it"
    details["until"] = {
        "accuracy to compare with": budget.reference,
        "max accuracy drop": budget.most,
        "rounds taken": taken,
        "end": end,
    }
    given_on = f"the model of round {taken} is given on" if taken else "the model is given on as it came"
    context.record.note(f"The budget is an accuracy drop of {budget.most:g}: {end}; {given_on}.")
    if not taken:
        lost = f" It drops by {rows[0]['accuracy drop']:.4f}." if rows else ""
        text = f"{stage.stage} gives the model back as it came: {end}.{lost} Cut less a round, or train longer."
        warnings.warn(text, NoEffectWarning, stacklevel=2)


class _Budget:
    """Hold the most accuracy that may be lost on the validation data, beside the baseline or the model as it came."""

    def __init__(self, stage: CuttingStage, given: keras.Model, context: Context):
        first = given if context.baseline is None else context.baseline.load()
        reached = _accuracy(first, context)
        if reached is None:
            raise KpipeError(
                "until has a max_accuracy_drop, and the labels are no classes. Say how much is cut by the amount alone."
            )
        self.reference, self.most = reached, 0.0 if stage.until is None else stage.until.max_accuracy_drop

    def drop(self, reached: float | None) -> float:
        """Give how much is lost; below 0 where the model is better."""
        return self.reference - (reached or 0.0)

    def holds(self, reached: float | None) -> bool:
        """Tell whether no more is lost than may be."""
        return self.drop(reached) <= self.most + 1e-9  # of a difference of floats


def _accuracy(model: keras.Model, context: Context) -> float | None:
    x, y = context.data.validation
    outputs = np.asarray(model.predict(x, batch_size=BATCH, verbose=0))  # type: ignore[arg-type]
    return accuracy(outputs, y, gives_probabilities(model), context.loss)


def part_of(amount: float, parts: int | None) -> float:
    """Give what one of several equal rounds leaves, where all together leave `amount`, both as fractions.

    Example:
        >>> part_of(0.25, 2), part_of(0.25, None)
        (0.5, 0.25)
    """
    return amount ** (1 / (parts or 1))


def gone_after(ratio: float, number: int, parts: int | None) -> float:
    """Give the fraction that is gone after so many of several equal rounds, which take `ratio` all together.

    Each takes the same fraction of what is left: 1 - (1 - ratio) ** (number / parts).

    Args:
        ratio: Of all rounds.
        number: How many are done, from 1.
        parts: How many there are; None where each takes the whole ratio of what is left.

    Example:
        >>> gone_after(0.75, 1, 2), gone_after(0.75, 2, 2), gone_after(0.75, 1, None)
        (0.5, 0.75, 0.75)
    """
    return ratio if number == (parts or number) else 1 - (1 - ratio) ** (number / (parts or 1))
