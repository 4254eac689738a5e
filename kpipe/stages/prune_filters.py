"""Remove filters: the model gets smaller for real."""

from typing import Literal

import keras

from kpipe.errors import KpipeError
from kpipe.pipeline import STAGES, Context, FloatModel
from kpipe.pipeline.task import loss_for
from kpipe.schedules import resolve
from kpipe.stages.fields import ChannelScope, CriterionName, Expression, Multiple, Ratio, ScheduleSpec, Target
from kpipe.stages.following import Following
from kpipe.stages.pruning import PruningStage
from kpipe.stages.training import evidence, steps_in, train
from kpipe.structured import FilterPruning, plan_filters, prune_filters


@STAGES("prune_filters")
class PruneFilters(PruningStage):
    """Remove the least important channels, then train what is left.

    Say how many by one of `ratio`, `target` and `schedule`. The first two cut before the training; a schedule zeroes
    channels bit by bit while the model trains, and cuts at the end.

    Args:
        ratio: Fraction of the channels to remove, in [0, 1).
        target: Fraction of the MACs or the parameters that may remain, such as {macs: 0.5}.
        schedule: A schedule of the fraction of channels removed, such as {polynomial_decay: {final_sparsity: 0.5}}.
            Steps that it leaves out are laid over the training; begin_epoch and end_epoch count epochs.
        criterion: How channels are judged.
        scope: "layer" takes the same share of each layer; "global" ranks all the channels against one another.
        round_to: Keep a multiple of this many channels a layer.
        ignore: Patterns of the paths of layers to leave alone.
        epochs: Passes over the training data afterwards (with a schedule: during); 0 for none.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}.
    """

    stage: Literal["prune_filters"] = "prune_filters"
    ratio: Ratio | None = None
    target: Target | None = None
    schedule: ScheduleSpec | None = None
    criterion: CriterionName = "l1"
    scope: ChannelScope = "layer"
    round_to: Multiple = 1
    ignore: tuple[Expression, ...] = ()

    def check_amount(self) -> None:
        """Raise unless exactly one of ratio, target and schedule is given."""
        given = [name for name in ("ratio", "target", "schedule") if getattr(self, name) is not None]
        if len(given) != 1:
            raise KpipeError(f"received {', '.join(given) or 'no amount'}; give exactly one of ratio, target, schedule")

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cut and train, or train and cut."""
        prune = self._cut_first if self.schedule is None else self._gradually
        return FloatModel(prune(artifact.model, context))

    def _cut_first(self, model: keras.Model, context: Context) -> keras.Model:
        plan = plan_filters(
            model,
            ratio=self.ratio,
            target=None if self.target is None else self.target.model_dump(exclude_none=True),
            criterion=self.criterion,
            data=evidence(context),
            loss=loss_for(model, context.data.train[1], self.loss),
            scope=self.scope,
            round_to=self.round_to,
            ignore=list(self.ignore) or None,
            seed=context.seed,
        )
        plan.save(context.folder / "plan.json")
        context.record.details["plan"] = plan.to_dict()
        return train(self, prune_filters(model, plan), context, teaching=self.distill)

    def _gradually(self, model: keras.Model, context: Context) -> keras.Model:
        steps = steps_in(self, context)
        schedules = {name: resolve(one, steps // self.epochs) for name, one in self.schedules(steps).items()}
        pruning = FilterPruning(
            schedules[None],
            criterion=self.criterion,
            round_to=self.round_to,
            scope=self.scope,
            ignore=list(self.ignore) or None,
            data=evidence(context),
            loss=loss_for(model, context.data.train[1], self.loss),
            seed=context.seed,
        )
        following = Following(context, steps, schedules, lambda: {None: pruning.plan.ratio})
        train(self, model, context, [pruning, following], self.distill)
        pruning.plan.save(context.folder / "plan.json")
        context.record.details["plan"] = pruning.plan.to_dict()
        return pruning.shrink()
