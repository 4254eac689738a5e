"""Remove attention heads: the model gets smaller for real."""

from typing import Annotated, Literal, Self

import keras
from pydantic import Field, model_validator

from kpipe.errors import KpipeError
from kpipe.graph import trace
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.pipeline.task import loss_for
from kpipe.stages.cutting import Cut, CuttingStage, cut_in_rounds, gone_after
from kpipe.stages.fields import ChannelCriterionName, Expressions, HeadScope, Ratio
from kpipe.stages.fitting import sift, sift_ignored
from kpipe.stages.pruning import JudgingStage
from kpipe.stages.training import evidence
from kpipe.structured import FilterPlan, prune_filters
from kpipe.structured.heads import heads_of, plan_heads


@STAGES("prune_heads")
class PruneHeads(JudgingStage, CuttingStage):
    """Remove the least important attention heads, then train what is left.

    Say how many by `ratio` or `count`.

    Args:
        ratio: Fraction of the heads to remove, in [0, 1).
        count: Number of heads to remove: from each layer, or in scope "global" from all of them together.
        rounds: In how many rounds of cutting and training the ratio is reached, each with `epochs`, in equal parts of
            what is left, whole heads at a time; with `count`, so many are removed in each. None for one; with `until`,
            each round takes the amount anew.
        until: Go on round by round for as long as a budget lasts, such as {max_accuracy_drop: 0.01}: accuracy lost on
            the validation data beside the baseline. The last model within it is given on.
        criterion: How heads are judged.
        scope: "layer" takes as much of each layer; "global" ranks the heads of all the layers against one another.
        ignore: Patterns of the paths of layers to leave alone.
        reestimate_batch_norm: Take the statistics of batch norms anew after each cut, before the training.
        epochs: Passes over the training data afterwards; 0 for none.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too, channel by channel.
    """

    judges_channels = True
    stage: Literal["prune_heads"] = "prune_heads"
    ratio: Ratio | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    criterion: ChannelCriterionName = "l1"
    scope: HeadScope = "layer"
    ignore: Expressions = ()

    def follows_movement(self) -> bool:
        """Tell that heads go before the training."""
        return False

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.ratio is None) == (self.count is None):
            raise KpipeError("give exactly one of ratio and count")
        return self

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no layer, beside the features, and a model without heads that can be cut."""
        traced, ignored = sift_ignored(trace(model, unknown="freeze"), self.ignore)
        headless = sift("stage", [traced], lambda some: heads_of(some[-1], model.name))[1]
        return [*super().misfits(model), *ignored, *headless]

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cut and train."""

        def cut_round(model: keras.Model, number: int, gone: FilterPlan | None) -> Cut | None:
            return self._cut(model, number, None if self.shares is None else gone, context)

        return FloatModel(cut_in_rounds(self, artifact.model, context, cut_round))

    def _cut(self, model: keras.Model, number: int, gone: FilterPlan | None, context: Context) -> Cut | None:
        plan = plan_heads(
            model,
            ratio=None if self.ratio is None else gone_after(self.ratio, number, self.shares),
            count=self.count,
            criterion=self.criterion,
            data=evidence(context),
            loss=loss_for(model, context.data.train[1], self.loss),
            scope=self.scope,
            ignore=list(self.ignore) or None,
            seed=context.seed,
            after=gone,
        )
        if self.shares is None and not plan.ratio:
            return None
        return Cut(prune_filters(model, plan), plan)
