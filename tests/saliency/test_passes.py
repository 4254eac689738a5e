"""Passes that are kept: one trace for many updates, and nothing stale."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.saliency import Passes, gather
from kpipe.saliency.curvature import gauss_newton_diagonal
from kpipe.saliency.evidence import FROM_DATA
from kpipe.schedules import LinearSparsity
from kpipe.unstructured import WeightPruning

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 5)).astype("float32"), RNG.normal(size=(20, 3)).astype("float32")


class Counted(L.Layer):
    """Count the calls of Python, which are those that trace."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x


def net() -> tuple[keras.Model, Counted]:
    keras.utils.set_random_seed(0)
    counted = Counted()
    model = keras.Sequential([keras.Input((5,)), counted, L.Dense(4, "tanh", name="a"), L.Dense(3, "relu", name="b")])
    model.compile("sgd", "mse")
    counted.calls = 0
    return model, counted


def kernels(model: keras.Model, *names: str) -> list[tuple]:
    return [(name, "kernel", model.get_layer(name).kernel) for name in names or ("a", "b")]


def shift(model: keras.Model) -> None:
    model.set_weights([w + RNG.normal(0, 0.1, w.shape) for w in model.get_weights()])


@pytest.mark.sweep(2)
@pytest.mark.parametrize("field", FROM_DATA)
def test_a_kept_pass_traces_once_and_follows_the_weights(field):
    model, counted = net()
    passes, first = Passes(), None
    for _ in range(4):
        shift(model)
        before = counted.calls
        kept = gather(model, kernels(model), field, (X, Y), passes=passes)
        traced = counted.calls - before
        fresh = gather(model, kernels(model), field, (X, Y))
        for name in ("a", "b"):
            np.testing.assert_allclose(getattr(kept[name], field), getattr(fresh[name], field), rtol=1e-4, atol=1e-7)
        if first is None:
            first = getattr(kept["b"], field)
            assert traced >= 1, "the layer counts what traces"
        else:
            assert traced == 0
            assert not np.allclose(first, getattr(kept["b"], field), rtol=1e-3), "the weights have moved"


@pytest.mark.sweep(2)
@pytest.mark.parametrize("field", FROM_DATA)
def test_weights_that_were_not_asked_for_before_join_those_that_were(field):
    model, counted = net()
    passes = Passes()
    gather(model, kernels(model, "a"), field, (X, Y), passes=passes)
    both = gather(model, kernels(model), field, (X, Y), passes=passes)
    calls = counted.calls
    again = gather(model, kernels(model, "a"), field, (X, Y), passes=passes)
    assert counted.calls == calls
    fresh = gather(model, kernels(model), field, (X, Y))
    for found, names in ((both, "ab"), (again, "a")):
        assert list(found) == list(names)
        for name in names:
            np.testing.assert_allclose(getattr(found[name], field), getattr(fresh[name], field), rtol=1e-5, atol=1e-7)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("field", ["grad", "grad_sq", "curvature"])
def test_another_compiled_loss_another_given_loss_and_another_model_count(field):
    model, _ = net()
    other, _ = net()
    shift(other)
    passes = Passes()

    def found(of, loss=None):
        return getattr(gather(of, kernels(of, "b"), field, (X, Y), loss, passes=passes)["b"], field)

    once = found(model)
    model.compile("sgd", "mse", loss_weights=[2.0])
    twice = found(model)
    np.testing.assert_allclose(twice, once * (4 if field == "grad_sq" else 2), rtol=1e-4)
    np.testing.assert_allclose(found(model, "mse"), once, rtol=1e-4)
    assert not np.allclose(found(other, "mse"), once, rtol=1e-3)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("field", ["grad", "grad_sq", "curvature"])
def test_what_is_frozen_and_unfrozen_meanwhile_counts(field):
    model, _ = net()
    passes = Passes()
    for trainable in (True, False, True):
        model.get_layer("a").trainable = trainable
        found = gather(model, kernels(model), field, (X, Y), passes=passes)
        assert getattr(found["a"], field).any() == trainable and getattr(found["b"], field).any()


def test_the_sums_of_one_pass_are_not_those_of_the_next():
    model, _ = net()
    passes = Passes()
    for field in FROM_DATA:
        one, two = (gather(model, kernels(model), field, (X, Y), passes=passes)["a"] for _ in range(2))
        assert np.array_equal(getattr(one, field), getattr(two, field))


def test_a_loss_that_is_not_convex_is_told_once_and_forgotten():
    model, _ = net()
    sign = keras.Variable(-1.0)
    through = gauss_newton_diagonal(model, model.weights[:1], lambda y, z: sign * keras.ops.mean((y - z) ** 2, axis=-1))
    with pytest.raises(KpipeError, match="not convex"):
        through((X, Y))
    sign.assign(1.0)
    assert through((X, Y))[0].any()


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda"])
def test_a_fit_traces_the_model_once_for_its_steps_and_once_for_its_updates(criterion):
    model, counted = net()
    pruning = WeightPruning(LinearSparsity(0.0, 0.8, 0, 6, frequency=1), criterion, data=(X, Y))
    model.fit(X, Y, batch_size=10, epochs=3, verbose=0, callbacks=[pruning])
    assert counted.calls <= 4, "seven updates, each of which would trace anew"
    assert {row.sparsity for row in pruning.report().pruned} == {round(0.8 * 20) / 20, round(0.8 * 12) / 12}
