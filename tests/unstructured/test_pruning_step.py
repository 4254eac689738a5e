"""Wrapped layers while a model trains: exact zeros at every step, at the steps at which a schedule says so."""

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
from kpipe.unstructured.wrapping import prune_low_magnitude
from tests.unstructured.wrapped_training import RAMP, X, Y, asked, fit, network

# ---- every step ------------------------------------------------------------------------------------------------------


@pytest.mark.sweep(4)
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


@pytest.mark.plain_fit
@pytest.mark.sweep(3)
@pytest.mark.parametrize("use_ema", [False, True], ids=["", "averages"])
@pytest.mark.parametrize("executed", [1, 4, 5])
def test_an_unbuilt_model_is_pruned_from_its_first_step_on(executed, use_ema):
    schedule = PolynomialDecay(0.0, 0.8, begin_step=1, end_step=20, frequency=2)
    model = prune_low_magnitude(keras.Sequential([L.Dense(16), L.Dense(4)]), schedule)
    model.compile(O.SGD(0.1, use_ema=use_ema, ema_overwrite_frequency=None), "mse", steps_per_execution=executed)
    ends = [first + end for first in (0, 12) for end in (*range(executed, 12, executed), 12)]
    expected = asked(schedule, 24)
    assert fit(model, epochs=2) == [expected[end - 1] for end in ends]
    for layer in model.layers:
        assert int(layer.pruning_step) == 24
        for known in layer.masked if use_ema else ():
            assert not average_of(model.optimizer, known.weight).numpy()[~known.mask.numpy()].any()


def test_a_layer_that_is_built_in_the_midst_goes_on_at_the_step_of_the_others():
    class Growing(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = (prune_low_magnitude(L.Dense(4), ConstantSparsity(0.5, 2, frequency=5)) for _ in "12")
            self.one.build((None, 6))

    model, callback, seen = Growing(), UpdatePruningStep(), []
    callback.set_model(model)
    callback.on_train_begin()
    for batch in range(12):
        callback.on_train_batch_begin(batch)
        if batch == 8:
            model.two.build((None, 4))
        callback.on_train_batch_end(batch)
        seen.append([known.dropped for layer in (model.one, model.two) for known in layer.masked])
    assert seen == [[0]] + [[12]] * 7 + [[12, 8]] * 4  # its first update was due at step 2
    assert [int(layer.pruning_step) for layer in (model.one, model.two)] == [12, 12]
    callback.on_epoch_begin(1)
    callback.on_train_batch_begin(0)
    assert [int(layer.pruning_step) for layer in (model.one, model.two)] == [13, 13]


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


def test_a_schedule_is_asked_about_steps_that_there_are():
    class Logarithmic(tfmot.PruningSchedule):
        """Its formula holds from step 1 on; it has no end."""

        def __call__(self, step):
            assert int(step) >= 1
            return True, 0.1 * float(np.log(float(step)))

        def get_config(self):
            return {"class_name": "Logarithmic", "config": {}}

    model = network(Logarithmic())
    sizes = (96, 64)
    assert fit(model)[-1] == [size - round(size * (1 - 0.1 * float(np.log(12)))) for size in sizes]


def test_a_schedule_is_looked_through_once_for_all_layers_that_have_it(monkeypatch):
    steps = []

    class Never(tfmot.PruningSchedule):
        """Equal to every other, as those are that were loaded for each layer from a file."""

        def __call__(self, step):
            steps.append(int(step))
            return False, 0.5

        def __eq__(self, other):
            return isinstance(other, Never)

        def get_config(self):
            return {"class_name": "Never", "config": {}}

    monkeypatch.setattr("kpipe.unstructured.pruning_step._HORIZON", 50)
    model = keras.Sequential([prune_low_magnitude(L.Dense(2), Never()) for _ in range(4)])
    model.compile("sgd", "mse")
    model.build((None, 6))
    with pytest.warns(NoEffectWarning, match="from step 1 to 12, none follows soon"):
        model.fit(X, Y[:, :2], batch_size=8, verbose=0, callbacks=[UpdatePruningStep()])
    assert steps == list(range(1, 63))
