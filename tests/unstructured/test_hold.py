"""Where weight pruning must hold: exact zeros after every step, and the exact number of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.projections import average_of, kernels
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured import WeightPruning

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (192, 64)
STEPS = 12  # of two epochs of batches of 8
SCHEDULE = PolynomialDecay(0.1, 0.8, begin_step=1, end_step=STEPS, frequency=3)


def compiled(optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "relu", name="hidden"), keras.layers.Dense(4, name="logits")]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile(optimizer, LOSS, **options)
    return model


def expected(steps, schedule=SCHEDULE):
    """Give the zeros of each kernel after each step: those of the last update that was due."""
    found, sparsity = [], 0.0
    for step in range(steps + 1):
        due, asked = schedule(step)
        sparsity = asked if due else sparsity
        found.append([round(sparsity * size) for size in SIZES])
    return found


class Watch(keras.callbacks.Callback):
    """After every batch: the zeros of each kernel, and whether any that was zero has come back."""

    def __init__(self):
        super().__init__()
        self.zeros, self.steps, self.revived, self._before = [], [], 0, None

    def on_train_batch_end(self, batch, logs=None):
        now = [variable.numpy() == 0 for variable in kernels(self.model)]
        before = self._before or [np.zeros_like(zero) for zero in now]
        self.revived += sum(int((old & ~new).sum()) for old, new in zip(before, now, strict=True))
        self.zeros.append([int(zero.sum()) for zero in now])
        self.steps.append(int(self.model.optimizer.iterations.numpy()))
        self._before = now


def fit(model, *callbacks, epochs=2, **options):
    watch = Watch()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch


def multi():
    averaged = keras.optimizers.Adam(0.01, use_ema=True)
    by_path = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1, momentum=0.9), {"hidden/.*": averaged})
    return keras.optimizers.MultiOptimizer(by_path)


O = keras.optimizers  # noqa: E741
OPTIMIZERS = {
    "sgd momentum": lambda: O.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: O.Adam(0.01),
    "adamw, clipnorm": lambda: O.AdamW(0.01, weight_decay=0.1, clipnorm=0.1),
    "lion, global clipnorm": lambda: O.Lion(0.01, weight_decay=0.1, global_clipnorm=0.1),
    "muon": lambda: O.Muon(0.01, exclude_layers=["logits"]),  # the hidden layer by Muon's rule, the other by Adam's
    "schedule-free adamw": lambda: O.ScheduleFreeAdamW(0.01),
    "averages": lambda: O.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "averages written back": lambda: O.SGD(0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=5),
    "accumulation": lambda: O.Adam(0.01, gradient_accumulation_steps=2),
    "steps left out": lambda: O.LossScaleOptimizer(O.SGD(1e-3, momentum=0.9), initial_scale=3.4e38),
    "several": multi,
}
NEEDS = {"muon": "Muon", "schedule-free adamw": "ScheduleFreeAdamW", "several": "MultiOptimizer"}
MODES = {
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "three steps an execution": {"steps_per_execution": 3},
    "xla, five steps an execution": {"jit_compile": True, "steps_per_execution": 5},
}


@pytest.mark.sweep(3)
@pytest.mark.plain_fit
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer(optimizer):
    if getattr(keras.optimizers, NEEDS.get(optimizer, "SGD"), None) is None:
        pytest.skip("this Keras has no such optimizer")
    overflows = optimizer == "steps left out"
    model = compiled(OPTIMIZERS[optimizer](), jit_compile=False, loss_weights=[20.0 if overflows else 1.0])
    end = {"accumulation": 6, "steps left out": 5}.get(optimizer, STEPS)
    schedule = PolynomialDecay(0.1, 0.8, begin_step=1, end_step=end, frequency=3)
    before = [variable.numpy() for variable in kernels(model)]
    watch = fit(model, WeightPruning(schedule))
    asked = expected(STEPS, schedule)
    assert watch.steps[-1] in (range(5, STEPS) if overflows else (end,)) and watch.revived == 0
    assert watch.zeros == [asked[step] for step in watch.steps]
    for variable, old in zip(kernels(model), before, strict=True):
        value, average = variable.numpy(), average_of(model.optimizer, variable)
        assert int((value == 0).sum()) == round(0.8 * value.size) and (value != old).all()
        assert average is None or not average.numpy()[value == 0].any()


@pytest.mark.sweep(2)
@pytest.mark.plain_fit
@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_of_execution(mode):
    model = compiled(O.SGD(0.1, momentum=0.9), **MODES[mode])
    watch = fit(model, WeightPruning(SCHEDULE))
    asked = expected(STEPS)
    assert watch.zeros == [asked[step] for step in watch.steps] and watch.revived == 0 and watch.steps[-1] == STEPS


def test_the_contract_fails_without_the_callback_and_when_the_constraint_is_lost():
    model = compiled()
    assert fit(model).zeros[-1] != expected(STEPS)[-1]

    class Lose(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for variable in kernels(self.model) if epoch == 1 else ():
                variable.constraint.projections = []
            self.model.make_train_function(force=True)

    watch = fit(compiled(), WeightPruning(SCHEDULE), Lose())
    assert watch.revived > 0


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


def generator():
    for _ in range(2):
        for index in range(6):
            yield Batches()[index]


FEEDS = {
    "tf.data": lambda: {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), "shuffle": False},
    "generator": lambda: {"x": generator(), "steps_per_epoch": 6, "shuffle": False},
    "pydataset": lambda: {"x": Batches()},
}


@pytest.mark.parametrize("feed", FEEDS)
def test_from_every_kind_of_data(feed):
    model, watch = compiled(), Watch()
    model.fit(**FEEDS[feed](), epochs=2, verbose=0, callbacks=[WeightPruning(SCHEDULE), watch])
    assert watch.zeros == expected(STEPS)[1:] and watch.revived == 0


def own_loop(model, prune, step):
    """Train by hand, as the docstring of `WeightPruning` says."""
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


def test_in_a_loop_of_train_on_batch():
    model = compiled()
    watch = own_loop(model, WeightPruning(SCHEDULE), model.train_on_batch)
    assert watch.zeros == expected(STEPS)[1:] and watch.revived == 0


@pytest.mark.parametrize("compile_step", [lambda step: step, tf.function], ids=["eager", "traced"])
def test_in_a_loop_of_ones_own(compile_step):
    model = compiled(O.SGD(0.1, momentum=0.9))
    optimizer = model.optimizer

    @compile_step
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [weight.value for weight in weights]), weights)

    watch = own_loop(model, WeightPruning(SCHEDULE), step)
    assert watch.zeros == expected(STEPS)[1:] and watch.revived == 0


class Freeze(keras.callbacks.Callback):
    """Freeze or unfreeze the hidden layer before the second epoch."""

    def __init__(self, trainable):
        super().__init__()
        self.trainable, self.seen = trainable, None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.seen = self.model.layers[0].kernel.numpy()
            self.model.layers[0].trainable = self.trainable
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_is_frozen_midway_is_left_as_it_is(first):
    model, freeze, prune = compiled(), Freeze(False), WeightPruning(SCHEDULE)
    watch = fit(model, *([freeze, prune] if first else [prune, freeze]))
    asked = expected(STEPS)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), freeze.seen)
    assert watch.zeros[5] == asked[6] and watch.zeros[-1] == [asked[6][0], asked[-1][1]] and watch.revived == 0
    if first:
        assert "frozen" in next(str(row.reason) for row in prune.report().skipped if row.path.endswith("hidden/kernel"))


def test_a_layer_that_is_unfrozen_midway_is_pruned_from_then_on():
    model = compiled(O.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    watch = fit(model, Freeze(True), WeightPruning(SCHEDULE))
    assert watch.zeros[5] == [0, expected(STEPS)[6][1]]
    assert watch.zeros[6:] == expected(STEPS)[7:] and watch.revived == 0


def test_a_layer_that_is_frozen_and_unfrozen_between_fits():
    model, prune = compiled(), WeightPruning(PolynomialDecay(0.1, 0.8, 0, 18, frequency=3))
    asked = expected(18, prune.schedules[None])
    with pytest.warns(UserWarning, match="reaches 0.8 at step 18"):
        fit(model, prune, epochs=1)
    for trainable, now in ((False, [asked[6][0], asked[12][1]]), (True, asked[18])):
        model.layers[0].trainable = trainable
        steps = model.optimizer.iterations.numpy()
        model.compile("adam", LOSS)
        model.optimizer.iterations.assign(steps)
        if trainable:
            fit(model, prune, epochs=1)
        else:
            with pytest.warns(UserWarning, match="reaches 0.8 at step 18"):
                fit(model, prune, epochs=1)
        assert [int((variable.numpy() == 0).sum()) for variable in kernels(model)] == now


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def test_a_model_saved_with_its_optimizer_goes_on_where_it_was(tmp_path):
    model = compiled()
    with pytest.warns(UserWarning, match="reaches 0.8 at step 12"):
        first = fit(model, WeightPruning(SCHEDULE), epochs=1)
    model.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    zero = [variable.numpy() == 0 for variable in kernels(again)]
    watch = fit(again, WeightPruning(SCHEDULE), epochs=1)
    assert first.zeros + watch.zeros == expected(STEPS)[1:] and watch.revived == 0
    assert all(not variable.numpy()[old].any() for variable, old in zip(kernels(again), zero, strict=True))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("save_freq", ["epoch", 4])
def test_backup_and_restore_goes_on_where_it_was(tmp_path, save_freq, first):
    def callbacks(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=save_freq)
        prune = WeightPruning(SCHEDULE)
        return [*([backup, prune] if first else [prune, backup]), *more]

    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), *callbacks(Stop()))
    again = compiled()
    watch = fit(again, *callbacks())
    assert watch.steps[0] == (7 if save_freq == "epoch" else 5)
    zeros = [int((variable.numpy() == 0).sum()) for variable in kernels(again)]
    assert zeros == expected(STEPS)[-1] and watch.revived == 0 and sum(watch.zeros[0]) >= sum(expected(4)[-1])


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
def test_every_checkpoint_is_sparse(tmp_path, first):
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=1)
    prune = WeightPruning(SCHEDULE)
    fit(compiled(), *([save, prune] if first else [prune, save]))
    asked = expected(STEPS)
    for path in tmp_path.iterdir():
        epoch, batch = map(int, path.stem.split("-"))
        step = 6 * (epoch - 1) + batch
        zeros = [int((variable.numpy() == 0).sum()) for variable in kernels(keras.models.load_model(path))]
        # Saved before the update at this step, a file has the zeros of the update before, and all of them.
        assert zeros == asked[step - 1 if first else step], path.stem
    assert len(list(tmp_path.iterdir())) == STEPS


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("on_epoch", [True, False])
def test_averages_that_are_swapped_in_are_sparse(on_epoch, first):
    model = compiled(O.Adam(0.01, use_ema=True, ema_momentum=0.9))
    swap, prune, seen = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch), WeightPruning(SCHEDULE), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([int((variable.numpy() == 0).sum()) for variable in kernels(self.model)])

        def on_test_batch_end(self, batch, logs=None):
            seen.append([int((variable.numpy() == 0).sum()) for variable in kernels(self.model)])

    callbacks = [swap, prune] if first else [prune, swap]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, validation_data=(X[:8], Y[:8]), callbacks=[*callbacks, Look()])
    asked = expected(STEPS)
    assert seen == [asked[6], asked[6], asked[12], asked[12]]
    assert [int((variable.numpy() == 0).sum()) for variable in kernels(model)] == asked[12]


def test_inference_changes_no_weight():
    class Predict(keras.callbacks.Callback):
        same = True

        def on_train_batch_end(self, batch, logs=None):
            before = self.model.get_weights()
            self.model.predict(X[:8], verbose=0)
            self.model.evaluate(X[:8], Y[:8], verbose=0)
            self.same &= all((a == b).all() for a, b in zip(before, self.model.get_weights(), strict=True))

    model, predict = compiled(), Predict()
    kernels(model)[0].assign(np.ones((12, 16)))
    fit(model, predict, WeightPruning(ConstantSparsity(0.5, 4)), epochs=1)
    before = model.get_weights()
    model.predict(X, verbose=0)
    assert predict.same and all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
