"""Filter pruning during `fit`: whole channels go to zero on a schedule, then are cut out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.follow import Follower
from kpipe.graph import trace
from kpipe.projections import GradientPull, Holder, Mask, trained_model
from kpipe.saliency import Criterion, TrainingEvidence
from kpipe.schedules import AnySchedule
from kpipe.schedules import schedule as make_schedule
from kpipe.structured.channels import axis_mask, check_removal
from kpipe.structured.filters import prune_filters, refuse_quantized
from kpipe.structured.held import gone_channels, held_weights, over_channels, reason_of, unreachable
from kpipe.structured.plan import FilterPlan, describe
from kpipe.structured.ranking import Ranking, keep_of, rank
from kpipe.structured.regularise import pull
from kpipe.structured.regularisers import Regularizer, regularizer_of
from kpipe.structured.request import PARTS, Ignore, Request, freeze_ignored, freeze_parts
from kpipe.structured.scopes import Scope, partition
from kpipe.structured.scores import judge_channels


class FilterPruning(Follower):
    """Set ever more channels to zero while a model trains; `shrink` then gives the smaller model.

    At each update of the schedule the channels are ranked anew; those that have gone stay gone. Every weight of a gone
    channel, in the layers that produce it and in those that sum over it, is held at zero after each optimizer update.
    So the model that is trained is exactly the one that `shrink` returns, and a model that is loaded or restored shows
    by its zeros what has gone.

    The schedule is asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then after each. Its sparsity is the ratio of channels removed.

    Channels over which a layer computes something, as `LayerNormalization` its mean, stay, with a warning: zeros would
    count there. The weights of a layer that is frozen when an epoch begins are not touched: channels that it sums over
    stay as long, those that it makes are cut when what sums over them is trained.

    In a loop of one's own call `set_model(model)`, `on_train_begin()`, then `on_train_batch_end(step)` after every
    `optimizer.apply`, and `on_train_end()`.

    Args:
        schedule: A schedule, in steps or in epochs, or a mapping of its name to its arguments.
        criterion: A registered name, or a function of `Evidence`. One that needs gradients takes them from `data`, or
            without data from the training itself: the mean over the batches since the last update, so that the first
            update comes after the first batch. "movement" is summed up from the beginning of the `fit`.
        round_to: As in `plan_filters`, like what follows.
        scope: What is ranked together.
        ignore: Layers whose channels stay.
        regularizer: What pulls channels towards zero until the schedule has reached its end: "group_lasso",
            "depgraph", "growing", "slimming", a mapping of such a name to its arguments, or a `Regularizer`. None:
            nothing does.
        data: Labelled data for a criterion that needs some; passed over at every update.
        loss: Loss for those; None: the one that the model is compiled with.
        seed: Of a criterion that draws random numbers.
        reduction: How the scores of a channel by several weights become one.
        normalise: How groups are made to compare.
        max_ratio: No group loses a larger fraction than this.
        min_channels: No group keeps fewer than this.
        parts: Which parts of layers may go; None: all.

    Raises:
        KpipeError: For arguments that do not fit, `shrink` before a fit, and in `fit` when no channel can go.
        SurgeryError: In `fit`, when the model's channels cannot be followed; it names the layer.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(2)])
        >>> net.compile("sgd", "mse")
        >>> prune = FilterPruning(ConstantSparsity(0.5, begin_step=0))
        >>> _ = net.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[prune])
        >>> prune.shrink().layers[0].units
        3

    References:
        He et al., Soft filter pruning (2018); here a channel that has gone does not come back.
    """

    def __init__(
        self,
        schedule: AnySchedule | Mapping[str, Any],
        criterion: str | Criterion = "l1",
        round_to: int = 1,
        scope: Scope = "layer",
        ignore: Ignore = None,
        *,
        regularizer: str | Mapping[str, Any] | Regularizer | None = None,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
        reduction: str | None = None,
        normalise: str | None = None,
        max_ratio: float | None = None,
        min_channels: int = 1,
        parts: Sequence[str] | None = PARTS,
    ):
        super().__init__({None: make_schedule(schedule)})
        limits: dict[str, Any] = {"max_ratio": max_ratio, "min_channels": min_channels, "parts": parts}
        self.request = Request(0.0, None, criterion, scope, round_to, reduction, normalise, **limits)
        at_once = "kpipe.plan_filters(model, ratio, criterion=..., data=(x, y))"
        self._evidence = TrainingEvidence(
            criterion, data, loss, seed, who="FilterPruning", at_once=at_once, channels=True
        )
        self.ignore, self.regularizer = ignore, regularizer_of(regularizer)
        self._plan: FilterPlan | None = None
        self._student: keras.Model | None = None
        self._pull: GradientPull | None = None
        self._reached, self._pending = -1.0, False
        self._trainable: list[bool] = []
        self._told: set[str] = set()

    @property
    def plan(self) -> FilterPlan:
        """The channels that have gone so far."""
        if self._plan is None:
            raise KpipeError("FilterPruning has no plan yet: pass it to model.fit(..., callbacks=[...]) first.")
        return self._plan

    def shrink(self) -> keras.Model:
        """Cut the channels that have gone: a new, smaller model that equals the trained one within float rounding.

        Both are compared on random input before the smaller one is returned.

        Returns:
            The smaller model, not compiled. The trained model is not changed.

        Raises:
            KpipeError: When nothing has been fit yet.
            SurgeryError: When the smaller model differs: a wrong model is never returned.
        """
        if self._student is None:
            raise KpipeError("FilterPruning has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        small = prune_filters(self._student, self.plan)
        check_removal(self._student, small, self._trace, keep_of(self._trace, self._removed), masked=False)
        return small

    def _begin(self, holder: Holder) -> None:
        student = trained_model(self._fit)
        known = {group.name: group.removed for group in self._plan.groups} if self._plan else {}
        if student is not self._student:
            known = {}
        self._student, self._reached, self._pending = student, -1.0, False
        refuse_quantized(student)
        self._choose_groups(known)
        held = held_weights(self._trace)
        self._masks: dict[str, Mask] = {w.path: holder.mask(w.variable, np.ones(w.variable.shape, bool)) for w in held}
        self._trainable = [w.variable.trainable for w in self._trace.weights]
        self._evidence.begin(self._fit, [w for w in self._trace.weights if w.axes])
        if self.regularizer is not None:
            self._pull = self._begin_to_pull(self.regularizer)
        self._mask()
        self._write_plan()

    def _choose_groups(self, known: Mapping[str, tuple[int, ...]]) -> None:
        """Find the groups of which channels may go, and keep those of which some have gone."""
        student: Any = self._student
        traced = freeze_parts(freeze_ignored(trace(student, unknown="freeze"), self.ignore), self.request.parts)
        traced = traced.freeze(counting := over_channels(student, traced))
        self._warn_of(counting)
        frozen = unreachable(traced)
        gone = dict(zip((group.name for group in traced.groups), gone_channels(traced, known), strict=True))
        stay = {group.name: reason_of(group, frozen) for group in traced.groups if not len(gone[group.name])}
        self._trace, self._removed = traced, [gone[group.name] for group in traced.groups]
        self._leave({name: reason for name, reason in stay.items() if reason})
        self._open = [n for n, group in enumerate(self._trace.groups) if reason_of(group, frozen) is None]

    def _leave(self, stay: Mapping[str, str]) -> None:
        """Leave groups alone of which nothing has gone: name -> reason."""
        self._removed = [
            places for group, places in zip(self._trace.groups, self._removed, strict=True) if group.name not in stay
        ]
        self._trace = self._trace.freeze(stay)
        if not self._trace.groups:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._trace.frozen.items())
            raise KpipeError(f"FilterPruning finds no channel of {self._fit.name!r} that may go: {why}.")

    def _warn_of(self, reasons: Mapping[str, str]) -> None:
        """Say once of each group of channels that it stays although one might expect it to be pruned."""
        for name, reason in reasons.items():
            if name not in self._told:
                self._told.add(name)
                text = (
                    f"FilterPruning leaves the channels of {name!r} alone: {reason}. Cut them at once, with "
                    "kpipe.plan_filters and kpipe.prune_filters, and train on; or name the layer in ignore."
                )
                warnings.warn(text, UserWarning, stacklevel=2)

    def _begin_to_pull(self, regularizer: Regularizer) -> GradientPull | None:
        schedule = self._asks[None]
        until = schedule.settled_step
        if self._asked >= until:
            text = (
                f"FilterPruning: {type(regularizer).__name__} pulls nothing. It pulls until the schedule has reached "
                f"its end at step {until}, and this training begins at step {self._asked}."
            )
            warnings.warn(text, NoEffectWarning, stacklevel=2)
            return None
        groups = [self._trace.groups[n] for n in self._open]
        return pull(regularizer, self._fit, self._trace, groups, schedule.sparsity(until), until)

    def _look_again(self) -> None:
        """Begin anew when a layer was frozen or unfrozen; channels that come in are brought to what was reached."""
        super()._look_again()
        if self._trainable != [w.variable.trainable for w in self._trace.weights]:
            reached, seen, begun, before = self._reached, self._evidence.end(), self._begun, self._before
            self.on_train_begin()
            self._begun, self._before = begun, {name: min(before[name], gone) for name, gone in self._before.items()}
            self._evidence.take_over(seen)
            if reached >= 0:
                self._update({None: reached})

    def _let_go(self, restored: bool = False) -> None:
        self._evidence.end()
        if self._pull is not None:
            self._pull.release()
            self._pull = None
        super()._let_go(restored)

    def _end(self) -> None:
        self._write_plan()

    def _gone(self, name: str | None) -> int:
        return sum(len(places) for places in self._removed)

    def _lacks(self, name: str | None, sparsity: float) -> bool:
        ranking, steps = self._rank([np.zeros(len(self._trace.groups[n])) for n in self._open])
        for pool in ranking.pools:
            members = set(pool.owners.tolist())
            wanted = int(pool.sizes[: pool.nearest(sparsity)].sum())
            gone = sum(len(self._removed[self._open[n]]) for n in members)
            if members and wanted - gone >= max(steps[n] for n in members):  # rounding leaves less than a step
                return True
        return False

    def _rank(self, scores: Sequence[np.ndarray]) -> tuple[Ranking, list[int]]:
        """Rank the channels of the groups that are open; give the step of each group too."""
        opened = replace(self._trace, groups=tuple(self._trace.groups[n] for n in self._open))
        steps, least = self.request.limits(opened.groups)
        return rank(scores, partition(opened, self.request.scope), steps, least), steps

    def _follow(self, first: int, last: int, beginning: bool = False) -> None:
        super()._follow(first, last, beginning)
        if self._pending:
            self._update({None: self._reached})

    def _next_due(self, step: int) -> int:
        return step + 1 if self._pending else super()._next_due(step)

    def _update(self, asked: Mapping[str | None, float]) -> None:
        if not self._pending and asked[None] <= self._reached:
            return  # what has gone stays gone, also when the schedule asks for fewer
        self._reached = max(self._reached, asked[None])
        self._pending = bool(self._evidence.tapped) and not self._evidence.count  # no batch has been seen yet
        if self._pending:
            return
        ranking, _ = self._rank(self._scores())
        chosen = ranking.removed([pool.nearest(self._reached) for pool in ranking.pools])
        for n, places in zip(self._open, chosen, strict=True):
            self._removed[n] = np.union1d(self._removed[n], places)
        self._mask()
        self._write_plan()
        self._evidence.reset(["grad"])

    def _scores(self) -> list[np.ndarray]:
        """Score the channels of each group that is open; those that have gone are the lowest."""
        shown, asked, student = self._evidence, self.request, self._student
        told = shown.told([w for w in self._trace.weights if w.axes])
        known: Any = student, self._trace, asked.criterion, shown.data, shown.loss, shown.seed, shown.passes, told
        found = judge_channels(*known, reduction=asked.reduction, normalise=asked.normalise)
        opened = {self._trace.groups[n].name for n in self._open}
        scores = {g.name: one for g, one in zip(self._trace.groups, found, strict=True) if one is not None}
        gone = {g.name: places for g, places in zip(self._trace.groups, self._removed, strict=True)}
        why = f"the criterion {self.request.to_dict()['criterion']!r} judges none of its weights"
        self._leave({name: why for name in opened if name not in scores and not len(gone[name])})
        self._open = [n for n, g in enumerate(self._trace.groups) if g.name in opened and g.name in scores]
        for name, places in gone.items():
            if name in scores:
                scores[name][places] = -np.inf
        return [scores[self._trace.groups[n].name] for n in self._open]

    def _mask(self) -> None:
        """Write the masks of the channels that have gone, and zero the weights at once."""
        keep = keep_of(self._trace, self._removed)
        for weight in self._trace.weights:
            if weight.path in self._masks:
                mask = axis_mask(self._trace, weight, weight.axes, keep)
                self._masks[weight.path].assign(np.broadcast_to(mask, weight.variable.shape))
        if self._holder is not None:
            self._holder.project()

    def _write_plan(self) -> None:
        self._plan = describe(self._trace, self._removed, self.request.to_dict() | {"ratio": None})
