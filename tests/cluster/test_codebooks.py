"""K-means in one dimension against naive loops, scikit-learn, published figures, and formulas."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import KMeans

from kpipe.cluster import INITS, Clustering, as_it_is, cluster_values, inits
from kpipe.cluster.lloyd import lloyd
from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=500)
LAYOUTS = {
    "dense": ((30, 8), NATURAL),
    "conv": ((3, 3, 5, 8), NATURAL),
    "transposed": ((3, 3, 8, 5), Layout(inputs=(-1,), outputs=(-2,))),
    "einsum": ((8, 4, 9), Layout(inputs=(1, 2), outputs=(0,))),
    "depthwise": ((5, 5, 4, 2), Layout(inputs=(), outputs=(-2, -1))),
}


def naive(values, centroids, rounds):
    """Move centroids by comparing every value with each of them; those in the middle go to the lesser."""
    centroids = np.sort(centroids)
    for _ in range(rounds):
        nearest = [int(np.argmin(np.abs(value - centroids))) for value in values]
        held = [
            [value for value, place in zip(values, nearest, strict=True) if place == n] for n in range(len(centroids))
        ]
        centroids = np.array([np.mean(those) for those in held])
    return centroids


@pytest.mark.parametrize("rounds", [0, 1, 2, 7])
@pytest.mark.parametrize("init", ["linear", "density", "kmeans++"])
def test_each_round_is_that_of_a_naive_loop(init, rounds):
    start = INITS[init](np.sort(VALUES), 6, np.random.default_rng(1))
    np.testing.assert_allclose(lloyd(np.sort(VALUES), start, rounds), naive(VALUES, start, rounds), rtol=1e-12)


@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_it_ends_where_scikit_learn_ends(clusters):
    start = INITS["density"](np.sort(VALUES), clusters, np.random.default_rng(0))
    model = KMeans(clusters, init=start[:, None], n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
    expected = np.sort(model.fit(VALUES[:, None]).cluster_centers_[:, 0])
    found = cluster_values(VALUES, Clustering(clusters, "density", iterations=1000))
    np.testing.assert_allclose(found.codebooks[0], expected, rtol=1e-9)


@pytest.mark.parametrize(("clusters", "error"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_the_error_on_a_normal_distribution_is_the_published_one(clusters, error):
    """Max, Quantizing for minimum distortion (1960), table I."""
    values = np.random.default_rng(0).normal(size=400_000).astype("float32")
    for init in INITS:
        found = cluster_values(values, Clustering(clusters, init))
        assert np.mean((found.weight() - values) ** 2.0) == pytest.approx(error, rel=0.02), init


def test_where_centroids_begin():
    values, rng = np.sort(VALUES), np.random.default_rng(0)
    low, high = values[0], values[-1]
    np.testing.assert_allclose(INITS["linear"](values, 5, rng), [low + (high - low) * n / 4 for n in range(5)])
    begun = INITS["density"](values, 10, rng)
    assert [int((values < one).sum()) for one in begun] == list(range(25, 500, 50))
    drawn = INITS["random"](values, 4000, rng)
    shares = np.histogram(drawn, bins=4, range=(low, high))[0] / 4000
    assert drawn.min() >= low and drawn.max() <= high and np.abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_careful_seeding_draws_by_squared_distance():
    values, draws = np.array([0.0, 1.0, 3.0]), 20_000
    chance = np.zeros((3, 3))
    for first in range(3):
        squares = (values - values[first]) ** 2
        chance[first] = squares / squares.sum() / 3
    rng, seen = np.random.default_rng(0), np.zeros((3, 3))
    for _ in range(draws):
        first, second = np.searchsorted(values, inits.plus_plus(values, 2, rng))
        seen[first, second] += 1
    deviation = np.sqrt(chance * (1 - chance) / draws)
    assert (np.abs(seen / draws - chance) <= 4 * deviation).all()
    assert (np.abs(np.full((3, 3), 1 / 6) - chance) > 4 * deviation).any()  # plain drawing would be told apart


def test_careful_seeding_draws_no_value_twice():
    values = np.repeat(np.arange(12.0), 40)
    assert sorted(inits.plus_plus(values, 12, np.random.default_rng(3))) == list(range(12))


@pytest.mark.parametrize("init", ["linear", "random"])
def test_no_cluster_stays_empty(init):
    values = np.append(RNG.normal(0, 0.01, 60), [50.0])
    start = INITS[init](np.sort(values), 6, np.random.default_rng(0))
    empty = 6 - len(set(np.argmin(np.abs(values[:, None] - start), axis=1)))
    found = cluster_values(values, Clustering(6, init), rng=np.random.default_rng(0))
    assert empty > 0 and len(found.codebooks[0]) == 6
    assert np.bincount(found.indices).min() > 0


def test_without_rounds_an_empty_cluster_is_left_out():
    values = np.array([1.0, 1.1, 1.2, 1.3, 10.0])
    found = cluster_values(values, Clustering(4, "linear", iterations=0))
    assert found.codebooks[0].tolist() == [1.0, 10.0] and found.indices.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sparse", [True, False])
def test_every_entry_has_the_nearest_value_and_zeros_are_the_same(layout, per, sparse):
    shape, axes = LAYOUTS[layout]
    weight = RNG.normal(size=shape).astype("float32")
    weight[RNG.random(shape) < 0.4] = 0 if sparse else 0.1
    found = cluster_values(weight, Clustering(5, per=per), axes)
    value = found.weight()
    channels = [axis % weight.ndim for axis in axes.outputs]
    whole = tuple(np.ndindex(*(weight.shape[axis] for axis in channels))) if per == "channel" else [()]
    assert len(found.codebooks) == len(whole) and found.indices.shape == shape
    np.testing.assert_array_equal(value == 0, weight == 0)
    for place, codebook in zip(whole, found.codebooks, strict=True):
        index = [slice(None)] * weight.ndim
        for axis, at in zip(channels, place, strict=False):
            index[axis] = at
        old, new = weight[tuple(index)].ravel(), value[tuple(index)].ravel()
        assert set(np.unique(new)) == set(codebook) and len(codebook) == 5 and (np.diff(codebook) > 0).all()
        free = codebook[codebook != 0] if sparse else codebook
        distance = np.abs(old[old != 0][:, None] - free).min(axis=1)
        np.testing.assert_allclose(np.abs(old - new)[old != 0], distance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_is_clustered_by_itself(layout):
    shape, axes = LAYOUTS[layout]
    weight = RNG.normal(size=shape)
    turned = axes.turn(weight)
    found = axes.turn(cluster_values(weight, Clustering(3, "linear", per="channel"), axes).weight())
    for channel in range(8):
        alone = cluster_values(turned[..., channel], Clustering(3, "linear")).weight()
        np.testing.assert_array_equal(found[..., channel], alone)


def test_zeros_are_values_among_others_where_they_need_not_be_kept():
    weight = np.append(np.zeros(50), RNG.normal(size=50)).astype("float32")
    found = cluster_values(weight, Clustering(4, preserve_sparsity=False))
    assert found.unique == 4 and found.weight().all()


def test_no_value_becomes_zero():
    weight = np.array([0.0, -3.0, -1.0, 1.0, 3.0])
    found = cluster_values(weight, Clustering(2))  # the mean of the others is 0
    np.testing.assert_array_equal(found.weight() == 0, weight == 0)
    assert np.abs(found.codebooks[0]).max() == 1
    moved = cluster_values(weight, Clustering(2, preserve_sparsity=False)).weight()
    assert set(moved) == {-2.0, 4 / 3} or set(moved) == {-4 / 3, 2.0}


@pytest.mark.parametrize("clusters", [3, 4, 16])
def test_few_distinct_values_stay_as_they_are(clusters):
    weight = RNG.choice(np.array([-0.1, 0.0, 0.7], "float32"), size=(6, 7))
    found = cluster_values(weight, Clustering(clusters))
    np.testing.assert_array_equal(found.weight(), weight)
    assert found.unique == 3 and found.codebooks[0].dtype == np.float32
    by_channel = cluster_values(weight, Clustering(clusters, per="channel"))
    np.testing.assert_array_equal(by_channel.weight(), weight)


@pytest.mark.parametrize(("clusters", "kind"), [(2, "uint8"), (256, "uint8"), (257, "uint16")])
def test_indices_take_the_smallest_type(clusters, kind):
    found = cluster_values(VALUES, Clustering(clusters))
    assert found.unique == clusters and found.indices.dtype == kind


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_codebooks_have_the_weights_type(kind):
    weight = VALUES.astype(tf.as_dtype(kind).as_numpy_dtype)
    found = cluster_values(weight, Clustering(8))
    assert found.weight().dtype == weight.dtype and found.unique <= 8
    error = np.abs(found.weight().astype(float) - weight.astype(float)).mean()
    assert error < 0.2


def test_seeds_tell_draws_apart():
    def drawn(seed):
        return cluster_values(VALUES, Clustering(8, "random", iterations=0), rng=np.random.default_rng(seed)).codebooks[
            0
        ]

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1)[:3] != drawn(2)[:3]).any()


def test_a_weight_as_it_is():
    weight = RNG.choice([-1.0, 0.0, 2.0], size=(9, 4))
    for per in ("layer", "channel"):
        np.testing.assert_array_equal(as_it_is(weight, per).weight(), weight)
    assert as_it_is(weight).codebooks[0].tolist() == [-1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"clusters": 1}, "clusters is 1; expected an integer of at least 2"),
        ({"clusters": 2.5}, "clusters is 2.5"),
        ({"clusters": True}, "clusters is True"),
        ({"iterations": -1}, "iterations is -1; expected an integer of at least 0"),
        ({"per": "chanel"}, "per is 'chanel'; expected one of layer, channel. Did you mean 'channel'?"),
        ({"init": "kmeans"}, "Unknown initialisation of centroids 'kmeans'.*Did you mean 'kmeans\\+\\+'?"),
    ],
)
def test_what_does_not_fit_is_refused(given, fault):
    with pytest.raises(KpipeError, match=fault):
        Clustering(**given)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(KpipeError, match="NaN or infinite"):
        cluster_values(np.array([1.0, wrong]), Clustering(2))


def test_a_new_start_is_one_function():
    @INITS("halves of a test")
    def halves(values, count, rng):
        return np.full(count, values[len(values) // 2])

    try:
        found = cluster_values(VALUES, Clustering(4, "halves of a test"))
        assert len(found.codebooks[0]) == 4  # all began at one place: three were empty
    finally:
        del INITS._objects["halves of a test"], INITS._facts["halves of a test"]
