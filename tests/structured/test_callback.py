"""Filter pruning in fit: whole channels at zero after every step, and the smaller model equal to the trained one."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.graph import trace
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.structured import FilterPruning
from tests.models import ZOO, build, samples


def data(model, count=48):
    x = samples(model, count)
    rng = np.random.default_rng(3)
    y = [rng.normal(size=(count, *t.shape[1:])).astype("float32") for t in model.outputs]
    return (x if len(x) > 1 else x[0]), (y if len(y) > 1 else y[0])


def answers(model, x):
    return np.concatenate([np.asarray(y).ravel() for y in keras.tree.flatten(model(x, training=False))])


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ZOO)
def test_shrunk_model_equals_the_trained_one(name):
    model = build(name)
    x, y = data(model)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    prune = FilterPruning(PolynomialDecay(0.0, 0.5, begin_step=0, end_step=8, frequency=3))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[prune])
    small = prune.shrink()
    assert [g.kept for g in prune.plan.groups] == [g.channels - int(g.channels / 2 + 0.5) for g in prune.plan.groups]
    assert small.count_params() < model.count_params()
    scale = max(1.0, float(np.abs(answers(model, x)).max()))
    assert np.abs(answers(small, x) - answers(model, x)).max() < 1e-5 * scale


class Watch(keras.callbacks.Callback):
    """Count, after every batch, how many of conv c's 12 and logits' 12 channels are exact zeros."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.get_layer("c").kernel.numpy()
        consumer = self.model.get_layer("logits").kernel.numpy()
        produced, summed = (kernel == 0).all((0, 1, 2)), (consumer == 0).all(1)
        assert np.array_equal(produced, summed)
        self.seen.append(int(produced.sum()))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("fit", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_channels_go_on_schedule_and_stay_gone(fit):
    model = build("residual")
    x, y = data(model)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **fit)
    watch = Watch()
    prune = FilterPruning(PolynomialDecay(0.0, 0.5, 0, 6, power=1, frequency=2))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[prune, watch], shuffle=False)
    # s(t) = 0.5 t / 6 asked at t = 0, 2, 4, 6: round of 12 s(t) = 0, 2, 4, 6 channels, and then it rests
    assert watch.seen == [0, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6, 6]


def test_without_the_projection_zeros_are_lost():
    model = build("residual")
    x, y = data(model)
    kernel = model.get_layer("c").kernel
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0))
    prune.set_model(model)
    prune.on_train_begin()
    assert (kernel.numpy() == 0).all((0, 1, 2)).sum() == 6
    kernel.constraint = None
    kernel.assign_add(np.full(kernel.shape, 0.1, "float32"))
    model.fit(x, y, verbose=0)
    assert (kernel.numpy() == 0).all((0, 1, 2)).sum() == 0


def test_a_second_fit_goes_on_and_constraints_come_back():
    model = build("dense")
    x, y = data(model)
    model.get_layer("hidden1").kernel.constraint = norm = keras.constraints.MaxNorm(1.0)
    model.compile("sgd", "mse")
    prune = FilterPruning(PolynomialDecay(0.0, 0.5, 0, 12, power=1, frequency=1), round_to=2)
    with pytest.warns(UserWarning, match="ended at step 6, before its schedule reaches .* at step 12"):
        model.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[prune])  # 6 updates
    first = prune.plan.groups[0].removed
    assert len(first) == 4  # 16 * 0.25
    assert model.get_layer("hidden1").kernel.constraint is norm
    model.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[prune])
    assert set(first) < set(prune.plan.groups[0].removed) and len(prune.plan.groups[0].removed) == 8


@pytest.mark.slow
def test_gradient_criteria_and_distillation():
    teacher, student = build("conv_bn"), build("conv_bn", seed=5)
    x, y = samples(teacher, 40)[0], np.arange(40) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller = keras.distillation.Distiller(
        teacher, student, distillation_losses=keras.distillation.LogitsDistillation(temperature=2.0)
    )
    distiller.compile("adam", loss=loss)
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0), criterion="taylor", data=(x, y), loss=loss, round_to=4)
    distiller.fit(x, y, verbose=0, callbacks=[prune])
    small = prune.shrink()
    assert small.get_layer("conv1").filters == 4
    assert np.abs(answers(small, x) - answers(student, x)).max() < 1e-4


def test_faults_and_no_effect():
    with pytest.raises(KpipeError, match=r"needs data \(grad_sq\). Give FilterPruning\(.*kpipe.plan_filters\("):
        FilterPruning(ConstantSparsity(0.5, 0), criterion="fisher")
    with pytest.raises(KpipeError, match="first"):
        FilterPruning(ConstantSparsity(0.5, 0)).shrink()
    model = build("dense")
    x, y = data(model, 8)
    model.compile("sgd", "mse")
    with pytest.warns(NoEffectWarning, match="pruned nothing: training ended at step 1, before begin_step=100"):
        model.fit(x, y, verbose=0, callbacks=[FilterPruning(ConstantSparsity(0.5, begin_step=100))])


def test_a_schedule_that_does_not_meet_the_training_is_said():
    model = build("dense")
    x, y = data(model)
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)  # 12 updates
    over = FilterPruning(PolynomialDecay(0.0, 0.5, begin_step=0, end_step=6, frequency=2))
    with pytest.warns(NoEffectWarning, match="schedule ended at step 6 and this training began at step 12"):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[over])
    short = FilterPruning(PolynomialDecay(0.4, 0.5, begin_step=18, end_step=100, frequency=1))
    with pytest.warns(UserWarning, match="ended at step 24, before its schedule reaches 0.5 at step 100"):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[short])


class Rewind(keras.callbacks.Callback):
    """Put the weights back to what they were before the second epoch, as a restoring callback does."""

    def on_train_begin(self, logs=None):
        self.start = self.model.get_weights()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.set_weights(self.start)
            self.model.optimizer.iterations.assign(0)


def test_weights_that_another_callback_restores_are_masked_again():
    model = build("dense")
    x, y = data(model)
    model.compile("sgd", "mse")
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[Rewind(), prune])
    assert (model.get_layer("hidden2").kernel.numpy() == 0).all(1).sum() == 8
    assert np.abs(answers(prune.shrink(), x) - answers(model, x)).max() < 1e-5


class Restore(keras.callbacks.Callback):
    """Put back at the end what the first epoch gave, as EarlyStopping does with the best one."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.best = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.best)


@pytest.mark.parametrize("first", [True, False])
def test_weights_restored_at_the_end_are_masked_again_or_it_is_said_what_to_do(first):
    model = build("dense")
    x, y = data(model)
    model.compile("sgd", "mse")
    prune = FilterPruning(PolynomialDecay(0.0, 0.5, begin_step=8, end_step=14, frequency=2))  # from the second epoch
    callbacks = [Restore(), prune] if first else [prune, Restore()]
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
    if first:
        assert np.abs(answers(prune.shrink(), x) - answers(model, x)).max() < 1e-5
    else:
        with pytest.raises(SurgeryError, match=r"differs by .*weights have changed since .* before FilterPruning"):
            prune.shrink()


def test_trace_of_a_trained_model_is_that_of_a_fresh_one():
    model = build("residual")
    assert [g.name for g in trace(model).groups] == ["stem", "a", "c"]


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"conv1": 2, "conv2": 3, "fc": 3}),
        ({"max_ratio": 0.5}, {"conv1": 4, "conv2": 6, "fc": 7}),
        ({"min_channels": 5}, {"conv1": 5, "conv2": 5, "fc": 5}),
        ({"criterion": "bn_scale"}, {"conv1": 2}),
        ({"scope": {"convolutions": "^conv"}, "max_ratio": 0.8}, {"fc": 3}),
    ],
    ids=str,
)
def test_what_a_plan_can_be_asked_a_training_can(options, kept):
    model = build("conv_bn")
    x, y = data(model)
    model.compile("sgd", "mse")
    prune = FilterPruning(ConstantSparsity(0.75, begin_step=2), **options)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[prune])
    found = {g.name: g.kept for g in prune.plan.groups}
    assert {name: found[name] for name in kept} == kept
    if "scope" in options:  # 15 of 20 channels of both
        assert found["conv1"] + found["conv2"] == 5
    if options.get("criterion") == "bn_scale":
        assert "judges none of its weights" in prune.plan.frozen["fc"] and set(found) == set(kept)
    assert np.abs(answers(prune.shrink(), x) - answers(model, x)).max() < 1e-4


def test_parts_that_go_are_chosen():
    x = keras.Input((6, 8))
    attended = keras.layers.MultiHeadAttention(4, 6, name="mha")(x, x)
    model = keras.Model(x, keras.layers.Dense(3, name="out")(keras.layers.Dense(8, name="wide")(attended)))
    rng = np.random.default_rng(0)
    model.compile("sgd", "mse")
    prune = FilterPruning(ConstantSparsity(0.5, begin_step=0), parts=["heads"])
    model.fit(rng.normal(size=(16, 6, 8)), rng.normal(size=(16, 6, 3)), verbose=0, callbacks=[prune])
    assert [(g.name, g.kept) for g in prune.plan.groups] == [("mha:heads", 2)]
    assert prune.shrink().get_layer("mha").num_heads == 2
