"""Wrapped layers while a model trains: exact zeros at every step, steps that are saved, and loops of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import optimizers as O

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.legacy import tfmot
from kpipe.projections import average_of
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers, strip_pruning

RAMP = PolynomialDecay(0.0, 0.8, begin_step=2, end_step=9, frequency=3)  # updates at 2, 5, 8 and 9
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 6)).astype("float32"), RNG.normal(size=(96, 4)).astype("float32")


class Watch(keras.callbacks.Callback):
    """Note the zeros of every masked weight after each batch, and that no entry that was zero comes back."""

    def __init__(self):
        super().__init__()
        self.zeros, self.gone = [], {}

    def on_train_batch_end(self, batch, logs=None):
        row = []
        for known in (known for layer in pruned_layers(self.model) for known in layer.masked):
            zero = known.weight.numpy() == 0
            assert zero[self.gone.get(known.weight.path, np.zeros_like(zero))].all(), known.weight.path
            assert not known.weight.numpy()[~known.mask.numpy()].any()
            self.gone[known.weight.path] = zero
            row.append(int(zero.sum()))
        self.zeros.append(row)


def network(schedule=RAMP, optimizer="sgd", policy="float32", seed=0, **compiled):
    keras.utils.set_random_seed(seed)
    layers = [L.Dense(16, "relu", dtype=policy), L.Dense(4, dtype=policy)]
    model = prune_low_magnitude(keras.Sequential([keras.Input((6,)), *layers]), schedule)
    model.compile(O.get(optimizer), "mse", **compiled)
    return model


def fit(model, epochs=1, batch=8, callbacks=()):
    watch = Watch()
    given = [UpdatePruningStep(), watch, *callbacks]
    model.fit(X, Y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0, callbacks=given)
    return watch.zeros


def asked(schedule, steps, sizes=(96, 64)):
    """Count by the formula of TFMOT what is dropped after each training step, from 1 on."""
    rows, sparsity = [], 0.0
    for step in range(1, steps + 1):
        due, now = schedule(step)
        sparsity = now if due else sparsity
        rows.append([size - max(int(np.round(size * np.float32(1 - np.float32(sparsity)))), 1) for size in sizes])
    return rows


# ---- every step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adam", "jit_compile": True},
        {"optimizer": "adam", "run_eagerly": True},
        {"optimizer": O.SGD(0.1, momentum=0.9, nesterov=True)},
        {"optimizer": O.AdamW(0.01, clipnorm=1.0)},
        {"optimizer": O.Adam(0.01, gradient_accumulation_steps=2)},
        {"optimizer": O.LossScaleOptimizer(O.Adam(0.01)), "policy": "mixed_float16"},
        {"optimizer": "lion", "policy": "mixed_bfloat16"},
    ],
    ids=["sgd", "jit", "eager", "momentum", "clipped", "accumulated", "float16", "bfloat16"],
)
def test_zeros_are_exact_after_every_step(options):
    assert fit(network(**options)) == asked(RAMP, 12)


@pytest.mark.parametrize(("executed", "ends"), [(4, (4, 8, 12)), (5, (5, 10, 12))], ids=["even", "cut short"])
def test_several_steps_an_execution_are_counted(executed, ends):
    model = network(steps_per_execution=executed)
    expected = asked(RAMP, 12)
    assert fit(model) == [expected[end - 1] for end in ends]
    assert [int(layer.pruning_step) for layer in model.layers] == [12, 12]


def test_averages_of_the_optimizer_are_sparse_too():
    model = network(optimizer=O.Adam(0.01, use_ema=True, ema_overwrite_frequency=4))
    assert fit(model) == asked(RAMP, 12)
    for known in (known for layer in model.layers for known in layer.masked):
        assert not average_of(model.optimizer, known.weight).numpy()[~known.mask.numpy()].any()


def test_a_constraint_of_ones_own_is_applied_before_the_mask():
    dense = L.Dense(4, kernel_constraint=keras.constraints.NonNeg())
    model = prune_low_magnitude(keras.Sequential([keras.Input((6,)), dense]), RAMP)
    model.compile("sgd", "mse")
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[UpdatePruningStep()])
    kernel = model.layers[0].layer.kernel.numpy()
    assert (kernel >= 0).all() and (kernel > 0).any()
    assert not kernel[~model.layers[0].masked[0].mask.numpy()].any()


def test_zeros_hold_without_the_callback_once_it_has_begun():
    model = network()
    fit(model)
    before = [known.mask.numpy() for layer in model.layers for known in layer.masked]
    for _ in range(3):
        model.train_on_batch(X, Y)
    for keep, known in zip(before, (known for layer in model.layers for known in layer.masked), strict=True):
        np.testing.assert_array_equal(known.mask.numpy(), keep)
        assert not known.weight.numpy()[~keep].any()


def test_an_unbuilt_model_is_pruned_from_its_first_step_on():
    model = prune_low_magnitude(keras.Sequential([L.Dense(16), L.Dense(4)]), ConstantSparsity(0.5, 0, frequency=1))
    model.compile("sgd", "mse")
    assert fit(model) == [[48, 32]] * 12
    assert [int(layer.pruning_step) for layer in model.layers] == [12, 12]


def test_layers_wrapped_in_a_subclassed_model():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one = prune_low_magnitude(L.Dense(16), RAMP)
            self.two = prune_low_magnitude(L.Dense(4), RAMP)

        def call(self, x):
            return self.two(self.one(x))

    model = Net()
    model.compile("sgd", "mse")
    assert fit(model) == asked(RAMP, 12)


# ---- when ------------------------------------------------------------------------------------------------------------


def test_a_schedule_in_epochs():
    schedule = PolynomialDecay.over_epochs(final_sparsity=0.5, begin=0.25, end=0.75, updates_per_epoch=4)
    assert fit(network(schedule)) == asked(schedule.in_steps(12), 12)
    callback = UpdatePruningStep()
    callback.set_model(network(schedule))
    with pytest.raises(KpipeError, match="counts epochs"):
        callback.on_train_begin()


def test_a_schedule_that_answers_with_tensors():
    class Sudden(tfmot.PruningSchedule):
        def __call__(self, step):
            return tf.equal(tf.cast(step, tf.float32), 3.0), tf.constant(0.5)

        def get_config(self):
            return {"class_name": "Sudden", "config": {}}

    assert fit(network(Sudden())) == [[0, 0]] * 2 + [[48, 32]] * 10


@pytest.mark.parametrize("steps", [1, 99, 100])
def test_the_default_schedule_prunes_at_step_100_and_says_when_it_does_not(steps):
    model = network(ConstantSparsity(0.5, 0))
    data = (X[:1].repeat(steps, 0), Y[:1].repeat(steps, 0))
    if steps == 100:
        model.fit(*data, batch_size=1, verbose=0, callbacks=[UpdatePruningStep()])
    else:
        with pytest.warns(NoEffectWarning, match=f"no update from step 1 to {steps}, the next would be at step 100"):
            model.fit(*data, batch_size=1, verbose=0, callbacks=[UpdatePruningStep()])
    assert model.layers[0].masked[0].dropped == (48 if steps == 100 else 0)


def test_a_training_that_ends_before_its_schedule_says_so():
    with pytest.warns(UserWarning, match=r"ended at step 12, before .* reaches 0.8 at step 40"):
        fit(network(PolynomialDecay(0.1, 0.8, 0, 40, frequency=2)))


def test_a_model_without_wrappers_and_weights_that_cannot_have_the_pattern_are_named():
    plain = keras.Sequential([keras.Input((6,)), L.Dense(4)])
    plain.compile("sgd", "mse")
    with pytest.warns(NoEffectWarning, match="found no wrapped layer"):
        plain.fit(X, Y, verbose=0, callbacks=[UpdatePruningStep()])
    narrow = keras.Sequential([keras.Input((6,)), L.Dense(1), L.Dense(8), L.Dense(4)])
    model = prune_low_magnitude(narrow, ConstantSparsity(0.5, 0, frequency=1), sparsity_m_by_n=(2, 4))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"leaves weights dense \(.*keeps 2 of each group, and it sums over 1"):
        model.fit(X, Y, verbose=0, callbacks=[UpdatePruningStep()])
    assert [len(layer.masked) for layer in model.layers] == [1, 0, 1]


def test_what_was_zero_before_stays_and_is_not_less_than_asked():
    model = keras.Sequential([keras.Input((6,)), L.Dense(16), L.Dense(4)])
    kernel = model.layers[0].kernel
    sparse = np.where(np.random.default_rng(0).random(kernel.shape) < 0.8, 0, kernel.numpy())
    kernel.assign(sparse)
    model = prune_low_magnitude(model, ConstantSparsity(0.5, 3, frequency=1))
    model.compile("sgd", "mse")
    zeros = fit(model)
    assert zeros == [[int((sparse == 0).sum()), count] for count in [0] * 2 + [32] * 10]


def test_a_frozen_layer_is_left_until_it_thaws():
    model = network(ConstantSparsity(0.5, 0, frequency=1))
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    assert fit(model)[-1] == [0, 32]
    model.layers[0].trainable = True
    model.compile("sgd", "mse")
    assert fit(model)[-1] == [48, 32]


# ---- going on --------------------------------------------------------------------------------------------------------


def masks(model):
    return [known.mask.numpy() for layer in pruned_layers(model) for known in layer.masked]


def test_a_loaded_model_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, halves = network(optimizer="adam"), network(optimizer="adam")
    fit(whole, batch=8)
    part = {"batch_size": 8, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match="ended at step 6"):
        halves.fit(X[:48], Y[:48], callbacks=[UpdatePruningStep()], **part)
    halves.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [int(layer.pruning_step) for layer in loaded.layers] == [6, 6]
    loaded.fit(X[48:], Y[48:], callbacks=[UpdatePruningStep()], **part)
    for ours, theirs in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for ours, theirs in zip(masks(loaded), masks(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_fit_after_a_fit_goes_on():
    schedule = PolynomialDecay(0.0, 0.8, begin_step=2, end_step=20, frequency=3)
    model = network(schedule)
    with pytest.warns(UserWarning, match="ended at step 12"):
        first = fit(model)
    assert first + fit(model) == asked(schedule, 24)


def test_a_backup_that_another_callback_restores_is_gone_on_from(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise InterruptedError

    schedule = PolynomialDecay(0.0, 0.8, begin_step=2, end_step=20, frequency=3)
    backup = lambda: keras.callbacks.BackupAndRestore(tmp_path / "backup")  # noqa: E731
    with pytest.raises(InterruptedError):
        fit(network(schedule), epochs=2, callbacks=[backup(), Stop()])
    again = network(schedule, seed=1)
    zeros = fit(again, epochs=2, callbacks=[backup()])
    assert zeros[-1] == asked(schedule, 24)[-1] and len(zeros) == 12
    assert [int(layer.pruning_step) for layer in again.layers] == [24, 24]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_checkpoints_are_sparse_wherever_the_callback_stands(first, tmp_path):
    model = network(ConstantSparsity(0.5, 0, frequency=1))
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=5)
    pair = [keep, UpdatePruningStep()] if first else [UpdatePruningStep(), keep]
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=pair)
    files = sorted(tmp_path.glob("*.keras"))
    assert len(files) == 2
    for file in files:
        plain = strip_pruning(keras.models.load_model(file))
        assert [int((weight == 0).sum()) for weight in plain.get_weights()[::2]] == [48, 32]


# ---- loops of one's own ----------------------------------------------------------------------------------------------


def step(model, optimizer):
    """Train a step by hand."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
def test_a_loop_of_ones_own(compiled):
    model, optimizer, callback = network(), O.Adam(0.01), UpdatePruningStep()
    model.optimizer = optimizer
    optimizer.build(model.trainable_variables)
    callback.set_model(model)
    callback.on_train_begin()
    take = tf.function(step) if compiled else step
    zeros = []
    for batch in range(12):
        callback.on_train_batch_begin(batch)
        take(model, optimizer)
        zeros.append([int((layer.layer.kernel.numpy() == 0).sum()) for layer in model.layers])
    callback.on_epoch_end(batch=0)
    assert zeros == asked(RAMP, 12)


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "no step"])
def test_a_training_call_without_the_callback_fails_and_says_what_to_do(begun):
    model = network()
    if begun:
        callback = UpdatePruningStep()
        callback.set_model(model)
        callback.on_train_begin()
    compiled = network(jit_compile=True)
    calls = [lambda: model(X, training=True), lambda: model.fit(X, Y, verbose=0), lambda: compiled.fit(X, Y, verbose=0)]
    for call in calls:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"prune_low_magnitude_dense.*UpdatePruningStep\(\)"):
            call()
    model.evaluate(X, Y, verbose=0)
    keras.Model(x := keras.Input((6,)), model(x, training=True))


def test_the_callback_without_a_model_says_so():
    with pytest.raises(KpipeError, match="has no model yet"):
        UpdatePruningStep().on_train_begin()


def test_a_distillers_student_is_pruned():
    teacher = keras.Sequential([keras.Input((6,)), L.Dense(4)])
    student = prune_low_magnitude(keras.Sequential([keras.Input((6,)), L.Dense(4)]), RAMP)
    distiller = keras.distillation.Distiller(teacher, student, keras.distillation.LogitsDistillation())
    distiller.compile("sgd", "mse")
    distiller.fit(X, Y, batch_size=8, verbose=0, callbacks=[UpdatePruningStep()])
    assert student.layers[0].masked[0].dropped == asked(RAMP, 12, (24,))[-1][0]
