import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.projections import Holder, Mask, average_of, chain, hold_zeros, kernels, trained_model
from tests.models import build

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(optimizer="adam", **options):
    model = build("dense")
    model.compile(optimizer, LOSS, **options)
    return model


def half(variable, seed=3):
    return np.random.default_rng(seed).random(variable.shape) < 0.5


def zeros_kept(model, keeps):
    return all(not variable.numpy()[~keep].any() for variable, keep in keeps)


class EveryStep(keras.callbacks.Callback):
    """Ask after every batch whether the zeros stand."""

    def __init__(self, check):
        super().__init__()
        self.check, self.answers = check, []

    def on_train_batch_end(self, batch, logs=None):
        self.answers.append(self.check())


def fit(model, keeps, **options):
    watch = EveryStep(lambda: zeros_kept(model, keeps))
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[watch], **options)
    return watch.answers


OPTIMIZERS = {
    "sgd momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam with averages": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "sgd with averages written back": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
}
MODES = {
    "plain": {},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "three steps an execution": {"steps_per_execution": 3},
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("optimizer", "mode"),
    [("adam", mode) for mode in MODES] + [(name, "plain") for name in OPTIMIZERS if name != "adam"],
)
def test_masked_entries_are_zero_after_every_step_and_at_the_end(optimizer, mode):
    model = compiled(OPTIMIZERS[optimizer](), **MODES[mode])
    keeps = [(variable, half(variable)) for variable in kernels(model)]
    with Holder(model) as holder:
        for variable, keep in keeps:
            holder.hold(variable, Mask(keep))
        before = [variable.numpy() for variable, _ in keeps]
        answers = fit(model, keeps)
        for variable, keep in keeps:
            average = average_of(model.optimizer, variable)
            assert average is None or not average.numpy()[~keep].any()
    assert answers and all(answers) and zeros_kept(model, keeps)
    assert all((variable.numpy() != old).any() for (variable, _), old in zip(keeps, before, strict=True))


def test_a_projection_that_does_nothing_fails_the_contract():
    model = compiled()
    keeps = [(variable, half(variable)) for variable in kernels(model)]
    with Holder(model) as holder:
        for variable, _ in keeps:
            holder.hold(variable, lambda w: w)
        assert not any(fit(model, keeps))


def test_holds_after_a_plain_fit_and_lets_go_after_release():
    model = compiled()
    keeps = [(variable, half(variable)) for variable in kernels(model)]
    assert not any(fit(model, keeps))
    with Holder(model) as holder:
        for variable, keep in keeps:
            holder.hold(variable, Mask(keep))
        assert all(fit(model, keeps))
    assert not any(fit(model, keeps))


def test_the_users_constraint_comes_first_and_comes_back():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, kernel_constraint="non_neg", name="only")])
    model.compile("sgd", LOSS)
    (variable,) = kernels(model)
    own, keep = variable.constraint, half(variable)
    with Holder(model) as holder:
        holder.hold(variable, Mask(keep))
        assert all(fit(model, [(variable, keep)]))
        assert (variable.numpy() >= 0).all()
    assert variable.constraint is own and isinstance(own, keras.constraints.NonNeg)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("first_released", [0, 1])
def test_two_holders_on_one_variable_let_go_in_any_order(first_released):
    model = compiled()
    variable = kernels(model)[0]
    keeps = [half(variable, seed) for seed in (1, 2)]
    holders = [Holder(model), Holder(model)]
    for holder, keep in zip(holders, keeps, strict=True):
        holder.hold(variable, Mask(keep))
    assert all(fit(model, [(variable, keeps[0] & keeps[1])]))
    holders[first_released].release()
    kept = keeps[1 - first_released]
    assert all(fit(model, [(variable, kept)]))
    grown = variable.numpy()[kept & ~keeps[first_released]]
    assert np.count_nonzero(grown) > 0.5 * grown.size, "what only the released one had masked grows again"
    holders[1 - first_released].release()
    assert variable.constraint is None


def test_a_mask_changes_while_it_is_held():
    model = compiled()
    variable = kernels(model)[0]
    mask = Mask(np.ones(variable.shape, bool))
    with Holder(model) as holder:
        holder.hold(variable, mask)
        fit(model, [])
        keep = half(variable)
        mask.assign(keep)
        holder.project()
        assert zeros_kept(model, [(variable, keep)]) and all(fit(model, [(variable, keep)]))
    np.testing.assert_array_equal(mask.numpy(), keep)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("other", [None, lambda w: w * 0.5])
@pytest.mark.parametrize("optimizer", ["sgd momentum", "adam with averages"])
def test_more_entries_of_a_mask_are_dropped(optimizer, other):
    model = compiled(OPTIMIZERS[optimizer]())
    variable = kernels(model)[0]
    with Holder(model) as holder:
        mask = holder.mask(variable, np.ones(variable.shape, bool))
        if other is not None:
            holder.hold(variable, other)
        fit(model, [])
        before, keep = variable.numpy(), half(variable)
        holder.drop(variable, mask, keep, np.flatnonzero(~keep))
        np.testing.assert_array_equal(variable.numpy(), np.where(keep, before if other is None else before * 0.5, 0))
        average = average_of(model.optimizer, variable)
        assert average is None or not average.numpy()[~keep].any()
        assert all(fit(model, [(variable, keep)]))
    np.testing.assert_array_equal(mask.numpy(), keep)


def test_a_function_of_ones_own_is_converted_without_a_warning(caplog, monkeypatch):
    model = compiled(OPTIMIZERS["adam with averages"]())
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    with Holder(model) as holder:
        for variable in kernels(model):
            holder.hold(variable, Mask(half(variable)))
        tf.function(holder.project)()
    assert not [record for record in caplog.records if "AutoGraph" in record.getMessage()]


def test_depthwise_kernels_are_kernels():
    layer = keras.layers.DepthwiseConv2D(3)
    assert kernels(keras.Sequential([keras.Input((5, 5, 2)), layer])) == [layer.kernel]


def test_mask_takes_out_nan_and_chain_lets_the_last_win():
    keep = np.array([True, False, False])
    assert Mask(keep)(np.array([2.0, np.nan, np.inf])).numpy().tolist() == [2.0, 0.0, 0.0]
    assert chain(None, Mask(keep), lambda w: w + 1)(np.ones(3)).numpy().tolist() == [2.0, 1.0, 1.0]


def test_hold_zeros_holds_what_is_zero_and_nothing_else():
    model = compiled()
    first, second, third = kernels(model)
    keep = half(first)
    first.assign(first * keep)
    third.assign(np.zeros(third.shape))
    with hold_zeros(model) as holder:
        assert [id(variable) for variable in holder.variables] == [id(first)]
        assert all(fit(model, [(first, keep)]))
    assert third.numpy().any() and second.numpy().all() and first.numpy()[keep].all()


def test_a_distiller_trains_its_student():
    student, teacher = build("dense", 1), build("dense", 2)
    distiller = keras.distillation.Distiller(teacher, student, keras.distillation.LogitsDistillation())
    distiller.compile("adam", LOSS)
    first = kernels(student)[0]
    keep = half(first)
    first.assign(first * keep)
    assert trained_model(distiller) is student and trained_model(student) is student
    with hold_zeros(distiller):
        assert all(fit(distiller, [(first, keep)]))
    assert not all(fit(distiller, [(first, keep)]))
