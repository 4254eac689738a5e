"""What a criterion gets to see while a model trains: from the training itself, or from data."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.projections import FIELDS, GradientTap, trained_model
from kpipe.saliency.batches import check_data
from kpipe.saliency.channels import channel_criterion_of
from kpipe.saliency.criteria import Criterion, criterion_of
from kpipe.saliency.evidence import FROM_DATA, Evidence, Passes, gather


class Seen(Protocol):
    """Be a weight that is looked at."""

    @property
    def path(self) -> str:
        """Its name."""
        ...

    @property
    def role(self) -> str:
        """What it does."""
        ...

    @property
    def variable(self) -> keras.Variable:
        """The weight."""
        ...


class TrainingEvidence:
    """Gather evidence during a training.

    What the training itself can tell is summed up inside the train step, by a tap on the optimizer. With data,
    gradients of the weights as they are then are better, and only what needs the course of the training is tapped.

    Args:
        criterion: A registered name, or a function of `Evidence`.
        data: Labelled data for a criterion that needs some.
        loss: Loss for those; None: the one that the model is compiled with.
        seed: Of what draws random numbers.
        also: Fields that are wanted beside those of the criterion, all from the training.
        who: The callback that looks, for what is said of it.
        at_once: What prunes without a training, for the same.
        channels: Channels are judged, not the entries of weights.

    Raises:
        KpipeError: When the criterion needs data and there are none, or they can be gone through only once.

    Example:
        >>> TrainingEvidence("taylor").tapped, TrainingEvidence("taylor", data=([1.0], [0])).tapped
        (('grad',), ())
    """

    def __init__(
        self,
        criterion: str | Criterion,
        data: Any = None,
        loss: Any = None,
        seed: int = 0,
        also: Sequence[str] = (),
        *,
        who: str = "WeightPruning",
        at_once: str = "kpipe.prune_weights(model, sparsity, criterion, data=(x, y))",
        channels: bool = False,
    ):
        check_data(data, again=who)
        if channels:
            judge = channel_criterion_of(criterion)
            self.criterion, self.needs = judge.function, judge.needs
        else:
            self.criterion, facts = criterion_of(criterion)
            self.needs = facts["needs"]
        self.data, self.loss, self.seed = data, loss, seed
        self.tapped = tuple(f for f in self.needs if f in FIELDS and (data is None or f not in FROM_DATA))
        missing = [field for field in self.needs if field not in self.tapped]
        if missing and data is None:
            raise KpipeError(
                f"The criterion {criterion!r} needs data ({', '.join(missing)}). Give {who}(..., data=(x, y)), "
                f"or prune at once with {at_once}."
            )
        self._fields = [*self.tapped, *(field for field in also if field not in self.tapped)]
        self._model: Any = None
        self._tap: GradientTap | None = None
        self.passes = Passes()

    def begin(self, model: keras.Model, targets: Sequence[Seen]) -> None:
        """Look at the training of some weights from now on."""
        self._model = model
        if self._fields:
            self._tap = GradientTap(model, [target.variable for target in targets], self._fields)

    def end(self) -> GradientTap | None:
        """Look no more; give the tap with what it has summed up."""
        tap, self._tap, self.passes = self._tap, None, Passes()
        if tap is not None:
            tap.release()
        return tap

    def take_over(self, tap: GradientTap | None) -> None:
        """Go on with the sums of an earlier tap."""
        if tap is not None and self._tap is not None:
            self._tap.take_over(tap)

    @property
    def count(self) -> int:
        """Batches of the training that have been seen."""
        return self._tap.count if self._tap is not None else 0

    def reset(self, fields: Sequence[str] | None = None, since: int = 0) -> None:
        """Begin sums anew; see `GradientTap.reset`."""
        if self._tap is not None:
            self._tap.reset(fields, since)

    def evidence(self, targets: Sequence[Seen]) -> dict[str, Evidence]:
        """Give path -> what the criterion looks at."""
        return self._gather(targets, self.needs, self.tapped, self.seed)

    def observed(self, targets: Sequence[Seen], fields: Sequence[str], step: int) -> dict[str, Evidence]:
        """Give path -> fields that the training alone tells; random numbers are others at each step.

        The same ones would let the same entries grow again and again.
        """
        return self._gather(targets, fields, fields, self.seed + step)

    def told(self, targets: Sequence[Seen], fields: Sequence[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """Give path -> field -> what the training has told so far of it; None for what the criterion wants of it."""
        asked = self.tapped if fields is None else fields
        if self._tap is None or not asked:
            return {}
        read: Mapping[int, Mapping[str, np.ndarray]] = self._tap.read()
        return {one.path: {field: read[id(one.variable)][field] for field in asked} for one in targets}

    def _gather(
        self, targets: Sequence[Seen], needs: Sequence[str], tapped: Sequence[str], seed: int
    ) -> dict[str, Evidence]:
        told, model = self.told(targets, tapped), trained_model(self._model)
        return gather(model, targets, needs, self.data, self.loss, seed, told, self.passes)
