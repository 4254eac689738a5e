"""Filter pruning during `fit`: whole channels go to zero on a schedule, then are cut out."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.follow import Follower
from kpipe.graph import Trace, trace
from kpipe.projections import Holder, Mask, trained_model
from kpipe.saliency import FROM_DATA, Criterion, Passes, check_data, criterion_of
from kpipe.schedules import AnySchedule
from kpipe.schedules import schedule as make_schedule
from kpipe.structured.channels import axis_mask
from kpipe.structured.filters import Ignore, check_request, freeze_ignored, prune_filters, refuse_quantized
from kpipe.structured.plan import FilterPlan, describe
from kpipe.structured.ranking import channel_scores, choose, keep_of, step_of


class FilterPruning(Follower):
    """Set ever more channels to zero while a model trains; `shrink` then gives the smaller model.

    At each update of the schedule the channels are ranked anew; those that have gone stay gone. Every weight of a gone
    channel, in the layers that produce it and in those that sum over it, is held at zero after each optimizer update.
    So the model that is trained is exactly the one that `shrink` returns.

    The schedule is asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then after each. Its sparsity is the ratio of channels removed.

    Args:
        schedule: A schedule, in steps or in epochs, or a mapping of its name to its arguments.
        criterion: A registered name, or a function of `Evidence`. One that needs gradients needs `data`.
        round_to: Kept channels are rounded to the nearest multiple of this, never to zero.
        scope: "layer" takes the ratio from every group of channels, "global" ranks all the channels together.
        ignore: Layers whose channels stay: a regex on the path, several, or a function of the layer.
        data: Labelled data for a criterion that needs gradients, which end and can be gone through at every update.
        loss: Loss for those; None: the one the model is compiled with.
        seed: Of a criterion that draws random numbers.

    Raises:
        KpipeError: For arguments that do not fit, or `shrink` before a fit.
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
        scope: str = "layer",
        ignore: Ignore = None,
        *,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
    ):
        super().__init__({None: make_schedule(schedule)})
        check_request(0.0, None, scope, round_to)
        _, facts = criterion_of(criterion)
        if data is None and any(field in FROM_DATA for field in facts["needs"]):
            raise KpipeError(
                f"The criterion {criterion!r} needs data ({', '.join(facts['needs'])}). Give "
                "FilterPruning(..., data=(x, y)), or plan once with "
                "kpipe.plan_filters(model, ratio, criterion=..., data=(x, y))."
            )
        check_data(data, again="FilterPruning")
        self.criterion, self.round_to, self.scope, self.ignore = criterion, round_to, scope, ignore
        self.data, self.loss, self.seed = data, loss, seed
        self._plan: FilterPlan | None = None
        self._student: keras.Model | None = None
        self._passes: Passes | None = None  # traced once for the length of a fit

    @property
    def plan(self) -> FilterPlan:
        """The channels that have gone so far."""
        if self._plan is None:
            raise KpipeError("FilterPruning has no plan yet: pass it to model.fit(..., callbacks=[...]) first.")
        return self._plan

    def shrink(self) -> keras.Model:
        """Cut the channels that have gone: a new, smaller model that equals the trained one within float rounding.

        Returns:
            The smaller model, not compiled. The trained model is not changed.

        Raises:
            KpipeError: When nothing has been fit yet.
            SurgeryError: When the smaller model differs: a wrong model is never returned.
        """
        if self._student is None:
            raise KpipeError("FilterPruning has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        return prune_filters(self._student, self.plan)

    def _begin(self, holder: Holder) -> None:
        student = trained_model(self._fit)
        if student is not self._student:
            self._plan = None
        self._student, self._passes = student, Passes()
        refuse_quantized(student)
        self._trace = freeze_ignored(trace(student, unknown="freeze"), self.ignore)
        self._removed = self._gone_so_far(self._trace)
        self._masks: dict[str, Mask] = {}
        for weight in self._trace.weights:
            if weight.axes and weight.role != "statistic":
                self._masks[weight.path] = holder.mask(weight.variable, np.ones(weight.variable.shape, bool))
        self._mask()

    def _end(self) -> None:
        self._passes = None
        self._write_plan()

    def _gone(self, name: str | None) -> int:
        return sum(len(places) for places in self._removed)

    def _lacks(self, name: str | None, sparsity: float) -> bool:
        steps = [step_of(group, self.round_to) for group in self._trace.groups]
        sizes, gone = [len(group.classes) for group in self._trace.groups], [len(places) for places in self._removed]
        if self.scope != "layer":  # rounding leaves less than a step of each group
            sizes, gone, steps = [sum(sizes)], [sum(gone)], [sum(steps)]
        asked = [min(round(sparsity * n), n - step) for n, step in zip(sizes, steps, strict=True)]
        return any(wanted - found >= step for wanted, found, step in zip(asked, gone, steps, strict=True))

    def _gone_so_far(self, traced: Trace) -> list[np.ndarray]:
        """Take over what an earlier fit of the same model removed."""
        gone = {group.name: group.removed for group in self._plan.groups} if self._plan else {}
        return [np.asarray(gone.get(group.name, ()), dtype=np.int64) for group in traced.groups]

    def _update(self, asked: Mapping[str | None, float]) -> None:
        known = self.data, self.loss, self.seed, self._passes
        scores = channel_scores(self._student, self._trace, self.criterion, *known)
        for values, places in zip(scores, self._removed, strict=True):
            values[places] = -np.inf
        steps = [step_of(group, self.round_to) for group in self._trace.groups]
        chosen = choose(scores, asked[None], self.scope, steps)
        # A channel that has gone stays gone, also when the schedule asks for fewer.
        self._removed = [np.union1d(old, new) for old, new in zip(self._removed, chosen, strict=True)]
        self._mask()
        self._write_plan()

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
        criterion = self.criterion if isinstance(self.criterion, str) else getattr(self.criterion, "__name__", "own")
        request = {"ratio": None, "target": None, "scope": self.scope, "round_to": self.round_to}
        self._plan = describe(self._trace, self._removed, request | {"criterion": criterion})
