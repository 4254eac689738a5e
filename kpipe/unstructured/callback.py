"""Weight pruning during `fit`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.follow import Follower
from kpipe.patterns import Pattern, Unstructured, check_scope, pattern_of
from kpipe.projections import Holder, trained_model
from kpipe.saliency import FROM_DATA, Criterion, criterion_of, gather
from kpipe.schedules import AnySchedule
from kpipe.schedules import schedule as make_schedule
from kpipe.unstructured.masks import drop_more, due, first_mask, judge
from kpipe.unstructured.report import Report, make_report
from kpipe.unstructured.targets import LayerFilter, Skipped, Target, find_targets


class WeightPruning(Follower):
    """Set ever more weights to zero while a model trains; what comes out is a plain model with exact zeros.

    The schedule is asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then after each. When an update is due, the lowest scores are dropped until the count is exact: a mask
    at sparsity s over n entries has exactly round(s * n) zeros. The zeros stand after every step: a projection on
    `variable.constraint` holds them inside the compiled train step, after a constraint of one's own. What is dropped
    stays dropped, a weight that is sparser than asked for keeps its zeros, and a second `fit` goes on where the first
    one ended. At the end of `fit` every constraint is given back.

    In a loop of one's own call `set_model(model)`, `on_train_begin()`, then `on_train_batch_end(step)` after every
    `optimizer.apply`, and `on_train_end()`.

    Args:
        schedule: A `Schedule`, or a mapping of its name to its arguments.
        criterion: A registered name, or a function of `Evidence`. One that needs gradients needs `data`.
        pattern: A registered name, or a function of (scores, sparsity).
        scope: "layer": the sparsity of each weight; "global": of all together, by one ranking.
        layers: None for every kernel of the layers that kpipe knows, a regular expression searched in the weight's
            path, or a function of the layer.
        data: Labelled data for a criterion that needs gradients; passed over at every update.
        loss: Loss for those; None: the one that the model is compiled with.
        seed: Of a criterion that draws random numbers.

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
        pattern: str | Pattern = "unstructured",
        scope: str = "layer",
        layers: LayerFilter = None,
        *,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
    ):
        super().__init__({None: make_schedule(schedule)})
        self.pattern, self.scope, self.layers = pattern_of(pattern), scope, layers
        self.criterion, facts = criterion_of(criterion)
        self.needs, self.data, self.loss, self.seed = facts["needs"], data, loss, seed
        check_scope(scope, self.pattern)
        if data is None and any(field in FROM_DATA for field in self.needs):
            raise KpipeError(
                f"The criterion {criterion!r} needs gradients. Give WeightPruning(..., data=(x, y)), or prune at once "
                "with kpipe.prune_weights(model, sparsity, criterion, data=(x, y))."
            )
        self._targets: dict[str, Target] = {}
        self._skipped: list[Skipped] = []

    def report(self) -> Report:
        """Tell of every weight of the model: path, shape and sparsity as they are now, or why it was skipped."""
        if not self._targets:
            raise KpipeError("WeightPruning has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        return make_report(self._targets.values(), self._skipped)

    def _begin(self, holder: Holder) -> None:
        found, self._skipped = find_targets(trained_model(self._fit), self.layers)
        self._targets = {target.path: target for target in found}
        self._keeps = {path: first_mask(target.variable.numpy()) for path, target in self._targets.items()}
        self._dropped = {path: keep.size - int(np.count_nonzero(keep)) for path, keep in self._keeps.items()}
        self._masks = {path: holder.mask(self._targets[path].variable, keep) for path, keep in self._keeps.items()}

    def _end(self) -> None:
        """Nothing is left to do: the weights keep their zeros."""

    def _changed(self, name: str | None) -> bool:
        return any(self._dropped.values())

    def _update(self, asked: Mapping[str | None, float]) -> None:
        sparsity, wanting = asked[None], list(self._keeps)
        if isinstance(self.pattern, Unstructured):
            wanting = due(self._keeps, self._dropped, sparsity, self.scope)
        if wanting:
            self._prune(wanting, sparsity)

    def _prune(self, paths: list[str], sparsity: float) -> None:
        weights = [(path, self._targets[path].role, self._targets[path].variable) for path in paths]
        student = trained_model(self._fit)
        evidence = gather(student, weights, self.needs, self.data, self.loss, self.seed)
        keeps = drop_more(
            {path: self._keeps[path] for path in paths},
            judge(self.criterion, evidence),
            sparsity,
            self.scope,
            self.pattern,
        )
        for path, keep in keeps.items():
            self._keeps[path] = keep
            self._dropped[path] = keep.size - int(np.count_nonzero(keep))
            self._masks[path].assign(keep)
        if self._holder is not None:
            self._holder.project()
