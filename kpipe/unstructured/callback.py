"""Weight pruning during `fit`."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.follow import Follower
from kpipe.patterns import MaskFunction, Pattern, Scope, check_scope, pattern_of, scope_of
from kpipe.projections import Holder, trained_model
from kpipe.saliency import Criterion, TrainingEvidence
from kpipe.schedules import AnySchedule, last_due, schedules_of
from kpipe.targets import PRUNED_ROLES, LayerFilter, Skipped, find_targets, trainable
from kpipe.unstructured.masks import drop_more, judge
from kpipe.unstructured.pruned import Pruned, hold, lacks, led, pending
from kpipe.unstructured.regrowth import GROWTHS, Regrowth, check_free, regrowth_of, replace
from kpipe.unstructured.report import Report, make_report
from kpipe.unstructured.slots import reset_slots
from kpipe.unstructured.suited import suited

Arrays = Mapping[str, np.ndarray]


class WeightPruning(Follower):
    """Set ever more weights to zero while a model trains; what comes out is a plain model with exact zeros.

    The schedule is asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then after each. When an update is due, the lowest scores are dropped until the count is exact: a mask
    at sparsity s over n entries has exactly round(s * n) zeros. The zeros stand after every step: a projection on
    `variable.constraint` holds them inside the compiled train step, after a constraint of one's own. What is dropped
    stays dropped, a weight that is sparser than asked for keeps its zeros (also those of an identity that it begins
    as), and a second `fit` goes on where the first one ended. At the end of `fit` every constraint is given back; a
    `fit` that breaks off holds the zeros until `on_train_end()`, or until the next `fit` with a pruning callback.

    A layer that is frozen when an epoch begins is left as it is; one that is unfrozen is brought to what the others
    have reached. Weights and an optimizer that another callback restores are taken as they are. A callback that writes
    weights when training ends, such as `EarlyStopping(restore_best_weights=True)`, belongs before this one in the list.

    A file that another callback saves is sparse too; one that is saved at the very step of an update, by a callback
    that stands before this one, has the zeros of the update before.

    In a loop of one's own call `set_model(model)`, `on_train_begin()`, then `on_train_batch_end(step)` after every
    `optimizer.apply`, and `on_train_end()`. A step that a `tf.function` compiles holds the zeros from its first call
    after `on_train_begin` on; one that was compiled before does not know of them.

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
        regrowth: None: what is dropped stays dropped. "rigl" or "set" or a `Regrowth`: of each weight a part of what is
            kept is dropped from time to time and as many entries grow, where the gradient is largest or at random. The
            number of zeros is exact at all times; a weight that is sparser than asked for grows to it.
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
        regrowth: str | Regrowth | Mapping[str, Any] | None = None,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
    ):
        super().__init__(schedules_of(schedule))
        self.pattern, self.scope, self.layers, self.roles = pattern_of(pattern), scope_of(scope), layers, roles
        for one in self.schedules.values():
            check_scope(self.scope, self.pattern, one.highest)
        self.regrowth = regrowth_of(regrowth)
        if self.regrowth is not None:
            check_free(self.pattern)
        self._evidence = TrainingEvidence(criterion, data, loss, seed, also=self._growth_needs)
        self._weights: dict[str, Pruned] = {}
        self._skipped: list[Skipped] = []
        self._pending: dict[str | None, float] = {}
        self._reached: dict[str | None, float] = {}
        self._used, self._moved, self._until = False, False, None
        self._trainable: list[bool] = []

    def report(self) -> Report:
        """Tell of every weight of the model: path, shape and sparsity as they are now, or why it was skipped.

        With regrowth, an entry that has grown and is still zero counts as kept.
        """
        if not self._weights:
            raise KpipeError("WeightPruning has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        keeps = {path: one.mask.numpy() for path, one in self._weights.items()} if self.regrowth else {}
        return make_report([one.target for one in self._weights.values()], self._skipped, keeps)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the beginning of each epoch what is trained, and until when zeros move."""
        super().on_epoch_begin(epoch, logs)
        if self._holder is not None and (until := self._end_of_moves(epoch)) != self._until:
            self._until = until
            self._listen()

    def _begin(self, holder: Holder) -> None:
        student = trained_model(self._fit)
        found, self._skipped = find_targets(student, self.layers, self.roles)
        names, unled = led(found, self.schedules, [row.path for row in self._skipped])
        mine, refused = suited([target for target in found if target.path in names], self.pattern)
        self._skipped += [*unled, *refused]
        self._weights = {target.path: hold(target, names[target.path], holder) for target in mine}
        self._pending, self._reached, self._used, self._moved = {}, {}, False, False
        self._trainable, self._until = trainable(student, self.roles), self._end_of_moves(epoch=0)
        self._evidence.begin(self._fit, mine)
        self._listen()
        if self.regrowth is not None:  # an entry that has grown and is still zero was not saved as kept
            last = {name: last_due(ask, 0, self._asked) for name, ask in self._asks.items()}
            self._pending = {name: sparsity for name, sparsity in last.items() if sparsity is not None}

    def _look_again(self) -> None:
        """Choose anew when a layer was frozen or unfrozen; one that comes in is brought to what has been reached."""
        super()._look_again()
        if self._trainable != trainable(trained_model(self._fit), self.roles):
            reached, seen, begun, before = self._reached, self._evidence.end(), self._begun, self._before
            self.on_train_begin()
            self._begun, self._before = begun, {name: min(before[name], gone) for name, gone in self._before.items()}
            self._evidence.take_over(seen)
            if reached:
                self._update(reached)

    def _end(self) -> None:
        if self.regrowth is not None and not self._moved and (self._until is None or self._begun < self._until):
            text = (
                f"WeightPruning moved no zeros between steps {self._begun} and {self._asked}: zeros move every "
                f"{self.regrowth.frequency} steps until step {self._until}. Give Regrowth({self.regrowth.kind!r}, "
                "frequency=...) a lower one, or train longer."
            )
            warnings.warn(text, NoEffectWarning, stacklevel=4)

    def _let_go(self, restored: bool = False) -> None:
        self._evidence.end()
        super()._let_go(restored)

    def _gone(self, name: str | None) -> int:
        return sum(one.dropped for one in self._weights.values() if one.schedule == name)

    def _lacks(self, name: str | None, sparsity: float) -> bool:
        return lacks(self._learning(name), sparsity, self.scope, self.pattern)

    def _follow(self, first: int, last: int, beginning: bool = False) -> None:
        super()._follow(first, last, beginning)
        if self._pending:
            self._update({})
        if self.regrowth is not None:
            moves = (self.regrowth.due(step, self._until) for step in range(last, first - 1, -1))
            fraction = next((fraction for fraction in moves if fraction), 0.0)
            if fraction and self._sees_gradients:
                self._move(dict.fromkeys(self._learning()), fraction)
                self._used = self._moved = True
        if self._used:
            self._listen(["grad"])
            self._used = False

    def _next_due(self, step: int) -> int:
        if self._pending:
            return step + 1
        following = super()._next_due(step)
        return following if self.regrowth is None else min(following, self.regrowth.next_due(step))

    def _update(self, asked: Mapping[str | None, float]) -> None:
        wanted = self._pending | dict(asked)
        if self._evidence.tapped and not self._evidence.count:
            self._pending = wanted  # no batch has been seen yet
            return
        self._pending, self._used = {}, self._used or bool(self._evidence.tapped)
        for name, sparsity in wanted.items():
            reached = self._reached.get(name, -1.0)
            if sparsity > reached or (self.regrowth is not None and sparsity != reached):
                self._prune(name, sparsity)
                self._reached[name] = sparsity

    def _prune(self, name: str | None, sparsity: float) -> None:
        mine = self._learning(name)
        paths = pending(mine, sparsity, self.scope, self.pattern)
        if paths:
            layouts = {path: mine[path].target.layout for path in paths}
            scores = self._scores(paths)
            keeps = {path: mine[path].mask.numpy() for path in paths}
            new = drop_more(keeps, scores, sparsity, self.scope, self.pattern, layouts)
            self._write(keeps, new)
        if self.regrowth is not None:  # what a resumed model has too few of grows
            shapes = {path: one.shape for path, one in mine.items()}
            shares = self.scope.sparsities(shapes, sparsity, self.pattern) or {}
            self._move({p: share for p, share in shares.items() if mine[p].is_too_sparse(self.pattern, share)}, 0.0)

    def _move(self, shares: Mapping[str, float | None], fraction: float) -> None:
        """Let zeros move; afterwards a weight has the sparsity given for it, or as many zeros as before."""
        if shares:
            scores, growth = self._scores(shares), self._growth(shares)
            for path, share in shares.items():
                layout, keep = self._weights[path].target.layout, self._weights[path].mask.numpy()
                turned = layout.turn(keep), layout.turn(scores[path]), layout.turn(growth[path])
                found = replace(turned[0], turned[1], turned[2], fraction, self.pattern, share)
                self._write({path: keep}, {path: layout.back(found, keep.shape)})

    def _scores(self, paths: Collection[str]) -> dict[str, np.ndarray]:
        return judge(self._evidence.criterion, self._evidence.evidence([self._weights[path].target for path in paths]))

    def _growth(self, paths: Collection[str]) -> dict[str, np.ndarray]:
        kind = self.regrowth.kind if self.regrowth is not None and self._sees_gradients else "set"
        targets = [self._weights[path].target for path in paths]
        evidence = self._evidence.observed(targets, GROWTHS.facts(kind)["needs"], self._asked)
        return {path: GROWTHS[kind](known) for path, known in evidence.items()}

    def _write(self, before: Arrays, keeps: Arrays) -> None:
        for path, keep in keeps.items():
            if self._holder is not None:
                one = self._weights[path]
                grown = one.change(before[path], keep, self._holder)
                if grown is not None:
                    reset_slots(self._fit.optimizer, one.target.variable, grown)

    def _learning(self, *names: str | None) -> dict[str, Pruned]:
        """Give the weights of some schedules, or of all; one that was frozen meanwhile stays as it is."""
        return {
            path: one
            for path, one in self._weights.items()
            if one.target.variable.trainable and (not names or one.schedule in names)
        }

    @property
    def _growth_needs(self) -> tuple[str, ...]:
        return GROWTHS.facts(self.regrowth.kind)["needs"] if self.regrowth is not None else ()

    @property
    def _sees_gradients(self) -> bool:
        return "grad" not in self._growth_needs or self._evidence.count > 0

    def _listen(self, fields: Sequence[str] | None = None) -> None:
        """Sum gradients anew: for regrowth alone, only those shortly before the next move."""
        since = 0
        if self.regrowth is not None and not self._evidence.tapped:
            since = self.regrowth.listens_from(self._asked, self._until)
        self._evidence.reset(fields, since)

    def _end_of_moves(self, epoch: int) -> int | None:
        if self.regrowth is None:
            return None
        return self.regrowth.end(self._asked, epoch, (self.params or {}).get("epochs"), self._steps_per_epoch())
