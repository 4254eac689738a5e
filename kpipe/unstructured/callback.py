"""Weight pruning during `fit`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.follow import Follower
from kpipe.patterns import MaskFunction, Pattern, Scope, check_scope, pattern_of, scope_of
from kpipe.projections import Holder, Mask, trained_model
from kpipe.saliency import FROM_DATA, Criterion, criterion_of, gather
from kpipe.schedules import AnySchedule, resolve, schedules_of
from kpipe.taps import FIELDS, GradientTap
from kpipe.unstructured.masks import drop_more, due, first_mask, judge
from kpipe.unstructured.report import Report, make_report
from kpipe.unstructured.suited import suited
from kpipe.unstructured.targets import PRUNED_ROLES, LayerFilter, Skipped, Target, find_targets


@dataclass
class _Pruned:
    """Keep what is known of one weight: its mask, the name of its schedule, the number of dropped entries."""

    target: Target
    mask: Mask
    schedule: str | None
    dropped: int
    size: int


class WeightPruning(Follower):
    """Set ever more weights to zero while a model trains; what comes out is a plain model with exact zeros.

    The schedule is asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then after each. When an update is due, the lowest scores are dropped until the count is exact: a mask
    at sparsity s over n entries has exactly round(s * n) zeros. The zeros stand after every step: a projection on
    `variable.constraint` holds them inside the compiled train step, after a constraint of one's own. What is dropped
    stays dropped, a weight that is sparser than asked for keeps its zeros, and a second `fit` goes on where the first
    one ended. At the end of `fit` every constraint is given back.

    A layer that is frozen when an epoch begins is left as it is, one that is unfrozen is pruned from then on. A
    callback that writes weights when training ends, such as `EarlyStopping(restore_best_weights=True)`, belongs before
    this one in the list.

    In a loop of one's own call `set_model(model)`, `on_train_begin()`, then `on_train_batch_end(step)` after every
    `optimizer.apply`, and `on_train_end()`.

    Args:
        schedule: A schedule, in steps or in epochs, or a mapping of its name to its arguments; or a mapping of regular
            expressions to such: each weight follows the first that is found in its path, or is skipped.
        criterion: A registered name, or a function of `Evidence`. One that needs gradients takes them from `data`, or
            without data from the training itself: the mean over the batches since the last update, so that the first
            update comes after the first batch. "movement" is summed up from the beginning of the `fit`.
        pattern: A registered name, a `Pattern`, or a function of (scores, sparsity). A weight that cannot have it is
            skipped.
        scope: How the sparsity is shared out among the weights that have a schedule in common: "layer", "global",
            "erk" or a `Scope`.
        layers: None for every kernel of the layers that kpipe knows, a regular expression searched in the weight's
            path, a layer class or several, or a function of the layer.
        roles: What a weight has to be: any of the kernel roles of `kpipe.layers`.
        data: Labelled data for a criterion that needs some; passed over at every update.
        loss: Loss for those; None: the one that the model is compiled with.
        seed: Of what draws random numbers.

    Raises:
        KpipeError: For arguments that do not fit; in `fit`, when nothing is there to prune.

    Example:
        >>> import keras
        >>> from kpipe.schedules import ConstantSparsity
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> net.compile("sgd", "mse")
        >>> prune = WeightPruning(ConstantSparsity(0.5, begin_step=0))
        >>> _ = net.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[prune])
        >>> [(row.zeros, row.sparsity) for row in prune.report().pruned]
        [(4, 0.5)]

    References:
        Zhu and Gupta, To prune, or not to prune (2017), https://arxiv.org/abs/1710.01878
    """

    def __init__(
        self,
        schedule: AnySchedule | Mapping[str, Any],
        criterion: str | Criterion = "magnitude",
        pattern: str | Pattern | MaskFunction = "unstructured",
        scope: str | Mapping[str, Any] | Scope = "layer",
        layers: LayerFilter = None,
        *,
        roles: Sequence[str] = PRUNED_ROLES,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
    ):
        super().__init__(schedules_of(schedule))
        self.pattern, self.scope, self.layers, self.roles = pattern_of(pattern), scope_of(scope), layers, roles
        check_scope(self.scope, self.pattern)
        for one in self.schedules.values():
            self.pattern.check(_highest(one))
        self.criterion, facts = criterion_of(criterion)
        self.needs, self.data, self.loss, self.seed = facts["needs"], data, loss, seed
        # What the training itself can tell; with data, gradients of the weights as they are then are better.
        self._tapped = [field for field in self.needs if field in FIELDS and (data is None or field not in FROM_DATA)]
        missing = [field for field in self.needs if field not in self._tapped]
        if missing and data is None:
            raise KpipeError(
                f"The criterion {criterion!r} needs data ({', '.join(missing)}). Give WeightPruning(..., data=(x, y)), "
                "or prune at once with kpipe.prune_weights(model, sparsity, criterion, data=(x, y))."
            )
        self._weights: dict[str, _Pruned] = {}
        self._skipped: list[Skipped] = []
        self._tap: GradientTap | None = None
        self._pending: dict[str | None, float] = {}

    def report(self) -> Report:
        """Tell of every weight of the model: path, shape and sparsity as they are now, or why it was skipped."""
        if not self._weights:
            raise KpipeError("WeightPruning has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        return make_report([one.target for one in self._weights.values()], self._skipped)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin anew when a layer was frozen or unfrozen, or another callback restored weights and optimizer."""
        if self._holder is not None and self._trainable != _trainable(self._fit):
            self.on_train_begin()
        super().on_epoch_begin(epoch, logs)

    def _begin(self, holder: Holder) -> None:
        student = trained_model(self._fit)
        found, self._skipped = find_targets(student, self.layers, self.roles)
        named = [(target, self._schedule_of(target)) for target in found]
        self._skipped += [
            Skipped(target.path, tuple(target.variable.shape), "no schedule's expression is found in its path")
            for target, name in named
            if name not in self.schedules
        ]
        mine, refused = suited([target for target, name in named if name in self.schedules], self.pattern)
        self._skipped += refused
        if not mine:
            paths = ", ".join(target.path for target in found[:8])
            raise KpipeError(f"No schedule's expression ({', '.join(map(str, self.schedules))}) is found in {paths}.")
        schedule = {target.path: name for target, name in named}
        self._weights, self._pending, self._reached = {}, {}, {}
        for target in mine:
            keep = first_mask(target.variable.numpy())
            dropped = keep.size - int(np.count_nonzero(keep))
            mask = holder.mask(target.variable, keep)
            self._weights[target.path] = _Pruned(target, mask, schedule[target.path], dropped, keep.size)
        self._trainable = _trainable(self._fit)
        if self._tapped:
            self._tap = GradientTap(self._fit, [target.variable for target in mine], self._tapped)

    def _end(self) -> None:
        """Nothing is left to do: the weights keep their zeros."""

    def _let_go(self) -> None:
        if self._tap is not None:
            self._tap.release()
            self._tap = None
        super()._let_go()

    def _changed(self, name: str | None) -> bool:
        return any(one.dropped for one in self._weights.values() if one.schedule == name)

    def _schedule_of(self, target: Target) -> str | None:
        """Give the name of the first schedule that is the weight's; "" when none is."""
        found = (name for name in self.schedules if name is None or re.search(name, target.path))
        return next(found, "")

    def _follow(self, first: int, last: int) -> None:
        super()._follow(first, last)
        if self._pending:
            self._update({})

    def _next_due(self, step: int) -> int:
        return step + 1 if self._pending else super()._next_due(step)

    def _update(self, asked: Mapping[str | None, float]) -> None:
        wanted = self._pending | dict(asked)
        if self._tap is not None and not self._tap.count:
            self._pending = wanted  # no batch has been seen yet
            return
        self._pending = {}
        for name, sparsity in wanted.items():
            if sparsity > self._reached.get(name, -1.0):
                self._prune(name, sparsity)
                self._reached[name] = sparsity
        if self._tap is not None:
            self._tap.reset(["grad"])

    def _prune(self, name: str | None, sparsity: float) -> None:
        mine = {
            path: one
            for path, one in self._weights.items()
            if one.schedule == name and one.target.variable.trainable  # one that was frozen meanwhile stays as it is
        }
        sizes = {path: one.size for path, one in mine.items()}
        paths = due(sizes, {path: one.dropped for path, one in mine.items()}, sparsity, self.scope)
        if not paths:
            return
        keeps = {path: mine[path].mask.numpy() for path in paths}
        layouts = {path: mine[path].target.layout for path in paths}
        self._write(drop_more(keeps, self._scores(paths), sparsity, self.scope, self.pattern, layouts))

    def _scores(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        targets = [self._weights[path].target for path in paths]
        observed = {}
        if self._tap is not None:
            read = self._tap.read()
            observed = {target.path: read[id(target.variable)] for target in targets}
        student = trained_model(self._fit)
        evidence = gather(student, targets, self.needs, self.data, self.loss, self.seed, observed)
        return judge(self.criterion, evidence)

    def _write(self, keeps: Mapping[str, np.ndarray]) -> None:
        """Change the masks, and the weights at once; a mask that lost no entry is the same."""
        for path, keep in keeps.items():
            one, dropped = self._weights[path], keep.size - int(np.count_nonzero(keep))
            if dropped != one.dropped and self._holder is not None:
                one.mask.assign(keep)
                one.dropped = dropped
                self._holder.project([one.target.variable])


def _highest(schedule: AnySchedule) -> float:
    """Give the sparsity that a schedule ends at."""
    steps = resolve(schedule, steps_per_epoch=1000)
    return steps.sparsity(max(steps.begin_step, steps.end_step))


def _trainable(model: Any) -> list[bool]:
    return [variable.trainable for variable in trained_model(model).variables]
