"""Remove filters: the model gets smaller for real."""

from typing import Any, Literal, Self

import keras
from pydantic import model_validator

from kpipe.errors import KpipeError
from kpipe.pipeline import STAGES, Context, FloatModel
from kpipe.pipeline.task import loss_for
from kpipe.schedules import resolve
from kpipe.stages.cutting import Cut, CuttingStage, cut_in_rounds, part_of
from kpipe.stages.fields import (
    ChannelScope,
    CriterionName,
    Expression,
    Multiple,
    Ratio,
    RegularizerSpec,
    ScheduleSpec,
    Target,
)
from kpipe.stages.following import Following
from kpipe.stages.pruning import PruningStage
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import evidence, steps_in, train
from kpipe.structured import FilterPruning, plan_filters, prune_filters


@STAGES("prune_filters")
class PruneFilters(PruningStage, CuttingStage):
    """Remove the least important channels, then train what is left.

    Say how many by one of `ratio`, `target` and `schedule`. The first two cut before the training; a schedule zeroes
    channels bit by bit while the model trains, and cuts at the end.

    Args:
        ratio: Fraction of the channels to remove, in [0, 1).
        target: Fraction of the MACs or the parameters that may remain, such as {macs: 0.5}.
        schedule: A schedule of the fraction of channels removed, such as {polynomial_decay: {final_sparsity: 0.5}}.
            Steps that it leaves out are laid over the training; begin_epoch and end_epoch count epochs.
        rounds: In how many rounds of cutting and training the ratio or target is reached, each with `epochs`, in equal
            parts of what is left. None for one; with `until`, each round takes the ratio or target anew.
        until: Go on round by round for as long as a budget lasts, such as {max_accuracy_drop: 0.01}: accuracy lost on
            the validation data beside the baseline. The last model within it is given on.
        criterion: How channels are judged.
        scope: "layer" takes the same share of each layer; "global" ranks all the channels against one another.
        round_to: Keep a multiple of this many channels a layer.
        ignore: Patterns of the paths of layers to leave alone.
        regularizer: With a schedule: what pulls channels towards zero before they go: group_lasso, depgraph, growing
            or slimming, or with arguments, such as {depgraph: {strength: 5.0e-4}}.
        reestimate_batch_norm: Take the statistics of batch norms anew after each cut, before the training.
        epochs: Passes over the training data afterwards (with a schedule: during); 0 for none.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too, channel by channel.
    """

    stage: Literal["prune_filters"] = "prune_filters"
    ratio: Ratio | None = None
    target: Target | None = None
    schedule: ScheduleSpec | None = None
    criterion: CriterionName = "l1"
    scope: ChannelScope = "layer"
    round_to: Multiple = 1
    ignore: tuple[Expression, ...] = ()
    regularizer: RegularizerSpec | None = None

    def follows_movement(self) -> bool:
        """Tell whether channels go while the model trains."""
        return self.schedule is not None

    def check_amount(self) -> None:
        """Raise unless exactly one of ratio, target and schedule is given."""
        given = [name for name in ("ratio", "target", "schedule") if getattr(self, name) is not None]
        if len(given) != 1:
            raise KpipeError(f"received {', '.join(given) or 'no amount'}; give exactly one of ratio, target, schedule")

    @model_validator(mode="after")
    def _cuts_before_or_after(self) -> Self:
        if self.schedule is None and self.regularizer is not None:
            raise KpipeError("a regularizer pulls channels towards zero along a schedule; give a schedule, or leave it")
        of_cuts = [name for name in ("rounds", "until", "reestimate_batch_norm") if getattr(self, name)]
        if self.schedule is not None and of_cuts:
            raise KpipeError(
                f"{', '.join(of_cuts)} goes with cuts before a training, and a schedule cuts once, at the end; give a "
                f"ratio or target, or leave {', '.join(of_cuts)} out"
            )
        return self

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cut and train, or train and cut."""
        prune = self._cut_first if self.schedule is None else self._gradually
        return FloatModel(prune(artifact.model, context))

    def _cut_first(self, model: keras.Model, context: Context) -> keras.Model:
        left = 1.0  # of the macs or params of the model as it came

        def knife(before: keras.Model, number: int) -> Cut | None:
            nonlocal left
            plan = plan_filters(before, **self._amount(number, left), **self._choice(before, context))
            if self.until is not None and not plan.ratio:
                return None
            for kind in {} if self.target is None else self.target.model_dump(exclude_none=True):
                left *= (plan.after[kind] or 0) / (plan.before[kind] or 1)
            return Cut(prune_filters(before, plan), plan)

        return cut_in_rounds(self, model, context, knife)

    def _amount(self, number: int, left: float) -> dict[str, Any]:
        """Say how much one round takes of what is left."""
        if self.target is None:
            return {"ratio": 1 - part_of(1 - (self.ratio or 0.0), self.parts)}
        ((kind, fraction),) = self.target.model_dump(exclude_none=True).items()
        wanted = part_of(fraction, self.parts)
        return {"target": {kind: wanted if self.parts is None else min(wanted**number / left, 1 - 1e-9)}}

    def _choice(self, model: keras.Model, context: Context) -> dict[str, Any]:
        return {
            "criterion": self.criterion,
            "data": evidence(context),
            "loss": loss_for(model, context.data.train[1], self.loss),
            "scope": self.scope,
            "round_to": self.round_to,
            "ignore": list(self.ignore) or None,
            "seed": context.seed,
        }

    def _gradually(self, model: keras.Model, context: Context) -> keras.Model:
        steps = steps_in(self, context)
        schedules = {name: resolve(one, steps // self.epochs) for name, one in self.schedules(steps).items()}
        known = self._choice(model, context)
        pruning = FilterPruning(schedules[None], regularizer=self.regularizer, **known)
        following = Following(context, steps, schedules, lambda: {None: pruning.plan.ratio})
        train(self, model, context, [pruning, following], teacher_of(self.distill, context, model))
        pruning.plan.save(context.folder / "plan.json")
        context.record.details["plan"] = pruning.plan.to_dict()
        return pruning.shrink()
