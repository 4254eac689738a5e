"""Regularisers: what they add to the gradients by formula, in every way a step is taken, and what comes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.graph import trace
from kpipe.projections import GradientTap
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.structured import FilterPruning
from kpipe.structured.regularise import pull
from kpipe.structured.regularisers import REGULARIZERS, DepGraph, GroupLasso, Growing, Slimming, regularizer_of
from tests.unstructured.test_hold import LOSS, O, X, Y

RATE = 0.5


def net(**options):
    """12 -> 5 (a) -> batch norm -> 4 (b) -> 3."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, name="a"), keras.layers.BatchNormalization(name="bn")]
    layers += [keras.layers.Dense(4, "relu", name="b"), keras.layers.Dense(4, name="c")]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.get_layer("bn").gamma.assign([0.5, -1.0, 2.0, 0.25, -0.125])
    model.compile(options.pop("optimizer", None) or O.SGD(RATE), LOSS, **options)
    return model


def kernel(model, name):
    return model.get_layer(name).kernel


def norms_by_hand(model):
    """Root of the sum of squares of all kernels and scales of each channel of a, then of b; and their numbers."""
    a, b, c = (kernel(model, name).numpy() for name in "abc")
    gamma = model.get_layer("bn").gamma.numpy()
    of_a = [np.sum(a[:, k] ** 2) + gamma[k] ** 2 + np.sum(b[k] ** 2) for k in range(5)]
    of_b = [np.sum(b[:, k] ** 2) + np.sum(c[k] ** 2) for k in range(4)]
    return np.sqrt(of_a), np.sqrt(of_b), 12 + 1 + 4, 5 + 4


def group_lasso(norms, size, step):
    return 0.01 * np.sqrt(size) / norms


def depgraph(norms, size, step):
    return np.array([0.01 * 2 ** (4 * (max(norms) - n) / (max(norms) - min(norms))) for n in norms])


def growing(norms, size, step):
    chosen = sorted(norms)[: int(0.4 * len(norms) + 0.5)]
    return np.array([min(0.05, 0.01 * (step // 3)) if n in chosen else 0.0 for n in norms])


BY_HAND = {
    "group_lasso": (GroupLasso(0.01), group_lasso),
    "depgraph": (DepGraph(0.01), depgraph),
    "growing": (Growing(0.01, every=3, ceiling=0.05), growing),
}


def apply_nothing(model):
    """Take one step of the optimizer with gradients of zero."""
    weights = model.trainable_variables
    model.optimizer.apply([tf.zeros(weight.shape) for weight in weights], weights)


@pytest.mark.parametrize("step", [0, 7, 100])
@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_added_is_by_formula(name, step):
    regularizer, by_hand = BY_HAND[name]
    model = net()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(step)
    of_a, of_b, size_a, size_b = norms_by_hand(model)
    factor_a, factor_b = by_hand(of_a, size_a, step), by_hand(of_b, size_b, step)
    before = {weight.path: weight.numpy() for weight in model.trainable_variables}
    traced = trace(model)
    pulling = pull(regularizer, model, traced, traced.groups, ratio=0.4)
    apply_nothing(model)
    pulling.release()
    factors = {
        "a/kernel": factor_a[None],
        "bn/gamma": factor_a,
        "b/kernel": factor_a[:, None] + factor_b[None],
        "c/kernel": factor_b[:, None],
    }
    for weight in model.trainable_variables:
        old = before[weight.path]
        name = weight.path.partition("/")[2]
        np.testing.assert_allclose(weight.numpy(), old - RATE * factors.get(name, 0.0) * old, rtol=1e-5)
    again = [weight.numpy() for weight in model.trainable_variables]
    apply_nothing(model)
    assert all((old == new.numpy()).all() for old, new in zip(again, model.trainable_variables, strict=True))


def test_slimming_adds_the_sign_of_the_scales_and_of_nothing_else():
    model = net()
    before = {weight.path: weight.numpy() for weight in model.trainable_variables}
    traced = trace(model)
    with_zero = np.array([0.5, -1.0, 0.0, 0.25, -0.125], "float32")
    model.get_layer("bn").gamma.assign(with_zero)
    pull(Slimming(0.01), model, traced, traced.groups, ratio=0.4)
    apply_nothing(model)
    np.testing.assert_allclose(model.get_layer("bn").gamma.numpy(), with_zero - RATE * 0.01 * np.sign(with_zero))
    for weight in model.trainable_variables:
        assert weight.path.endswith("gamma") or (weight.numpy() == before[weight.path]).all()


def test_channels_that_stay_are_not_pulled():
    model = net()
    traced = trace(model)
    (only,) = [group for group in traced.groups if group.name == "b"]
    b, a = kernel(model, "b").numpy(), kernel(model, "a").numpy()
    pull(GroupLasso(0.01), model, traced, [only], ratio=0.4)
    factor = group_lasso(norms_by_hand(model)[1], 9, 0)
    apply_nothing(model)
    np.testing.assert_array_equal(kernel(model, "a").numpy(), a)
    np.testing.assert_allclose(kernel(model, "b").numpy(), b - RATE * factor * b, rtol=1e-5)


WAYS = {
    "xla": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "three steps an execution": {"steps_per_execution": 3},
    "scaled": {"optimizer": lambda: O.LossScaleOptimizer(O.SGD(RATE / 10), initial_scale=1024.0)},
    "scaled by hand": {"optimizer": lambda: O.SGD(RATE / 10, loss_scale_factor=8.0)},
}


def trained(regularizer, epochs=2, optimizer=None, **options):
    """Train with a regulariser and no channel gone yet; give the weights."""
    model = net(optimizer=(optimizer or (lambda: O.SGD(RATE / 10)))(), **options)
    prune = FilterPruning(ConstantSparsity(0.5, 1000), regularizer=regularizer)
    with pytest.warns(NoEffectWarning, match="before begin_step=1000"):
        model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[prune])
    assert "apply" not in vars(getattr(model.optimizer, "inner_optimizer", model.optimizer))
    return np.concatenate([weight.numpy().ravel() for weight in model.trainable_variables])


@pytest.fixture(scope="module")
def plain():
    return {name: trained(name and {name: {"strength": 0.02}}) for name in (None, *REGULARIZERS)}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_same_however_it_is_taken(plain, way):
    found = trained({"depgraph": {"strength": 0.02}}, **WAYS[way])
    np.testing.assert_allclose(found, plain["depgraph"], atol=2e-5)


def test_gradients_are_accumulated_with_what_is_added():
    """The mean of two batches with the pull at the same weights is the pull once, beside the mean gradient."""
    model = net(optimizer=O.SGD(RATE, gradient_accumulation_steps=2))
    traced = trace(model)
    factor = group_lasso(norms_by_hand(model)[1], 9, 0)
    before = kernel(model, "c").numpy()
    pull(GroupLasso(0.01), model, traced, traced.groups, ratio=0.4)
    apply_nothing(model)
    np.testing.assert_array_equal(kernel(model, "c").numpy(), before)
    apply_nothing(model)
    np.testing.assert_allclose(kernel(model, "c").numpy(), before - RATE * factor[:, None] * before, rtol=1e-5)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_without_a_regulariser_the_weights_are_others(plain, name):
    """The control: each pulls, and each otherwise."""
    if name == "growing":  # its factor has not grown yet after so few updates
        np.testing.assert_allclose(plain[name], plain[None], atol=0.02)
    others = [values for other, values in plain.items() if other != name]
    assert all(np.abs(plain[name] - values).max() > 1e-3 for values in others)


def test_the_tap_sees_the_gradients_of_the_loss_alone():
    seen = []
    for regularizer in (None, GroupLasso(1.0)):
        model = net(optimizer=O.SGD(0.0))
        traced = trace(model)
        pulling = regularizer and pull(regularizer, model, traced, traced.groups, ratio=0.5)
        with GradientTap(model, [kernel(model, "b")]) as tap:
            model.train_on_batch(X, Y)
            seen.append(tap.read()[id(kernel(model, "b"))]["grad"])
        if pulling:
            pulling.release()
    np.testing.assert_allclose(*seen, atol=1e-6)


def test_the_pull_rests_when_the_schedule_has_reached_its_end():
    model = net(optimizer=O.SGD(RATE))
    model.optimizer.build(model.trainable_variables)
    traced = trace(model)
    pull(DepGraph(0.1), model, traced, traced.groups, ratio=0.5, until=1)
    apply_nothing(model)
    after = kernel(model, "b").numpy()
    apply_nothing(model)
    np.testing.assert_array_equal(kernel(model, "b").numpy(), after)
    prune = FilterPruning(PolynomialDecay(0.0, 0.5, 0, 6, frequency=2), regularizer="depgraph")
    fresh = net()
    fresh.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[prune])
    with pytest.warns(NoEffectWarning, match="DepGraph pulls nothing.*at step 6, and this training begins at step 6"):
        fresh.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[prune])


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["group_lasso", "depgraph", "growing"])
def test_channels_that_are_pulled_are_small_when_they_go(name):
    """What goes at the end weighs less than where nothing pulled, so cutting it changes less."""
    strengths = {"group_lasso": 3e-2, "depgraph": 3e-2, "growing": 0.05}
    spread = []
    for regularizer in (None, {name: {"strength": strengths[name]}}):
        model = net(optimizer=O.SGD(0.05, momentum=0.9))
        prune = FilterPruning(ConstantSparsity(0.5, 60), "l2", regularizer=regularizer)
        norms = []

        class Look(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None, norms=norms):
                of_a, of_b, *_ = norms_by_hand(self.model)
                norms.append([sum(np.sort(n)[: len(n) // 2] ** 2) / sum(n**2) for n in (of_a, of_b)])

        with np.errstate(invalid="ignore"):
            model.fit(X, Y, batch_size=8, epochs=10, verbose=0, callbacks=[prune, Look()])
        spread.append(norms[-2])
        assert np.isfinite(norms[-2]).all()
    assert sum(spread[1]) < 0.8 * sum(spread[0]), spread


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: regularizer_of("depgrap"), "Did you mean 'depgraph'"),
        (lambda: regularizer_of({"depgraph": {"strenght": 1}}), "'depgraph' does not take"),
        (lambda: regularizer_of({"depgraph": {"strength": 0}}), "strength is 0; expected a number above 0"),
        (lambda: regularizer_of({"growing": {"every": -1}}), "every is -1"),
        (lambda: regularizer_of(["depgraph"]), "expected a name"),
    ],
)
def test_bad_regularisers_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


def test_a_regulariser_that_finds_nothing_to_pull_is_refused():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(5, name="hidden"), keras.layers.Dense(4)])
    model.compile("sgd", LOSS)
    with pytest.raises(KpipeError, match=r"Slimming pulls no trained weight of the channels of 'hidden'\. Leave"):
        model.fit(X, Y, verbose=0, callbacks=[FilterPruning(ConstantSparsity(0.5, 5), regularizer="slimming")])
    assert "apply" not in vars(model.optimizer)
