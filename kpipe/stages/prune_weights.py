"""Set weights to zero: the file compresses better."""

from typing import Any, Literal, Self

import keras
from pydantic import model_validator

from kpipe.errors import KpipeError
from kpipe.patterns import check_scope, pattern_of
from kpipe.pipeline import STAGES, Context, FloatModel
from kpipe.pipeline.task import loss_for
from kpipe.schedules import schedule
from kpipe.stages.fields import CriterionName, Expression, PatternName, Sparsity
from kpipe.stages.pruning import PruningStage
from kpipe.stages.training import evidence, steps_in, train
from kpipe.unstructured import Report, WeightPruning, find_targets, prune_weights
from kpipe.unstructured.report import make_report


@STAGES("prune_weights")
class PruneWeights(PruningStage):
    """Set the least important weights to zero while the model trains; later stages keep the zeros.

    Say how many by `sparsity` or `schedule`.

    Args:
        sparsity: Fraction of zeros at the end, in [0, 1). It is reached along a polynomial decay over three quarters of
            the training; without epochs, at once.
        schedule: A schedule, such as {polynomial_decay: {final_sparsity: 0.8}}. Steps that it leaves out are laid over
            the training.
        criterion: How weights are judged.
        pattern: Which weights may go together.
        scope: "layer" takes the same share of each layer; "global" ranks all the weights against one another.
        layers: A pattern of the paths of the weights to prune; None for all prunable layers.
        epochs: Passes over the training data; 0 to prune at once and not train.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}.
    """

    stage: Literal["prune_weights"] = "prune_weights"
    leaves_zeros = True
    sparsity: Sparsity | None = None
    criterion: CriterionName = "magnitude"
    pattern: PatternName = "unstructured"
    layers: Expression | None = None

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.sparsity is None) == (self.schedule is None):
            raise KpipeError("give exactly one of sparsity and schedule")
        check_scope(self.scope, pattern_of(self.pattern))
        return self

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Prune at once or along the training."""
        choice = {name: getattr(self, name) for name in ("criterion", "pattern", "scope", "layers")}
        choice |= {
            "data": evidence(context),
            "loss": loss_for(artifact.model, context.data.train[1], self.loss),
            "seed": context.seed,
        }
        prune = self._at_once if self.epochs == 0 else self._gradually
        return FloatModel(prune(artifact.model, context, choice))

    def _at_once(self, model: keras.Model, context: Context, choice: dict[str, Any]) -> keras.Model:
        pruned = prune_weights(model, self.sparsity or 0.0, **choice)
        _tell(make_report(*find_targets(pruned, self.layers)), context)
        return pruned

    def _gradually(self, model: keras.Model, context: Context, choice: dict[str, Any]) -> keras.Model:
        spec = self.schedule or {"polynomial_decay": {"final_sparsity": self.sparsity}}
        pruning = WeightPruning(schedule(spec, steps=steps_in(self, context)), **choice)
        trained = train(self, model, context, [pruning], self.distill)
        _tell(pruning.report(), context)
        return trained


def _tell(report: Report, context: Context) -> None:
    context.record.details["weights"] = [
        {"path": row.path, "shape": list(row.shape), "sparsity": row.sparsity} for row in report.pruned
    ]
    for row in report.skipped:
        context.record.skip(row.path, str(row.reason))
