"""Wrapped models that are trained on: loaded, restored, in a second fit, and in loops of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import optimizers as O

from kpipe.errors import KpipeError
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.wrapping import prune_low_magnitude, pruned_layers, strip_pruning
from tests.unstructured.wrapped_training import RAMP, X, Y, asked, fit, network

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


def test_groups_are_whole_at_the_first_update_however_long_the_schedule():
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = prune_low_magnitude(plain, PolynomialDecay(0.0, 0.8, 1, 1000, frequency=2), sparsity_m_by_n=(2, 4))
    model.compile("sgd", "mse")
    model.fit(np.ones((16, 8)), np.ones((16, 4)), batch_size=4, verbose=0, callbacks=[UpdatePruningStep()])
    assert int((model.layers[0].layer.kernel.numpy() == 0).sum()) == 16  # and no warning of a schedule not reached


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
