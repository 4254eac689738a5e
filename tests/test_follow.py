import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.follow import Follower, next_due
from kpipe.schedules import ConstantSparsity, LinearSparsity, PolynomialDecay
from tests.models import build

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Record(Follower):
    """Prune nothing; note what is asked for, and at which step it is asked."""

    def __init__(self, schedules, changed=True):
        super().__init__(schedules)
        self.seen, self.asked_at, self.begun, self.changed = [], [], 0, changed
        self.reached = {}

    def _begin(self, holder):
        self.begun += 1

    def _update(self, asked):
        self.seen.append((self._asked, dict(asked)))
        if self.changed:
            self.reached |= asked

    def _end(self):
        self.seen.append("end")

    def _gone(self, name):
        return round(100 * self.reached.get(name, 0.0))

    def _lacks(self, name, sparsity):
        return self.reached.get(name, 0.0) < sparsity

    def _step(self):
        self.asked_at.append(super()._step())
        return self.asked_at[-1]


def compiled(optimizer="sgd", **options):
    model = build("dense")
    model.compile(optimizer, LOSS, **options)
    return model


def fit(model, *callbacks, epochs=2, batch_size=8, **options):
    model.fit(X, Y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


def test_it_updates_when_a_schedule_is_due_and_reads_the_step_only_then():
    record = Record({None: LinearSparsity(0.0, 0.4, begin_step=0, end_step=20, frequency=10)})
    fit(compiled(), record, epochs=2, batch_size=2)  # 48 steps
    assert record.seen == [(0, {None: 0.0}), (10, {None: 0.2}), (20, {None: 0.4}), "end"]
    reads = len(record.asked_at)
    assert reads <= 12, "at each beginning and end, at the first batch and when an update is due"
    record = Record({None: LinearSparsity(0.0, 0.4, begin_step=0, end_step=20, frequency=1)})
    fit(compiled(), record, epochs=2, batch_size=2)
    assert len(record.seen) == 22 and len(record.asked_at) > reads + 15


@pytest.mark.parametrize("execution", [1, 3, 5])
def test_no_update_is_lost_when_several_steps_pass_at_once(execution):
    record = Record({None: LinearSparsity(0.0, 0.4, begin_step=0, end_step=20, frequency=4)})
    fit(compiled(steps_per_execution=execution), record, epochs=2, batch_size=4)  # two times 12 steps
    ends = sorted({min(12 * epoch + step, 12 * epoch + 12) for epoch in (0, 1) for step in range(execution, 17)})
    assert [asked[None] for _, asked in record.seen[:-1]] == pytest.approx([0.0, 0.08, 0.16, 0.24, 0.32, 0.4])
    for (step, _), due in zip(record.seen, (0, 4, 8, 12, 16, 20), strict=False):
        assert step in (0, *ends) and due <= step < due + execution


class Twice(keras.Sequential):
    """A train step of its own that updates two times."""

    def train_step(self, data):
        super().train_step(data)
        return super().train_step(data)


def test_a_train_step_may_update_more_than_once():
    model = Twice([keras.Input((12,)), keras.layers.Dense(4)])
    model.compile("sgd", LOSS)
    record = Record({None: LinearSparsity(0.0, 0.4, begin_step=0, end_step=20, frequency=10)})
    fit(model, record, batch_size=4, epochs=1)  # 12 batches, 24 updates
    assert record.seen == [(0, {None: 0.0}), (10, {None: 0.2}), (20, {None: 0.4}), "end"]


def test_each_schedule_is_asked_by_itself():
    record = Record({"a": ConstantSparsity(0.3, 2, frequency=4), "b": ConstantSparsity(0.6, 4, frequency=100)})
    fit(compiled(), record)  # 12 steps
    assert record.seen == [(2, {"a": 0.3}), (4, {"b": 0.6}), (6, {"a": 0.3}), (10, {"a": 0.3}), "end"]


@pytest.mark.parametrize(("accumulation", "end"), [(None, 24), (2, 12), (5, 4), (24, 1)])
def test_epochs_are_counted_in_optimizer_updates(accumulation, end):
    record = Record({None: PolynomialDecay.over_epochs(final_sparsity=0.8, end=2)})
    fit(compiled(keras.optimizers.SGD(gradient_accumulation_steps=accumulation)), record, batch_size=4)
    assert record._asks[None].end_step == end  # 12 batches an epoch; five and five and two of the next
    assert record.seen[-2] == (end, {None: 0.8})


def test_epochs_of_unknown_length_are_refused():
    def batches():
        for _ in range(100):
            yield X[:8], Y[:8]

    record = Record({None: PolynomialDecay.over_epochs(final_sparsity=0.8, end=2)})
    with pytest.raises(KpipeError, match="steps_per_epoch"):
        compiled().fit(batches(), shuffle=False, verbose=0, callbacks=[record])
    compiled().fit(batches(), shuffle=False, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[record])
    assert record._asks[None].end_step == 6


def test_what_has_no_end_is_due_at_once_and_what_has_one_does_not_jump():
    model = compiled()
    fit(model, epochs=1)  # 6 steps
    endless = Record({None: ConstantSparsity(0.5, begin_step=0, frequency=100)})
    fit(model, endless, epochs=1)
    assert endless.seen == [(6, {None: 0.5}), "end"]
    ramp = Record({None: LinearSparsity(0.0, 0.5, begin_step=0, end_step=10, frequency=1)}, changed=False)
    with pytest.warns(NoEffectWarning, match="schedule ended at step 10 and this training began at step 12"):
        fit(model, ramp, epochs=1)
    assert ramp.seen == ["end"]


class Rewind(keras.callbacks.Callback):
    """Set the optimizer back before the second epoch, as a restoring callback does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.optimizer.iterations.assign(2)


@pytest.mark.parametrize("first", [True, False])
def test_a_restored_training_is_begun_anew(first):
    record = Record({None: LinearSparsity(0.0, 0.4, begin_step=0, end_step=8, frequency=4)})
    fit(compiled(), *((Rewind(), record) if first else (record, Rewind())))
    assert record.begun == 2
    assert record.seen == [(0, {None: 0.0}), (4, {None: 0.2}), (4, {None: 0.2}), (8, {None: 0.4}), "end"]


def test_a_fit_that_breaks_off_in_the_beginning_lets_go():
    class Broken(Record):
        def _begin(self, holder):
            holder.mask(self.model.get_layer("hidden1").kernel, np.ones((12, 16), bool))
            raise KpipeError("no")

    model = compiled()
    with pytest.raises(KpipeError, match="no"):
        fit(model, Broken({None: ConstantSparsity(0.5, 0)}))
    assert model.get_layer("hidden1").kernel.constraint is None


def test_a_schedule_that_is_not_met_is_named():
    record = Record({"conv": LinearSparsity(0.0, 0.5, 0, 100, frequency=1), "fc": ConstantSparsity(0.5, 0)})
    with pytest.warns(UserWarning, match=r"Record \('conv'\) ended at step 12, before .* reaches 0.5 at step 100"):
        fit(compiled(), record)


def test_the_next_due_step_is_the_first_of_any_schedule():
    asks = [LinearSparsity(0.0, 0.5, 3, 10, frequency=4), ConstantSparsity(0.5, 5, frequency=6)]
    due = [step for step in range(1, 40) if any(ask(step)[0] for ask in asks)]
    assert due == [3, 5, 7, 10, 11, 17, 23, 29, 35]
    for step in range(30):
        assert next_due(asks, step) == min(one for one in due if one > step)


def test_without_a_model_it_says_so():
    with pytest.raises(KpipeError, match="Record has no model yet"):
        Record({None: ConstantSparsity(0.5, 0)}).on_train_begin()
