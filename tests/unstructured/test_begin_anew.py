"""Trainings that begin anew: restored weights, fits that broke off, layers that are unfrozen, loops of one's own."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import kernels
from kpipe.schedules import ConstantSparsity, Join, PolynomialDecay, SteppedSparsity
from kpipe.unstructured import Regrowth, WeightPruning
from tests.unstructured.test_hold import STEPS, O, Stop, Watch, X, Y, compiled, fit, own_loop


def zeros(model):
    return [int((variable.numpy() == 0).sum()) for variable in kernels(model)]


def share(sparsity):
    return [round(sparsity * 192), round(sparsity * 64)]


# ---- restored weights ------------------------------------------------------------------------------------------------


class Look(keras.callbacks.Callback):
    """Keep the kernels as they are when the first batch begins."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen = self.seen or [variable.numpy() for variable in kernels(self.model)]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("regrowth", [None, Regrowth("set", 0.3, 3, 100)])
@pytest.mark.parametrize("first", [True, False])
def test_a_backup_is_restored_as_it_was_whatever_was_pruned_before(tmp_path, first, regrowth):
    def callbacks(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        prune = WeightPruning(ConstantSparsity(0.8, 0), regrowth=regrowth)
        return [*([backup, prune] if first else [prune, backup]), *more]

    model, look = compiled(), Look()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks(Stop()))
    saved = [variable.numpy() for variable in kernels(model)]
    again = compiled()
    for variable in kernels(again):  # another beginning: other weights are pruned before the backup is read
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    watch = fit(again, *callbacks(look))
    assert watch.steps[0] == 7 and all(
        n >= m if regrowth else n == m for n, m in zip(zeros(again), share(0.8), strict=True)
    )
    for one, other in zip(look.seen, saved, strict=True):
        np.testing.assert_array_equal(one, other)


class Rollback(keras.callbacks.Callback):
    """Go back to an earlier epoch once."""

    def on_epoch_begin(self, epoch, logs=None):
        state = [*self.model.variables, *self.model.optimizer.variables]
        if epoch == 1:
            self.state = [variable.numpy() for variable in state]
        if epoch == 3:
            for variable, value in zip(state, self.state, strict=True):
                variable.assign(value)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
def test_weights_that_are_set_back_have_the_zeros_of_then(first):
    prune, watch = WeightPruning(PolynomialDecay(0.0, 0.8, 0, 18, power=1, frequency=6)), Watch()
    order = [Rollback(), prune] if first else [prune, Rollback()]
    model = compiled()
    model.fit(X, Y, batch_size=8, epochs=5, verbose=0, callbacks=[*order, watch])
    then = [one for step, one in zip(watch.steps, watch.zeros, strict=True) if step == 7]
    assert then == [share(0.8 / 3)] * 2 and zeros(model) == share(0.8)


# ---- fits that broke off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regrowth", [None, "rigl"])
def test_what_a_broken_off_fit_held_is_let_go_by_the_next_callback(regrowth):
    model, broken = compiled(), WeightPruning(ConstantSparsity(0.9, 0), regrowth=regrowth)
    with pytest.raises(KeyboardInterrupt):
        fit(model, broken, Stop())
    assert zeros(model) == share(0.9)
    for variable in kernels(model):
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))  # as a user who begins again would
    fit(model, WeightPruning(ConstantSparsity(0.5, 0)))
    assert zeros(model) == share(0.5) and all(variable.constraint is None for variable in kernels(model))
    assert "apply" not in vars(model.optimizer)  # where the gradients were seen


def test_two_callbacks_of_one_fit_let_each_other_be():
    model = compiled()
    two = [WeightPruning(ConstantSparsity(s, 0), layers=name) for s, name in ((0.5, "hidden"), (0.25, "logits"))]
    watch = fit(model, *two)
    assert watch.zeros == [[96, 16]] * STEPS and watch.revived == 0


# ---- layers that come later ------------------------------------------------------------------------------------------


class Unfreeze(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = True
            self.model.make_train_function(force=True)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_is_unfrozen_after_the_last_update_is_brought_to_what_was_reached(first):
    model, prune = compiled(), WeightPruning(PolynomialDecay(0.0, 0.75, 0, 4))
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    watch = fit(model, *([Unfreeze(), prune] if first else [prune, Unfreeze()]), epochs=3)
    assert watch.zeros[5] == [0, 48] and watch.zeros[-1] == [144, 48] and watch.revived == 0
    assert {row.zeros for row in prune.report().pruned} == {144, 48}


class FreezeBias(keras.callbacks.Callback):
    def __init__(self, prune, layer=None):
        super().__init__()
        self.prune, self.counts, self.layer = prune, [], layer

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            (self.layer or self.model.layers[0].bias).trainable = False
            self.model.make_train_function(force=True)

    def on_train_batch_end(self, batch, logs=None):
        self.counts.append(self.prune._evidence.count)


@pytest.mark.parametrize("kernel", [False, True])
def test_what_was_summed_up_is_kept_when_something_is_frozen(kernel):
    model, prune = compiled(), WeightPruning(ConstantSparsity(0.5, 100), criterion="movement")
    freeze = FreezeBias(prune, model.layers[0] if kernel else None)
    with pytest.warns(NoEffectWarning, match="before begin_step=100"):
        fit(model, freeze, prune)
    assert freeze.counts == list(range(1, STEPS + 1))


def test_a_layer_that_comes_late_is_judged_by_gradients_of_its_own():
    model, prune, masks = compiled(O.SGD(0.1)), WeightPruning(ConstantSparsity(0.5, 0, frequency=5), "taylor"), []
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False

    class Masks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(self.model.layers[0].kernel.numpy() != 0)

    fit(model, Unfreeze(), prune, Masks())
    first = next(mask for mask in masks if not mask.all())
    assert (~first).sum() == 96
    by_index = np.arange(192).reshape(12, 16) >= 96  # what scores of zero would drop
    assert (first != by_index).sum() > 40


def test_what_was_pruned_before_a_layer_was_frozen_is_not_called_nothing():
    model = compiled()
    prune = WeightPruning(PolynomialDecay(0.0, 0.8, 0, 100, frequency=4))
    with pytest.warns(UserWarning, match="WeightPruning ended at step 12, before its schedule reaches 0.8 at step 100"):
        fit(model, FreezeBias(prune, model.layers[0]), prune)


# ---- loops of one's own ----------------------------------------------------------------------------------------------


def test_a_loop_without_the_models_optimizer_is_told():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    prune = WeightPruning(ConstantSparsity(0.5, 1))
    prune.set_model(model)
    with pytest.raises(KpipeError, match=r"has none\. Compile the model, or set model\.optimizer"):
        prune.on_train_begin()
    with pytest.warns(NoEffectWarning, match="optimizer made no update"):
        own_loop(compiled(), WeightPruning(ConstantSparsity(0.5, 1)), lambda x, y: None)


# ---- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: WeightPruning(Join((PolynomialDecay(0.0, 0.9, 0, 10), ConstantSparsity(0.9, 10))), pattern="2:4"),
            "reaches 0.5 at most",
        ),
        (lambda: WeightPruning(SteppedSparsity((0.6, 0.4), (0, 5)), pattern="2:4"), "reaches 0.5 at most"),
        (
            lambda: fit(
                compiled(), WeightPruning({"hidden": ConstantSparsity(0.5, 0), "logit/": ConstantSparsity(0.5, 0)})
            ),
            "'logit/' is found in the path of no weight.*Did you mean 'logits/kernel'",
        ),
    ],
)
def test_what_cannot_be_reached_is_refused_before_anything_trains(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


def test_a_run_too_short_for_a_joined_schedule_says_so():
    joined = Join((PolynomialDecay(0.0, 0.9, 0, 1000, frequency=1), ConstantSparsity(0.9, 1000)))
    with pytest.warns(UserWarning, match="ended at step 12, before its schedule reaches 0.9 at step 1000"):
        fit(compiled(), WeightPruning(joined))


def test_a_second_fit_past_the_end_of_a_schedule_that_asks_for_more_says_so():
    model = compiled()
    fit(model, WeightPruning(ConstantSparsity(0.5, 0)))
    with pytest.warns(NoEffectWarning, match="schedule ended at step 8 and this training began at step 12"):
        fit(model, WeightPruning(PolynomialDecay(0.5, 0.9, 0, 8)))
    with pytest.warns(NoEffectWarning, match="before begin_step=1000"):
        fit(model, WeightPruning(ConstantSparsity(0.9, begin_step=1000)))
    assert zeros(model) == share(0.5)


def test_a_criterion_cannot_write_to_the_weights():
    def in_place(evidence):
        return np.abs(evidence.weight, out=evidence.weight)

    with pytest.raises(ValueError, match="read-only"):
        fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), in_place))
