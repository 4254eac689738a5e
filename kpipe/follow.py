"""Callbacks that follow schedules: when to ask, what the steps are, and what to say of a training too short."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import keras

from kpipe.copies import refuse_keras2
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import Holder, inner_optimizer, trained_model
from kpipe.schedules import AnySchedule, Schedule, Training, last_due, resolve, shortfall

_HORIZON = 1000
"""Steps that are looked ahead for an update; further on the question is put again."""


class Follower(keras.callbacks.Callback, ABC):
    """Ask schedules for the steps of a training, and update what they say at the steps at which they say so.

    The schedules are asked with the number of optimizer updates done so far (`optimizer.iterations`): once before the
    first batch, then about every step since the last question. So a second `fit` goes on where the first one ended,
    and a training whose weights and optimizer another callback restores is begun anew from there. The number is read
    only when an update can be due by then, so that an accelerator need not wait for the host after every batch.

    A class says by `_begin`, `_update`, `_end`, `_gone` and `_lacks` what it does. What it holds by the holder that
    `_begin` gets is let go at the end of the training; of a `fit` that broke off, when the next one with a follower
    begins on the same model.

    Args:
        schedules: Name of a set of weights, or None for all -> its schedule, in steps or in epochs.
    """

    def __init__(self, schedules: Mapping[str | None, AnySchedule]):
        super().__init__()
        self.schedules = dict(schedules)
        self._asks: dict[str | None, Schedule] = {}
        self._holder: Holder | None = None
        self._begun = self._asked = 0  # optimizer updates: at the beginning, at the last question
        self._calls, self._rest, self._pace = 0, 1, 1  # batches since then, until the next question; updates of each
        self._before: dict[str | None, int] = {}
        self._first = False  # whether the next batch is the first of its epoch

    @abstractmethod
    def _begin(self, holder: Holder) -> None:
        """Choose what to prune and hold it."""

    @abstractmethod
    def _update(self, asked: Mapping[str | None, float]) -> None:
        """Prune to the sparsities asked for: those of the schedules that are due."""

    def _end(self) -> None:
        """Finish; the constraints are given back already."""

    @abstractmethod
    def _gone(self, name: str | None) -> int:
        """Count what is gone by now of a schedule's set of weights."""

    @abstractmethod
    def _lacks(self, name: str | None, sparsity: float) -> bool:
        """Tell whether less is gone of a schedule's set of weights than a sparsity asks for."""

    def set_model(self, model: keras.Model) -> None:
        """Take the model that is fit; one of Keras 2 is refused."""
        refuse_keras2(model)
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Choose the weights, hold the zeros they have, and ask the schedules a first time.

        A subclassed model that has no weights yet gets them in its first batch; it is begun with after that.
        """
        self._let_go(restored=True)  # of a fit that broke off; what it held says nothing of the weights as they are
        _let_go_others(self)
        steps = self._steps_per_epoch()
        self._asks = {name: resolve(schedule, steps) for name, schedule in self.schedules.items()}
        if trained_model(self._fit).weights:
            self._start(first=self._step())

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look, before the first batch, whether other callbacks have changed what is trained meanwhile."""
        self._first = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin anew when another callback has restored the weights and the optimizer."""
        if self._first and self._holder is not None:
            self._look_again()
        self._first = False

    def _look_again(self) -> None:
        """Begin anew if need be; what was held before is not to touch restored weights."""
        if not 0 <= self._step() - self._asked <= self._pace * self._calls:
            self.on_train_begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Ask the schedules about every step since the last question, if one of them can be due."""
        if self._holder is None:  # the first batch built the model
            self._start(first=0)
            return
        self._calls += 1
        if self._calls >= self._rest:
            self._catch_up()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ask about the steps that have not been asked about."""
        if self._holder is not None and self._calls:
            self._catch_up()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the constraints back; what was pruned stays zero. Warn when the run was too short."""
        if self._holder is None:
            return
        if self._calls:
            self._catch_up()
        self._let_go()
        self._end()
        for name, schedule in self._asks.items():
            self._tell(name, schedule)

    def _start(self, first: int) -> None:
        holder = self._holder = Holder(self._fit)
        vars(trained_model(self._fit)).setdefault(_HOLDING, set()).add(self)
        self._begun, self._asked = first, self._step()
        self._calls, self._rest, self._pace = 0, 1, self._fit.steps_per_execution
        try:
            self._begin(holder)
            self._before = {name: self._gone(name) for name in self._asks}
            self._follow(first, self._asked, beginning=True)
        except BaseException:
            self._let_go()
            raise

    def _catch_up(self) -> None:
        step = self._step()
        # More than one update a batch is seen in training steps of one's own: the next question comes as much earlier.
        self._pace = max(self._pace, -(-(step - self._asked) // max(1, self._calls)))
        first, self._asked, self._calls = self._asked + 1, step, 0
        self._follow(first, step)
        self._rest = -(-(self._next_due(step) - step) // self._pace)

    def _follow(self, first: int, last: int, beginning: bool = False) -> None:
        """Ask about the steps from `first` to `last`, and update what is due.

        A schedule without an end asks for one sparsity for good: when a training begins past its `begin_step`, that is
        due at once, not at its next turn. One with an end would jump there.
        """
        since = {
            name: max(ask.begin_step, 0 if beginning and ask.end_step < 0 else first)
            for name, ask in self._asks.items()
        }
        asked = {name: last_due(ask, since[name], last) for name, ask in self._asks.items()}
        due = {name: sparsity for name, sparsity in asked.items() if sparsity is not None}
        if due:
            self._update(due)

    def _next_due(self, step: int) -> int:
        """Give the next step at which anything can be due."""
        return next_due(self._asks.values(), step)

    def _let_go(self, restored: bool = False) -> None:
        """Give the constraints back; of weights that were restored or set anew meanwhile, as they are."""
        if self._holder is not None:
            self._holder.release(project=not restored)
            vars(trained_model(self._holder.model))[_HOLDING].discard(self)
            self._holder = None

    def _tell(self, name: str | None, schedule: Schedule) -> None:
        """Warn of what the training did less than the schedule asks for."""
        lacks = self._lacks(name, schedule.sparsity(schedule.settled_step))
        found = shortfall(schedule, Training(self._begun, self._asked, self._before[name], self._gone(name), lacks))
        if found is not None:
            what = type(self).__name__ + ("" if name is None else f" ({name!r})")
            text = f"{what} pruned nothing: {found.text}" if found.nothing else f"{what} {found.text}"
            warnings.warn(text, NoEffectWarning if found.nothing else UserWarning, stacklevel=3)

    def _step(self) -> int:
        return int(self._optimizer.iterations.numpy())  # NumPy: a variable that a strategy mirrors is no int

    def _steps_per_epoch(self) -> float | None:
        """Give the mean number of updates of an epoch, or None when Keras does not know how many batches there are."""
        batches = (self.params or {}).get("steps")
        every = inner_optimizer(self._optimizer).gradient_accumulation_steps or 1
        return None if batches is None else batches / every

    @property
    def _optimizer(self) -> Any:
        optimizer = getattr(self._fit, "optimizer", None)
        if optimizer is None:
            raise KpipeError(
                f"{type(self).__name__} counts the updates of the model's optimizer, and {self._fit.name!r} has none. "
                "Compile the model, or set model.optimizer to the optimizer that you apply."
            )
        return optimizer

    @property
    def _fit(self) -> keras.Model:
        if self.model is None:
            what = type(self).__name__
            raise KpipeError(f"{what} has no model yet: pass it to model.fit, or call set_model(model).")
        return self.model


_HOLDING = "_kpipe_followers"
"""Attribute of a model: the followers that hold something on its weights; of one whose `fit` broke off, nobody else may
know."""


def _let_go_others(follower: Follower) -> None:
    """Let the followers go whose `fit` on the same model broke off: Keras tells a callback of no such end.

    Those of one `fit` have the very same `params`; in a loop of one's own there are none, and nothing is let go.
    """
    for other in list(vars(trained_model(follower._fit)).get(_HOLDING, ())):
        if follower.params is not None and other.params is not None and other.params is not follower.params:
            other._let_go(restored=True)


def next_due(asks: Collection[Schedule], step: int, horizon: int = _HORIZON) -> int:
    """Give the next step after `step` at which any schedule is due, or the last one looked at.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> asks = [ConstantSparsity(0.5, begin_step=7), ConstantSparsity(0.5, begin_step=0, end_step=20)]
        >>> next_due(asks, 0), next_due(asks, 7), next_due(asks, 20), next_due(asks, 20, horizon=50)
        (7, 20, 107, 70)
    """
    for later in range(step + 1, step + horizon):
        if any(ask(later)[0] for ask in asks):
            return later
    return step + horizon
