"""The callback that counts the training steps of wrapped layers and updates their masks."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from kpipe.copies import refuse_keras2
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import Holder, inner_optimizer, masked, trained_model
from kpipe.schedules import EpochSchedule, Schedule, last_due, resolve
from kpipe.unstructured.arguments import PruningSchedule
from kpipe.unstructured.wrapper import PruneLowMagnitude
from kpipe.unstructured.wrapping import pruned_layers

_HORIZON = 1000
"""Steps that are looked through for the next update, for a warning."""


class UpdatePruningStep(keras.callbacks.Callback):
    """Prune the wrapped layers of a model while it trains; TFMOT's callback on Keras 3.

    Before each training batch the layer's number of steps goes up by one, from 1 on; its schedule is asked with that
    number, and when an update is due the masks are brought to the sparsity and applied before the batch is seen. The
    number is saved with the model: a loaded one goes on where it was. What is zero before the first step stays zero.

    In a loop of one's own call `set_model(model)` and `on_train_begin()`, `on_train_batch_begin(step)` before every
    training step, and `on_epoch_end(epoch)`.

    Raises:
        KpipeError: In `on_train_begin`, when a schedule counts epochs and their length is not known.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> from kpipe.unstructured.wrapping import prune_low_magnitude
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> pruned = prune_low_magnitude(net, ConstantSparsity(0.5, begin_step=0, frequency=1))
        >>> pruned.compile("sgd", "mse")
        >>> data = keras.ops.ones((8, 4)), keras.ops.ones((8, 2))
        >>> _ = pruned.fit(*data, verbose=0, callbacks=[UpdatePruningStep()])
        >>> int((pruned.layers[0].layer.kernel.numpy() == 0).sum())
        4
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: list[_Count] = []
        self._batch = 0
        self._updates: int | None = None
        self._write: Any = None
        self._holder: Holder | None = None

    def set_model(self, model: keras.Model) -> None:
        """Take the model that is going to be fit."""
        refuse_keras2(model)
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the wrapped layers; those that were never trained begin at step 0, the others go on."""
        self._release()
        steps_per_epoch = (self.params or {}).get("steps")
        layers = pruned_layers(trained_model(self._fit))
        schedules = same([in_steps(layer.pruning_schedule, steps_per_epoch) for layer in layers])
        self._counts = [_Count(layer, schedule) for layer, schedule in zip(layers, schedules, strict=True)]
        self._write = None
        if not layers:
            text = f"UpdatePruningStep found no wrapped layer in {self._fit.name!r}: see prune_low_magnitude."
            warnings.warn(text, NoEffectWarning, stacklevel=2)
        self._take_in()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Go on from the saved numbers of steps when another callback has restored the model meanwhile."""
        for count in self._counts:
            count.read()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count a step, ask the schedules, and update the masks that are due."""
        self._batch = batch
        self._updates = self._read_updates() if self._fit.steps_per_execution > 1 else None
        self._advance(1)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Make up for the steps that were taken in one execution, and for layers that were built in the step."""
        if batch > self._batch:
            self._advance(self._further_steps(batch))
        elif self._take_in():
            self._follow()

    def on_epoch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Apply the masks, in case weights were set by hand; the name of the argument is TFMOT's."""
        for count in self._counts:
            if count.layer.built:
                count.layer.project()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Warn when the training was too short for a schedule."""
        self._release()
        turns: dict[tuple, int | None] = {}
        reasons = dict.fromkeys(reason for count in self._counts if (reason := count.shortfall(turns)))
        if not self._counts or not reasons:
            return
        if any(known.dropped for count in self._counts for known in count.layer.masked):
            warnings.warn(f"UpdatePruningStep: {'; '.join(reasons)}.", UserWarning, stacklevel=2)
        else:
            warnings.warn(f"UpdatePruningStep pruned nothing: {'; '.join(reasons)}.", NoEffectWarning, stacklevel=2)

    def _further_steps(self, batch: int) -> int:
        """Count the steps of this execution after its first; data may have ended before the last that Keras names."""
        updates = self._read_updates()
        if updates is None or self._updates is None:
            return batch - self._batch
        return min(batch - self._batch, max(updates - self._updates - 1, 0))

    def _read_updates(self) -> int | None:
        """Give the number of the optimizer's updates, where it makes one a step."""
        optimizer = self._fit.optimizer
        accumulating = getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None)
        return None if accumulating else int(optimizer.iterations.numpy())

    @property
    def _fit(self) -> keras.Model:
        if self.model is None:
            raise KpipeError("UpdatePruningStep has no model yet: pass it to model.fit, or call set_model(model).")
        return self.model

    def _advance(self, steps: int) -> None:
        self._take_in()
        for count in self._counts:
            count.advance(steps)
        if self._write is None:  # one call of the runtime for all the layers, and the cheapest there is
            self._write = tf.function(self._add, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int64))
        self._write(tf.constant(steps, tf.int64))
        self._follow()

    def _add(self, steps: tf.Tensor) -> None:
        for count in self._counts:
            if count.begun is not None:
                count.layer.pruning_step.value.assign_add(steps, read_value=False)

    def _take_in(self) -> bool:
        """Begin with the layers that have been built since the last call; tell whether there are any."""
        late = [count for count in self._counts if count.begun is None and count.layer.built]
        left_dense = [row for count in late if count.begin() for row in count.layer.left_dense]
        if left_dense:
            listed = "; ".join(f"{path}: {reason}" for path, reason in left_dense)
            warnings.warn(f"UpdatePruningStep leaves weights dense ({listed}).", UserWarning, stacklevel=3)
        if late:
            self._write = None  # what was traced before does not know them
            self._hold_averages()
        return bool(late)

    def _follow(self) -> None:
        answers: dict[tuple, float | None] = {}  # layers that were wrapped together share a schedule
        changed = [count.follow(answers) for count in self._counts]
        if self._holder is not None and any(changed):
            self._holder.project()

    def _hold_averages(self) -> None:
        """Keep the optimizer's weight averages sparse too, where it keeps any; the masks hold by themselves."""
        self._release()
        optimizer = inner_optimizer(getattr(self._fit, "optimizer", None))
        several = getattr(optimizer, "optimizers", None) or [optimizer]
        if not any(getattr(one, "use_ema", False) for one in several):
            return
        self._holder = Holder(self._fit)
        for known in (known for count in self._counts for known in count.layer.masked):
            self._holder.hold(known.weight, lambda w, mask=known.mask: masked(w, mask))

    def _release(self) -> None:
        if self._holder is not None:
            self._holder.release()
        self._holder = None


class _Count:
    """Count the training steps of one wrapped layer, and ask its schedule."""

    def __init__(self, layer: PruneLowMagnitude, schedule: PruningSchedule):
        self.layer, self.schedule = layer, schedule
        self.begun: int | None = None  # the step that the training began at, once the layer is built
        self.step = self.asked = 0
        self.reached = -1.0  # sparsity of the masks
        self.due: float | None = None  # sparsity of the last update
        self._ask: Any = partial(ask, schedule)

    def begin(self) -> bool:
        """Begin with a layer that is built: at step 0, or where it was, or in the midst; False when it goes on."""
        late, fresh = self.step > 0, self.layer.begin()
        if late:
            self.begun = 0  # it was built with the number of steps so far
        else:
            self.begun = self.step = self.asked = int(self.layer.pruning_step.numpy())
        return late or fresh

    def read(self) -> None:
        """Take over the number of steps that the layer holds, if it is another."""
        if self.begun is None or (step := int(self.layer.pruning_step.numpy())) == self.step:
            return
        self.begun = self.step = self.asked = step
        self.reached = -1.0

    def advance(self, steps: int) -> None:
        """Count steps; a layer that is built in one of them begins with that number."""
        self.step += steps
        self.layer.steps = self.step

    def follow(self, answers: dict[tuple, float | None]) -> bool:
        """Update the masks if an update was due since the last question; tell whether it did.

        Args:
            answers: (schedule, first, last step) -> what was answered before.
        """
        if self.begun is None:
            return False
        question = (id(self.schedule), self.asked + 1, self.step)
        self.asked = self.step
        if question not in answers:
            answers[question] = last_due(self._ask, *question[1:])
        sparsity = answers[question]
        self.due = self.due if sparsity is None else sparsity
        if sparsity is None or sparsity <= self.reached:
            return False
        if self.layer.drop(sparsity):
            self.reached = sparsity
        return True

    def shortfall(self, turns: dict[tuple, int | None]) -> str | None:
        """Say what the training did not reach of the schedule.

        Args:
            turns: (schedule, step) -> the next step of an update, as it was found before.
        """
        if self.due is None and not any(known.dropped for known in self.layer.masked):
            question = (id(self.schedule), self.step)
            if question not in turns:
                following = range(self.step + 1, self.step + 1 + _HORIZON)
                turns[question] = next((step for step in following if self._ask(step)[0]), None)
            turn, begun = turns[question], self.begun or 0
            rest = f"the next would be at step {turn}; train longer or prune earlier" if turn else "none follows soon"
            return f"{self.schedule} asks for no update from step {begun + 1} to {self.step}, {rest}"
        end = getattr(self.schedule, "settled_step", getattr(self.schedule, "end_step", -1))
        whole = self.due is not None and self.layer.pattern.limit < 1  # n:m is made whole, whatever the sparsity
        if whole or self.step >= end:
            return None
        final = self._ask(end)[1]
        if (self.due or 0.0) < final:
            return f"training ended at step {self.step}, before {self.schedule} reaches {final:.4g} at step {end}"
        return None


def ask(schedule: PruningSchedule, step: int) -> tuple[bool, float]:
    """Ask a schedule of kpipe, or one of TFMOT's kind, which is given a tensor and answers with tensors.

    Example:
        >>> ask(lambda step: (tf.equal(step, 2), tf.constant(0.5)), 2)
        (True, 0.5)
    """
    due, sparsity = schedule(step if isinstance(schedule, Schedule) else tf.constant(step, tf.int64))
    return bool(due), float(sparsity)


def in_steps(schedule: PruningSchedule, steps_per_epoch: int | None) -> PruningSchedule:
    """Give a schedule in steps, whichever way it counts."""
    return resolve(schedule, steps_per_epoch) if isinstance(schedule, EpochSchedule) else schedule


def same(schedules: Sequence[PruningSchedule]) -> list[PruningSchedule]:
    """Give in place of schedules that are equal the first of them, so that each is asked once.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> one, other = same([ConstantSparsity(0.5, 0), ConstantSparsity(0.5, 0)])
        >>> one is other
        True
    """
    known: list[PruningSchedule] = []
    for schedule in schedules:
        known.append(next((one for one in known if type(one) is type(schedule) and one == schedule), schedule))
    return known
