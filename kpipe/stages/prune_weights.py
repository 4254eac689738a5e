"""Set weights to zero: the file compresses better."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import keras
from pydantic import model_validator

from kpipe.errors import KpipeError
from kpipe.patterns import check_scope, pattern_of
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.pipeline.task import loss_for
from kpipe.schedules import AnySchedule, Schedule, resolve, schedules_of
from kpipe.stages.fields import (
    TRIED,
    CriterionName,
    Expression,
    PatternName,
    RegrowthSpec,
    Roles,
    SchedulesSpec,
    ScopeSpec,
    Sparsity,
)
from kpipe.stages.fitting import weight_misfits
from kpipe.stages.following import Following
from kpipe.stages.pruning import PruningStage, tell_weights
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import evidence, steps_in, train
from kpipe.targets import PRUNED_ROLES, Skipped, Target
from kpipe.unstructured import Report, Row, WeightPruning, find_targets, prune_weights
from kpipe.unstructured.pruned import led
from kpipe.unstructured.report import make_report
from kpipe.unstructured.suited import suited


@STAGES("prune_weights")
class PruneWeights(PruningStage):
    """Set the least important weights to zero while the model trains; later stages keep the zeros.

    Say how many by `sparsity` or `schedule`.

    Args:
        sparsity: Fraction of zeros at the end, in [0, 1). It is reached along a polynomial decay over three quarters of
            the training; without epochs, at once.
        schedule: A schedule, such as {polynomial_decay: {final_sparsity: 0.8}}. Steps that it leaves out are laid over
            the training; begin_epoch and end_epoch count epochs. Or a schedule for each set of weights, such as
            {"conv.*/kernel": {linear: {final_sparsity: 0.5}}, "dense": {linear: {final_sparsity: 0.9}}}: a weight
            follows the first expression that is found in its path, and is left alone where none is.
        criterion: How weights are judged.
        pattern: Which weights go together: unstructured, "2:4" (any n:m), "block:4x1" or "block:4x1:max".
        scope: "layer" takes the same share of each layer; "global" ranks all the weights against one another, with
            scores compared as they are or by "global:mean" or "global:lamp", or as
            {global: {normalise: lamp, ceiling: 0.95}}; "erk" leaves more of small layers (Erdős-Rényi-kernel).
        layers: A pattern of the paths of the weights to prune; None for all prunable layers.
        roles: What a weight has to be; add depthwise_kernel to prune those too.
        regrowth: Let zeros move while the model trains: "rigl" grows weights anew where the gradient is largest, "set"
            at random; or with arguments, such as {kind: rigl, fraction: 0.3, frequency: 100}. `sparsity` is then kept
            from the first update on.
        epochs: Passes over the training data; 0 to prune at once and not train.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too.
    """

    stage: Literal["prune_weights"] = "prune_weights"
    leaves_zeros = True
    sparsity: Sparsity | None = None
    schedule: SchedulesSpec | None = None
    criterion: CriterionName = "magnitude"
    pattern: PatternName = "unstructured"
    scope: ScopeSpec = "layer"
    layers: Expression | None = None
    roles: Roles = PRUNED_ROLES
    regrowth: RegrowthSpec | None = None

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains."""
        return (*super().only_for_training(), "regrowth")

    def schedules(self, steps: int) -> dict[str | None, AnySchedule]:
        """Make the schedules of a training of so many optimizer updates; none where nothing trains."""
        if self.epochs == 0:
            return {}
        kept = {"constant": {"target_sparsity": self.sparsity, "begin_step": 0}}
        reached = {"polynomial_decay": {"final_sparsity": self.sparsity}}
        return schedules_of(self.schedule or (reached if self.regrowth is None else kept), steps)

    def follows_movement(self) -> bool:
        """Tell whether there is a training to look at."""
        return self.epochs > 0

    def check_amount(self) -> None:
        """Raise unless exactly one of sparsity and schedule is given."""
        if (self.sparsity is None) == (self.schedule is None):
            raise KpipeError("give exactly one of sparsity and schedule")

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.epochs:
            self._pruning({name: resolve(one, TRIED) for name, one in self.schedules(TRIED).items()}, data=())
        else:
            check_scope(self.scope, self.pattern, self.sparsity)
        return self

    def _pruning(self, schedules: Mapping[str | None, Schedule], **evidence: Any) -> WeightPruning:
        """Make the callback, which refuses what does not go together."""
        chosen: Any = schedules.get(None, schedules)
        return WeightPruning(chosen, **self._choice(), regrowth=self.regrowth, **evidence)

    def _choice(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("criterion", "pattern", "scope", "layers", "roles")}

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no weight to prune, beside the features."""
        wanted = [name for name in self.schedules(TRIED) if name is not None]

        def lead(targets: list[Target], skipped: list[Skipped], names: list[str]) -> None:
            others = [] if names == wanted else [None]  # all of them together have to find a weight to prune
            led(targets, [*names, *others], [row.path for row in skipped])

        return [
            *super().misfits(model),
            *weight_misfits(model, self.layers, self.roles, more=("schedule", wanted, lead)),
        ]

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Prune at once or along the training."""
        known = {
            "data": evidence(context),
            "loss": loss_for(artifact.model, context.data.train[1], self.loss),
            "seed": context.seed,
        }
        prune = self._at_once if self.epochs == 0 else self._gradually
        return FloatModel(prune(artifact.model, context, known))

    def _at_once(self, model: keras.Model, context: Context, known: dict[str, Any]) -> keras.Model:
        pruned = prune_weights(model, self.sparsity or 0.0, **self._choice(), **known)
        targets, skipped = find_targets(pruned, self.layers, self.roles)
        stay, refused = suited(targets, pattern_of(self.pattern))
        tell_weights(make_report(stay, [*skipped, *refused]), context)
        return pruned

    def _gradually(self, model: keras.Model, context: Context, known: dict[str, Any]) -> keras.Model:
        steps = steps_in(self, context)
        schedules = {name: resolve(one, steps // self.epochs) for name, one in self.schedules(steps).items()}
        pruning = self._pruning(schedules, **known)
        following = Following(context, steps, schedules, lambda: _reached(pruning.report(), schedules))
        trained = train(self, model, context, [pruning, following], teacher_of(self.distill, context, model))
        tell_weights(pruning.report(), context)
        return trained


def _reached(report: Report, schedules: Iterable[str | None]) -> Mapping[str | None, float]:
    """Give the sparsity of each set of weights, each weight counted in the first whose expression is in its path."""
    sets: dict[str | None, list[Row]] = {name: [] for name in schedules}
    for row in report.pruned:
        found = [name for name in sets if name is None or re.search(name, row.path)]
        if found:
            sets[found[0]].append(row)
    return {name: Report(tuple(rows)).sparsity for name, rows in sets.items() if rows}
