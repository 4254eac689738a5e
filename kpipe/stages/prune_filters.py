"""Remove filters: the model gets smaller for real."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import keras
from pydantic import AfterValidator, Field, model_validator

from kpipe.errors import KpipeError
from kpipe.graph import trace
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.pipeline.task import loss_for
from kpipe.schedules import resolve
from kpipe.stages.cutting import Cut, CuttingStage, cut_in_rounds, gone_after, part_of
from kpipe.stages.fields import (
    ChannelCriterionName,
    ChannelScope,
    Expressions,
    Multiple,
    Normalisation,
    Ratios,
    Reduction,
    RegularizerSpec,
    ScheduleSpec,
    Target,
)
from kpipe.stages.fitting import sift, sift_ignored
from kpipe.stages.following import Following
from kpipe.stages.pruning import PruningStage
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import evidence, steps_in, train
from kpipe.structured import FilterPlan, FilterPruning, plan_filters, prune_filters
from kpipe.structured.request import KNOWN_PARTS, PARTS, check_parts, freeze_parts
from kpipe.structured.scopes import partition, ratios
from kpipe.structured.targets import TARGETS

Parts = Annotated[tuple[str, ...], AfterValidator(lambda parts: check_parts(parts, KNOWN_PARTS) or parts)]


@STAGES("prune_filters")
class PruneFilters(PruningStage, CuttingStage):
    """Remove the least important channels, then train what is left.

    Say how many by one of `ratio`, `target` and `schedule`. The first two cut before the training; a schedule zeroes
    channels bit by bit while the model trains, and cuts at the end.

    Args:
        ratio: Fraction of the channels to remove, in [0, 1); or a pattern of the paths of layers -> fraction: the first
            that finds a layer counts, and what none finds is not cut.
        target: What may remain: {macs: 0.5} or {params: 0.5}, a fraction; {bytes: 0.5} of the exported int8 file, a
            fraction or bytes; {latency_ms: 2.0}, milliseconds for a sample in LiteRT on this machine.
        schedule: A schedule of the fraction of channels removed, such as {polynomial_decay: {final_sparsity: 0.5}}.
            Steps that it leaves out are laid over the training; begin_epoch and end_epoch count epochs.
        rounds: In how many rounds of cutting and training the ratio or target is reached, each with `epochs`, in equal
            parts of what is left, whole channels at a time. None for one; with `until`, each round takes the ratio or
            target anew, and `max_ratio` and `min_channels` are those of one round.
        until: Go on round by round for as long as a budget lasts, such as {max_accuracy_drop: 0.01}: accuracy lost on
            the validation data beside the baseline. The last model within it is given on.
        criterion: How channels are judged.
        scope: "layer" takes the same share of each layer; "global" ranks all the channels against one another,
            "isomorphic" those of layers of the same structure and size; or names with patterns of the paths of layers
            that are ranked together.
        round_to: Keep a multiple of this many channels a layer.
        ignore: Patterns of the paths of layers to leave alone.
        reduction: How the scores of a channel by several weights become one: sum, mean, max or first; None for the
            criterion's own.
        normalise: How layers are made to compare: none, mean, max or standardise; None for what fits the criterion.
        max_ratio: No layer loses a larger fraction than this.
        min_channels: No layer keeps fewer than this, if it had them.
        parts: Which parts of layers may go: channels and heads, and of attentions also key_dim, value_dim and head_dim.
        regularizer: With a schedule: what pulls channels towards zero before they go: group_lasso, depgraph, growing
            or slimming, or with arguments, such as {depgraph: {strength: 5.0e-4}}.
        reestimate_batch_norm: Take the statistics of batch norms anew after each cut, before the training.
        epochs: Passes over the training data afterwards (with a schedule: during); 0 for none.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too, channel by channel.
    """

    judges_channels = True
    stage: Literal["prune_filters"] = "prune_filters"
    ratio: Ratios | None = None
    target: Target | None = None
    schedule: ScheduleSpec | None = None
    criterion: ChannelCriterionName = "l1"
    scope: ChannelScope = "layer"
    round_to: Multiple = 1
    ignore: Expressions = ()
    reduction: Reduction | None = None
    normalise: Normalisation | None = None
    max_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    min_channels: Multiple = 1
    parts: Parts = PARTS
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
        absolute = self.target is not None and not self.target.is_fraction
        if self.until is not None and self.rounds is None and absolute:
            raise KpipeError(
                "with until and no rounds each round takes the target anew, so it has to be a fraction, such as "
                "{macs: 0.8}; give one, or rounds"
            )
        return self

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no layer whose channels may go, beside the features."""
        found = super().misfits(model)
        chosen = {name: value for name in ("ratio", "scope") if isinstance(value := getattr(self, name), dict)}
        if not (self.ignore or chosen or set(self.parts) != set(PARTS)):
            return found
        traced, misfits = sift_ignored(trace(model, unknown="freeze"), self.ignore)
        found += misfits
        try:
            traced = freeze_parts(traced, self.parts)
        except KpipeError as error:
            return [*found, ("parts", str(error))]
        tried: dict[str, Callable[[dict[str, Any]], Any]] = {
            "ratio": lambda some: ratios(traced.groups, some),
            "scope": lambda some: partition(traced, some),
        }
        for name, given in chosen.items():
            found += sift(name, given, lambda keys, n=name, g=given: tried[n]({key: g[key] for key in keys}))[1]
        return found

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cut and train, or train and cut."""
        prune = self._cut_first if self.schedule is None else self._gradually
        return FloatModel(prune(artifact.model, context))

    def _cut_first(self, model: keras.Model, context: Context) -> keras.Model:
        left = 1.0  # of what the target counts, as a fraction

        def cut_round(before: keras.Model, number: int, gone: FilterPlan | None) -> Cut | None:
            nonlocal left
            amount = self._amount(model, number, left) | {"after": None if self.shares is None else gone}
            plan = plan_filters(before, **amount, **self._choice(before, context))
            if self.shares is None and not plan.ratio:
                return None
            for note in plan.notes:
                context.record.note(note)
            if self.target is not None:
                kind = self.target.one[0]
                left *= (plan.after[kind] or 0) / (plan.before[kind] or 1)
            return Cut(prune_filters(before, plan), plan)

        return cut_in_rounds(self, model, context, cut_round)

    def _amount(self, given: keras.Model, number: int, left: float) -> dict[str, Any]:
        """Say how much is gone after one round: as a ratio of all channels, or a target for what is left."""
        if self.target is None:
            every = self.ratio if isinstance(self.ratio, dict) else {"": self.ratio or 0.0}
            each = {expression: gone_after(ratio, number, self.shares) for expression, ratio in every.items()}
            return {"ratio": each if isinstance(self.ratio, dict) else each[""]}
        kind, amount = self.target.one
        if self.shares in (1, None):
            return {"target": {kind: amount}}
        start = 1.0 if self.target.is_fraction else cost_of(given, kind)
        wanted = start * part_of(amount / start, self.shares) ** number
        return {"target": {kind: min(wanted / left, 1 - 1e-9) if self.target.is_fraction else wanted}}

    def _choice(self, model: keras.Model, context: Context) -> dict[str, Any]:
        return {
            "criterion": self.criterion,
            "data": evidence(context),
            "loss": loss_for(model, context.data.train[1], self.loss),
            "scope": self.scope,
            "round_to": self.round_to,
            "ignore": list(self.ignore) or None,
            "seed": context.seed,
            "reduction": self.reduction,
            "normalise": self.normalise,
            "max_ratio": self.max_ratio,
            "min_channels": self.min_channels,
            "parts": self.parts,
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


def cost_of(model: keras.Model, kind: str) -> float:
    """Measure what a model costs, for a target that is an amount and not a fraction.

    Raises:
        KpipeError: When the target is a fraction, or the model cannot be measured.
    """
    measure = TARGETS[kind].measure
    if measure is None:
        raise KpipeError(f"The target {kind!r} is a fraction; give one.")
    return measure(model)(model)
