"""Clusters as projections, against NumPy; and what changes gradients in front of the optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout
from kpipe.projections import (
    Codebook,
    GradientMap,
    GradientPull,
    GradientTap,
    Holder,
    first_codebook,
    hold_clusters,
    hold_codebook,
    kernels,
)
from tests.models import build

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = {"small": (7, 5), "large enough to be compiled": (160, 130)}


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
def test_means_and_sums_are_those_of_numpy(shape, kind):
    numbers, w = RNG.integers(0, 6, shape), RNG.normal(size=shape)
    w = np.asarray(w, tf.as_dtype(kind).as_numpy_dtype).astype("float64")
    codebook = Codebook(numbers)
    mean, total = np.zeros(shape), np.zeros(shape)
    for number in range(1, 6):
        mean[numbers == number], total[numbers == number] = (f(w[numbers == number]) for f in (np.mean, np.sum))
    given = tf.constant(w, kind)
    for found, expected in (
        (codebook(given), mean),
        (codebook.shared(given), total),
        (codebook.shared(given, mean=True), mean),
    ):
        rounding = {"float16": 1e-3, "bfloat16": 8e-3}.get(kind, 1e-5)
        assert found.dtype == kind and found.shape == shape and not found.numpy()[numbers == 0].any()
        np.testing.assert_allclose(found.numpy().astype("float64"), expected, rtol=rounding, atol=rounding)
    again = codebook(given)
    np.testing.assert_array_equal(codebook(again).numpy(), again.numpy())
    np.testing.assert_array_equal(codebook.numpy(), numbers)


def test_a_cluster_of_a_million_does_not_drift():
    value, numbers = np.float32(0.1), np.ones(1_000_000, int)
    w = tf.fill([1_000_000], value)
    plain = tf.math.unsorted_segment_mean(w, tf.constant(numbers), 2)[1]
    assert plain.numpy() != value, "a plain sum in 32 bits is away from it"
    assert (Codebook(numbers)(w).numpy() == value).all()


def test_what_is_no_number_spoils_its_own_cluster_alone():
    w = np.array([np.nan, np.inf, 1.0, 3.0, np.nan], "float32")
    assert Codebook(np.array([0, 0, 1, 1, 0]))(w).numpy().tolist() == [0.0, 0.0, 2.0, 2.0, 0.0]
    found = Codebook(np.array([1, 1, 2, 2, 0]))(w).numpy()
    assert np.isnan(found[:2]).all() and found[2:].tolist() == [2.0, 2.0, 0.0]


def test_clusters_are_found_again():
    numbers = RNG.integers(0, 5, (9, 4))
    found = first_codebook(np.array([0.0, -2.0, -0.5, 0.1, 7.0])[numbers])
    np.testing.assert_array_equal(found, numbers)
    as_values = first_codebook(np.array([-9.0, -2.0, 0.0, 0.1, 7.0])[numbers], zeros=False)
    np.testing.assert_array_equal(as_values, numbers + 1)


@pytest.mark.parametrize(
    ("layout", "outputs"),
    [(NATURAL, (3,)), (Layout(inputs=(-1,), outputs=(-2,)), (2,)), (Layout((), (-2, -1)), (2, 3))],
)
def test_clusters_of_channels_are_found_again(layout, outputs):
    weight = RNG.choice([0.0, 0.5, 1.0], size=(3, 5, 4, 6)) * RNG.normal(size=(3, 5, 4, 6)).max(axis=(0, 1))
    channel = np.zeros(weight.shape, int)
    for axis in outputs:
        channel = channel * weight.shape[axis] + np.indices(weight.shape)[axis]
    channel = np.broadcast_to(channel, weight.shape)
    found = first_codebook(weight, most=30, layout=layout)
    seen = {}
    for number, value, place in zip(found.ravel(), weight.ravel(), channel.ravel(), strict=True):
        assert seen.setdefault(number, (value, place if value else None)) == (value, place if value else None)
    assert (found == 0).tolist() == (weight == 0).tolist()
    assert len(seen) == found.max() + 1


@pytest.mark.parametrize(
    ("weight", "most"),
    [(RNG.normal(size=(20, 20)), 256), (np.arange(1, 9.0), 256), (np.zeros((3, 3)), 256), (np.arange(9) % 4, 3)],
    ids=["dense", "no two alike", "zeros", "too many"],
)
def test_other_weights_have_none(weight, most):
    assert first_codebook(weight, most) is None


def compiled(optimizer="sgd", **options):
    model = build("dense")
    model.compile(optimizer, LOSS, **options)
    return model


def test_a_map_comes_after_what_is_added_and_a_tap_sees_the_loss_alone():
    net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    net.compile(keras.optimizers.SGD(0.5), "mse")
    kernel = net.layers[0].kernel
    kernel.assign([[2.0]])
    change = GradientMap(net, kernel, lambda gradient: gradient**2)
    pull = GradientPull(net, [kernel], lambda step: {id(kernel): tf.fill([1, 1], 0.1)})
    with GradientTap(net, [kernel]) as tap:
        net.train_on_batch(np.full((1, 1), 0.5), np.zeros((1, 1)))  # d(w/2)²/dw = w/2 = 1
        assert tap.read()[id(kernel)]["grad"] == 1
    assert float(kernel[0, 0]) == pytest.approx(2 - 0.5 * 1.1**2)
    for one in (change, pull):
        assert "apply" in vars(net.optimizer)
        one.release()
    assert "apply" not in vars(net.optimizer)
    kernel.assign([[2.0]])
    net.train_on_batch(np.full((1, 1), 0.5), np.zeros((1, 1)))
    assert float(kernel[0, 0]) == pytest.approx(1.5)


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_a_kernel_that_is_compiled_by_itself(mode):
    net = keras.Sequential([keras.Input((200,)), keras.layers.Dense(100, use_bias=False)])
    net.compile(keras.optimizers.SGD(0.1), "mse", **{"jit_compile": False, **mode})
    numbers = RNG.integers(0, 5, (200, 100))
    values = np.array([0.0, 0.1, -0.2, 0.3, 0.05])
    x, y = RNG.normal(size=(32, 200)), RNG.normal(size=(32, 100))
    gradient = 2 * x.T @ (x @ values[numbers] - y) / y.size
    with Holder(net) as holder:
        net.layers[0].kernel.assign(values[numbers])
        hold_codebook(holder, net.layers[0].kernel, numbers)
        net.train_on_batch(x, y)
        total = np.array([0, *(gradient[numbers == n].sum() for n in range(1, 5))])
        np.testing.assert_allclose(net.layers[0].kernel.numpy(), (values - 0.1 * total)[numbers], atol=2e-5)
        assert np.abs(0.1 * total).max() > 1e-3


def test_hold_clusters_holds_what_is_clustered_and_nothing_else():
    model = compiled("adam")
    first, second, third = kernels(model)
    first.assign(RNG.choice([-0.3, 0.0, 0.4], size=first.shape))
    third.assign(np.zeros(third.shape))
    zeros = first.numpy() == 0
    with hold_clusters(model) as holder:
        assert [id(variable) for variable in holder.variables] == [id(first)]
        model.fit(X, Y, batch_size=8, verbose=0)
        value = first.numpy()
    assert len(np.unique(value)) == 3 and ((value == 0) == zeros).all() and not np.isin(value, [-0.3, 0.4]).any()
    assert len(np.unique(second.numpy())) == second.numpy().size and third.numpy().any()
    assert first.constraint is None and "apply" not in vars(model.optimizer)
    model.fit(X, Y, batch_size=8, verbose=0)
    assert len(np.unique(first.numpy())) > 3


def test_hold_clusters_needs_an_optimizer():
    with pytest.raises(KpipeError, match="Compile the model first"):
        hold_clusters(build("dense"))
