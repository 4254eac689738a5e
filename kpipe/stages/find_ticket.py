"""Find a lottery ticket and train it: a sparse network that learned from its own beginning."""

import math
from typing import Annotated, Any, Literal, Self

import keras
import numpy as np
from pydantic import Field, model_validator

from kpipe.copies import copy_model
from kpipe.errors import KpipeError
from kpipe.patterns import check_scope, pattern_of
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.pipeline.task import loss_for
from kpipe.projections import kernels
from kpipe.stages.fields import (
    CriterionName,
    Expression,
    PatternName,
    PerRound,
    Remaining,
    Roles,
    ScopeSpec,
    TrainingEpochs,
)
from kpipe.stages.fitting import weight_misfits
from kpipe.stages.pruning import tell_weights
from kpipe.stages.training import TrainingStage, evidence, train
from kpipe.targets import PRUNED_ROLES, Target
from kpipe.unstructured import Report, Skipped, find_targets
from kpipe.unstructured.report import make_report
from kpipe.unstructured.rewind import check_choice, find_ticket
from kpipe.unstructured.rounds import choose, fractions_of
from kpipe.unstructured.suited import suited
from kpipe.unstructured.ticket import Ticket, draw_anew


@STAGES("find_ticket")
class FindTicket(TrainingStage):
    """Train, prune and rewind in rounds, then train the sparse network that is left; later stages keep the zeros.

    Say how far it goes by `rounds` or `sparsity`. The training takes `epochs` for each round and once more at the end.

    Args:
        rounds: How many times to train, prune and rewind.
        sparsity: Fraction of zeros at the end, in (0, 1): as many rounds as it takes.
        per_round: Fraction of the remaining weights that a round prunes, or {expression: fraction}, where each weight
            has the fraction of the first expression found in its path and the others are left alone.
        rewind_to: How many updates of the first round come before the weights that are rewound to.
        start: "anew" begins with weights drawn anew by the layers' initializers, and the zeros that are there; "model"
            begins with the weights as the stage before left them.
        criterion: How weights are judged.
        pattern: Which weights go together: unstructured, "2:4" (any n:m), "block:4x1" or "block:4x1:max".
        scope: "layer" takes the same share of each layer; "global" ranks all the weights against one another, with
            scores compared as they are or by "global:mean" or "global:lamp"; "erk" leaves more of small layers.
        layers: A pattern of the paths of the weights to prune; None for all prunable layers.
        roles: What a weight has to be; add depthwise_kernel to prune those too.
        epochs: Passes over the training data, in each round and at the end.
        batch_size: Samples an update.
        optimizer: The optimizer; each round begins with a new one.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
    """

    stage: Literal["find_ticket"] = "find_ticket"
    leaves_zeros = True
    rounds: Annotated[int, Field(ge=1)] | None = None
    sparsity: Remaining | None = None
    per_round: PerRound = 0.2
    rewind_to: Annotated[int, Field(ge=0)] = 0
    start: Literal["anew", "model"] = "anew"
    criterion: CriterionName = "magnitude"
    pattern: PatternName = "unstructured"
    scope: ScopeSpec = "layer"
    layers: Expression | None = None
    roles: Roles = PRUNED_ROLES
    epochs: TrainingEpochs = 5

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.rounds is None) == (self.sparsity is None):
            raise KpipeError("give exactly one of rounds and sparsity")
        check_choice(self.criterion, self.pattern, self.scope)
        reached = 1 - (1 - max(fractions_of(self.per_round).values())) ** (self.rounds or math.inf)
        check_scope(self.scope, self.pattern, self.sparsity or reached)
        return self

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no weight to prune."""
        shares = fractions_of(self.per_round)

        def share(targets: list[Target], skipped: list[Skipped], names: list[str]) -> None:
            choose(model, targets, skipped, {**{name: shares[name] for name in names}, "": 0.5})

        return weight_misfits(model, self.layers, self.roles, more=("per_round", list(shares), share))

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Find the ticket, and train it."""
        ticket = self._find(artifact.model, context)
        with ticket.hold():
            trained = train(self, ticket.model, context)
        context.record.details["rounds"] = [
            {"round": one.number, "weights left": one.kept} | {name: values[-1] for name, values in one.logs.items()}
            for one in ticket.history
        ]
        tell_weights(self._report(trained, ticket), context)
        return FloatModel(trained)

    def _find(self, model: keras.Model, context: Context) -> Ticket:
        names = ("rounds", "sparsity", "per_round", "rewind_to", "criterion", "pattern", "scope", "layers", "roles")
        choice: dict[str, Any] = {name: getattr(self, name) for name in names}

        def one_round(copy: keras.Model, callbacks: list[keras.callbacks.Callback]) -> dict[str, list[float]]:
            train(self, copy, context, callbacks)
            return {name: values[-self.epochs :] for name, values in context.record.history.items()}

        return find_ticket(
            _beginning(model, context.seed) if self.start == "anew" else copy_model(model),
            one_round,
            **choice,
            data=evidence(context),
            loss=loss_for(model, context.data.train[1], self.loss),
            seed=context.seed,
        )

    def _report(self, model: keras.Model, ticket: Ticket) -> Report:
        targets, skipped = find_targets(model, self.layers, self.roles)
        stay, refused = suited(targets, pattern_of(self.pattern))
        why = "no expression of per_round is found in its path"
        unled = [Skipped(one.path, tuple(one.variable.shape), why) for one in stay if one.path not in ticket.masks]
        return make_report([one for one in stay if one.path in ticket.masks], [*skipped, *refused, *unled])


def _beginning(model: keras.Model, seed: int) -> keras.Model:
    """Draw a model anew, with the zeros that its kernels have."""
    fresh = draw_anew(model, seed)
    for drawn, trained in zip(kernels(fresh), kernels(model), strict=True):
        keep = trained.numpy() != 0
        if keep.any():
            drawn.assign(np.where(keep, drawn.numpy(), 0))
    return fresh
