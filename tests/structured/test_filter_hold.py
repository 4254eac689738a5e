"""Where filter pruning must hold: whole channels at exact zero after every step, and the exact number of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.projections import average_of
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.structured import FilterPruning
from tests.unstructured.test_hold import FEEDS, LOSS, MODES, NEEDS, OPTIMIZERS, Batches, O, Stop, X, Y

SIZES = (16, 8)
STEPS = 12  # of two epochs of batches of 8
SCHEDULE = PolynomialDecay(0.1, 0.75, begin_step=1, end_step=STEPS, frequency=3)


def compiled(optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "sigmoid", name="hidden"), keras.layers.Dense(8, name="inner")]
    layers += [keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(4, name="logits")]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile(optimizer, LOSS, **options)
    return model


def share(sparsity):
    return [int(np.floor(sparsity * size + 0.5)) for size in SIZES]


def expected(steps, schedule=SCHEDULE):
    """Give the channels gone after each step: those of the last update that was due."""
    found, sparsity = [], 0.0
    for step in range(steps + 1):
        due, asked = schedule(step)
        sparsity = asked if due else sparsity
        found.append(share(sparsity))
    return found


def gone(model):
    """Which channels have nothing but zeros: where they are made, in the norm, and where they are summed over."""
    hidden, inner, bn, logits = (model.get_layer(name) for name in ("hidden", "inner", "bn", "logits"))
    made = [(layer.kernel.numpy() == 0).all(axis=0) & (layer.bias.numpy() == 0) for layer in (hidden, inner)]
    made[1] &= (bn.gamma.numpy() == 0) & (bn.beta.numpy() == 0)
    summed = [(layer.kernel.numpy() == 0).all(axis=1) for layer in (inner, logits)]
    return [one & other for one, other in zip(made, summed, strict=True)]


class Watch(keras.callbacks.Callback):
    """After every batch: the channels gone, and whether any has come back."""

    def __init__(self):
        super().__init__()
        self.counts, self.steps, self.revived, self._before = [], [], 0, None

    def on_train_batch_end(self, batch, logs=None):
        now = gone(self.model)
        before = self._before or [np.zeros_like(one) for one in now]
        self.revived += sum(int((old & ~new).sum()) for old, new in zip(before, now, strict=True))
        self.counts.append([int(one.sum()) for one in now])
        self.steps.append(int(self.model.optimizer.iterations.numpy()))
        self._before = now


def fit(model, *callbacks, epochs=2, **options):
    watch = Watch()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch


def same(small, model, tolerance=1e-5):
    expected = np.asarray(model(X, training=False), "float32")
    return np.abs(np.asarray(small(X, training=False), "float32") - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.sweep(2)
@pytest.mark.plain_fit
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer(optimizer):
    if getattr(keras.optimizers, NEEDS.get(optimizer, "SGD"), None) is None:
        pytest.skip("this Keras has no such optimizer")
    overflows = optimizer == "steps left out"
    model = compiled(OPTIMIZERS[optimizer](), jit_compile=False, loss_weights=[20.0 if overflows else 1.0])
    end = {"accumulation": 6, "steps left out": 4}.get(optimizer, STEPS)
    schedule = PolynomialDecay(0.1, 0.75, begin_step=1, end_step=end, frequency=3)
    prune = FilterPruning(schedule)
    watch = fit(model, prune)
    asked = expected(STEPS, schedule)
    assert watch.steps[-1] in (range(4, STEPS) if overflows else (end,)) and watch.revived == 0
    assert watch.counts == [asked[step] for step in watch.steps]
    for name in ("hidden", "inner", "logits"):
        variable = model.get_layer(name).kernel
        average = average_of(model.optimizer, variable)
        assert average is None or not average.numpy()[variable.numpy() == 0].any()
    small = prune.shrink()
    assert [small.get_layer("hidden").units, small.get_layer("inner").units] == [4, 2] and same(small, model)


@pytest.mark.sweep(2)
@pytest.mark.plain_fit
@pytest.mark.parametrize("options", [{}, {"criterion": "taylor"}, {"regularizer": "depgraph"}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_of_execution(mode, options):
    model = compiled(O.SGD(0.1, momentum=0.9), **MODES[mode])
    watch = fit(model, FilterPruning(SCHEDULE, **options))
    asked = expected(STEPS)
    assert watch.counts == [asked[step] for step in watch.steps] and watch.revived == 0 and watch.steps[-1] == STEPS


def test_the_contract_fails_without_the_callback_and_when_the_constraint_is_lost():
    assert fit(compiled()).counts[-1] == [0, 0]

    class Lose(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("inner").kernel.constraint.projections = []
                self.model.make_train_function(force=True)

    model, prune = compiled(), FilterPruning(ConstantSparsity(0.5, 0))
    assert fit(model, prune, Lose()).revived > 0


@pytest.mark.sweep(1)
@pytest.mark.parametrize("feed", FEEDS)
def test_from_every_kind_of_data(feed):
    model, watch = compiled(), Watch()
    model.fit(**FEEDS[feed](), epochs=2, verbose=0, callbacks=[FilterPruning(SCHEDULE), watch])
    assert watch.counts == expected(STEPS)[1:] and watch.revived == 0


def own_loop(model, prune, step):
    """Train by hand, as the docstring of `FilterPruning` says."""
    watch = Watch()
    watch.set_model(model)
    prune.set_model(model)
    prune.on_train_begin()
    for number in range(STEPS):
        step(*Batches()[number % 6])
        prune.on_train_batch_end(number)
        watch.on_train_batch_end(number)
    prune.on_train_end()
    return watch


@pytest.mark.sweep(1)
@pytest.mark.parametrize("kind", ["train_on_batch", "eager", "traced"])
def test_in_a_loop_of_ones_own(kind):
    model = compiled(O.SGD(0.1, momentum=0.9))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, [weight.value for weight in weights]), weights)

    steps = {"train_on_batch": model.train_on_batch, "eager": step, "traced": tf.function(step)}
    prune = FilterPruning(SCHEDULE, "taylor", regularizer={"group_lasso": {"strength": 1e-3}})
    watch = own_loop(model, prune, steps[kind])
    assert watch.counts == expected(STEPS)[1:] and watch.revived == 0 and same(prune.shrink(), model)
    assert "apply" not in vars(model.optimizer)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"], indirect=True)
def test_in_every_precision(policy):
    model = compiled(O.SGD(0.1, momentum=0.9, use_ema=True), jit_compile=False)
    prune = FilterPruning(SCHEDULE, "taylor", regularizer="depgraph")
    watch = fit(model, prune)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert watch.counts == expected(STEPS)[1:] and watch.revived == 0
    assert np.isfinite(model.get_layer("hidden").kernel.numpy()).all()
    assert same(prune.shrink(), model, tolerance=0.03)


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.sweep(1)
@pytest.mark.parametrize("criterion", ["l1", "random", "taylor"])
def test_a_model_saved_with_its_optimizer_goes_on_where_it_was(tmp_path, criterion):
    model = compiled()
    with pytest.warns(UserWarning, match=r"reaches 0\.75 at step 12"):
        first = fit(model, FilterPruning(SCHEDULE, criterion), epochs=1)
    model.save(tmp_path / "half.keras")
    again, prune = keras.models.load_model(tmp_path / "half.keras"), FilterPruning(SCHEDULE, criterion, seed=1)
    before = gone(again)
    watch = fit(again, prune, epochs=1)
    assert first.counts + watch.counts == expected(STEPS)[1:] and watch.revived == 0
    assert all((new | ~old).all() for old, new in zip(before, gone(again), strict=True))
    assert same(prune.shrink(), again)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
def test_backup_and_restore_goes_on_where_it_was(tmp_path, first):
    def callbacks(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        prune = FilterPruning(PolynomialDecay(0.25, 0.75, 0, STEPS, frequency=3), "random")
        return [*([backup, prune] if first else [prune, backup]), *more]

    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks(Stop()))
    before = gone(model)
    again = compiled()
    for name in ("hidden", "inner"):  # another beginning: what is pruned before the backup is read is forgotten
        again.get_layer(name).kernel.assign(np.random.default_rng(1).normal(size=again.get_layer(name).kernel.shape))
    watch = fit(again, *callbacks())
    assert watch.steps[0] == 7 and watch.counts[-1] == share(0.75) and watch.revived == 0
    assert all((new | ~old).all() for old, new in zip(before, gone(again), strict=True))


def test_what_a_broken_off_fit_held_is_let_go_by_the_next_callback():
    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, FilterPruning(ConstantSparsity(0.75, 2), "taylor", regularizer="depgraph"), Stop())
    assert [int(one.sum()) for one in gone(model)] == share(0.75)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))  # as a user who begins again would
    fit(model, FilterPruning(ConstantSparsity(0.25, 0)))
    assert [int(one.sum()) for one in gone(model)] == share(0.25)
    assert all(variable.constraint is None for variable in model.trainable_variables)
    assert "apply" not in vars(model.optimizer)


# ---- frozen layers ---------------------------------------------------------------------------------------------------


class Freeze(keras.callbacks.Callback):
    """Freeze or unfreeze a layer before the second epoch."""

    def __init__(self, name, trainable):
        super().__init__()
        self.name, self.trainable, self.seen = name, trainable, None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.seen = [weight.numpy() for weight in self.model.get_layer(self.name).weights]
            self.model.get_layer(self.name).trainable = self.trainable
            self.model.make_train_function(force=True)


def test_weights_of_a_frozen_layer_are_not_touched_and_what_it_makes_may_go():
    model = compiled()
    model.get_layer("hidden").trainable = False
    model.compile("adam", LOSS)
    before = model.get_layer("hidden").kernel.numpy()
    prune = FilterPruning(SCHEDULE)
    fit(model, prune)
    np.testing.assert_array_equal(model.get_layer("hidden").kernel.numpy(), before)
    assert [(g.name, g.kept) for g in prune.plan.groups] == [("hidden", 4), ("inner", 2)]
    assert same(prune.shrink(), model)


def test_channels_that_a_frozen_layer_sums_over_stay():
    model = compiled()
    model.get_layer("inner").trainable = False
    model.compile("adam", LOSS)
    before = [weight.numpy() for weight in model.get_layer("inner").weights]
    prune = FilterPruning(SCHEDULE)
    fit(model, prune)
    assert all((a == b.numpy()).all() for a, b in zip(before, model.get_layer("inner").weights, strict=True))
    assert [(g.name, g.kept) for g in prune.plan.groups] == [("inner", 2)]
    assert "'inner/kernel' sums over them and is not trained" in prune.plan.frozen["hidden"]
    assert same(prune.shrink(), model)


def test_a_model_of_which_no_channel_may_go_is_refused():
    model = compiled()
    for name in ("inner", "logits"):
        model.get_layer(name).trainable = False
    with pytest.raises(KpipeError, match=r"no channel of .* may go: .*inner: 'logits/kernel' sums over them"):
        fit(model, FilterPruning(SCHEDULE))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_is_frozen_midway_is_left_as_it_is(first):
    model, freeze, prune = compiled(), Freeze("inner", False), FilterPruning(SCHEDULE)
    watch = fit(model, *([freeze, prune] if first else [prune, freeze]))
    asked = expected(STEPS)
    for seen, now in zip(freeze.seen, model.get_layer("inner").weights, strict=True):
        np.testing.assert_array_equal(seen, now.numpy())
    assert watch.counts[5] == asked[6] and watch.counts[-1][0] == asked[6][0] and watch.revived == 0
    assert [(g.name, len(g.removed)) for g in prune.plan.groups] == [("hidden", asked[6][0]), ("inner", asked[-1][1])]
    assert same(prune.shrink(), model)


def test_a_layer_that_is_unfrozen_midway_is_pruned_from_then_on():
    model = compiled(O.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    model.get_layer("inner").trainable = False
    prune = FilterPruning(PolynomialDecay(0.0, 0.75, 0, 4), "taylor")
    watch = fit(model, Freeze("inner", True), prune)
    assert watch.counts[5][0] == 0 and watch.counts[-1] == share(0.75) and watch.revived == 0
    assert same(prune.shrink(), model)


@pytest.mark.slow
def test_what_has_gone_of_a_frozen_layer_is_known_when_it_is_unfrozen_and_fit_again():
    model, prune = compiled(), FilterPruning(ConstantSparsity(0.5, 0))
    model.get_layer("hidden").trainable = False
    model.compile("adam", LOSS)
    fit(model, prune)
    first = [g.removed for g in prune.plan.groups]
    model.get_layer("hidden").trainable = True
    model.compile("adam", LOSS)
    fit(model, prune)
    assert [g.removed for g in prune.plan.groups] == first and len(first[0]) == 8
    assert [int(one.sum()) for one in gone(model)] == share(0.5) and same(prune.shrink(), model)


# ---- gradients of the training ---------------------------------------------------------------------------------------


def test_gradients_are_gathered_in_the_train_step():
    """The channels that taylor drops are those of the mean gradient over the batches, by hand."""
    model = compiled(O.SGD(0.0), run_eagerly=True)
    hidden, inner, bn, logits = (model.get_layer(name) for name in ("hidden", "inner", "bn", "logits"))
    weights = [hidden.kernel, hidden.bias, inner.kernel, inner.bias, bn.gamma, bn.beta, logits.kernel]
    with tf.GradientTape() as tape:
        means = []
        for index in range(6):
            x, y = Batches()[index]
            means.append(LOSS(y, model(x, training=True)))
        total = tf.add_n(means) / 6
    grads = tape.gradient(total, [w.value for w in weights])
    scores = [np.abs(w.numpy() * g.numpy()) for w, g in zip(weights, grads, strict=True)]
    of_hidden = scores[0].sum(0) + scores[1] + scores[2].sum(1)
    of_inner = scores[2].sum(0) + scores[3] + scores[4] + scores[5] + scores[6].sum(1)
    prune = FilterPruning(ConstantSparsity(0.5, 6), "taylor")
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False, callbacks=[prune])
    assert [g.removed for g in prune.plan.groups] == [
        tuple(np.sort(np.argsort(one)[: len(one) // 2])) for one in (of_hidden, of_inner)
    ]


def test_the_first_update_waits_for_gradients_and_movement_is_followed():
    watch = fit(compiled(), FilterPruning(ConstantSparsity(0.5, 0), "taylor"))
    assert watch.counts == [share(0.5)] * STEPS
    model, prune = compiled(), FilterPruning(SCHEDULE, "movement")
    assert fit(model, prune).counts == expected(STEPS)[1:] and same(prune.shrink(), model)
