"""Batch norm's statistics taken anew, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from kpipe import data as sources
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.structured import plan_filters, prune_filters
from kpipe.structured.batch_norm import reestimate_batch_norm
from tests.models import build


def points(count: int = 70, width: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(1.0, 2.0, (count, width)).astype("float32")


def statistics(layer: L.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)


def close(found, expected) -> bool:
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("size", "layer_by_layer"), [(70, False), (32, False), (1, False), (32, True)])
def test_one_norm_gets_the_mean_and_variance_of_all_the_data(size, layer_by_layer):
    x = points()
    net = keras.Sequential([keras.Input((5,)), L.Dense(4, activation="relu", name="d"), L.BatchNormalization(name="n")])
    before = [w.copy() for w in net.get_weights()]
    new = reestimate_batch_norm(net, (x, np.zeros(70)), batch_size=size, layer_by_layer=layer_by_layer)
    hidden = np.maximum(x @ before[0] + before[1], 0)
    assert close(statistics(new.get_layer("n")), (hidden.mean(0), hidden.var(0)))
    assert not close(statistics(net.get_layer("n")), (hidden.mean(0), hidden.var(0)))
    assert all((a == b).all() for a, b in zip(net.get_weights(), before, strict=True))
    assert all((a == b).all() for a, b in zip(new.get_layer("d").get_weights(), before, strict=False))
    assert new.get_layer("n").momentum == 0.99 and "call" not in vars(new.get_layer("n"))


def two_norms() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [L.Dense(4, name="d1"), L.BatchNormalization(name="n1"), L.ReLU(), L.Dropout(0.5), L.Dense(3, name="d2")]
    return keras.Sequential([keras.Input((5,)), *layers, L.BatchNormalization(name="n2")])


def behind(net: keras.Model, x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Compute what the second norm sees where the first one normalizes with these moments; dropout is off."""
    first = x @ net.get_layer("d1").get_weights()[0]
    normal = np.maximum((first - mean) / np.sqrt(variance + 1e-3), 0)
    return normal @ net.get_layer("d2").get_weights()[0]


def test_the_second_of_two_norms_sees_batches_normalized_by_themselves():
    x, net = points(), two_norms()
    first = x @ net.get_layer("d1").get_weights()[0]
    parts = [slice(0, 32), slice(32, 64), slice(64, 70)]
    hidden = np.concatenate([behind(net, x[p], first[p].mean(0), first[p].var(0)) for p in parts])
    new = reestimate_batch_norm(net, x, batch_size=32)
    assert close(statistics(new.get_layer("n1")), (first.mean(0), first.var(0)))
    assert close(statistics(new.get_layer("n2")), (hidden.mean(0), hidden.var(0)))
    whole = behind(net, x, first.mean(0), first.var(0))
    assert not close(statistics(new.get_layer("n2")), (whole.mean(0), whole.var(0)))


def test_layer_by_layer_the_second_norm_sees_what_it_will_see_in_inference():
    x, net = points(), two_norms()
    first = x @ net.get_layer("d1").get_weights()[0]
    whole = behind(net, x, first.mean(0), first.var(0))
    new = reestimate_batch_norm(net, x, batch_size=32, layer_by_layer=True)
    assert close(statistics(new.get_layer("n2")), (whole.mean(0), whole.var(0)))


def test_with_one_batch_both_ways_agree():
    x, net = points(), two_norms()
    one, other = (reestimate_batch_norm(net, x, layer_by_layer=way) for way in (False, True))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_a_shared_norm_in_a_nested_model_takes_both_its_calls():
    tower = keras.Sequential([keras.Input((5,)), L.BatchNormalization(name="norm")], name="tower")
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    net = keras.Model([left, right], L.Add()([tower(left), tower(right)]))
    a, b = points(40), 3 - points(40)
    new = reestimate_batch_norm(net, {"left": a, "right": b})
    both = np.concatenate([a, b])
    assert close(statistics(new.get_layer("tower").get_layer("norm")), (both.mean(0), both.var(0)))


def test_maps_with_channels_first_and_steps_that_are_masked():
    maps = np.random.default_rng(0).normal(2.0, 1.0, (9, 3, 4, 5)).astype("float32")
    net = keras.Sequential([keras.Input((3, 4, 5)), L.BatchNormalization(axis=1)])
    new = reestimate_batch_norm(net, maps, batch_size=4)
    assert close(statistics(new.layers[0]), (maps.mean((0, 2, 3)), maps.var((0, 2, 3))))

    steps = np.random.default_rng(1).normal(1.0, 1.0, (9, 6, 3)).astype("float32")
    steps[:, 4:] = steps[0, 1:] = 0.0
    net = keras.Sequential([keras.Input((6, 3)), L.Masking(), L.BatchNormalization()])
    new = reestimate_batch_norm(net, steps, batch_size=4)
    seen = steps[np.any(steps != 0, -1)]
    assert close(statistics(new.layers[1]), (seen.mean(0), seen.var(0)))


def test_batch_renormalization_and_half_precision():
    x = points()
    net = keras.Sequential(
        [keras.Input((5,)), L.BatchNormalization(renorm=True), L.BatchNormalization(dtype="float16")]
    )
    net.layers[0].moving_mean.assign([np.nan] * 5)
    first, second = reestimate_batch_norm(net, x).layers
    assert first.renorm
    deviation = np.sqrt(x.var(0) + 1e-3)
    assert close(statistics(first), (x.mean(0), x.var(0)))
    assert close((first.renorm_mean, first.renorm_stddev, first.moving_stddev), (x.mean(0), deviation, deviation))
    assert np.allclose(second.moving_variance, 1, atol=5e-3)


def test_only_so_many_batches_are_taken_of_data_without_end():
    x = points(64)
    endless = tf.data.Dataset.from_tensor_slices(x).batch(16).repeat()
    net = keras.Sequential([keras.Input((5,)), L.BatchNormalization()])
    new = reestimate_batch_norm(net, endless, batches=2, layer_by_layer=True)
    assert close(statistics(new.layers[0]), (x[:32].mean(0), x[:32].var(0)))
    with pytest.raises(KpipeError, match="never end"):
        reestimate_batch_norm(net, endless)


def test_frozen_norms_keep_their_statistics_and_are_named():
    net = two_norms()
    net.get_layer("n1").trainable = False
    with pytest.warns(NoEffectWarning, match=r"keep their statistics: n1 \(frozen\)"):
        new = reestimate_batch_norm(net, points())
    assert close(statistics(new.get_layer("n1")), (np.zeros(4), np.ones(4)))
    hidden = behind(net, points(), np.zeros(4), np.ones(4))
    assert close(statistics(new.get_layer("n2")), (hidden.mean(0), hidden.var(0)))


def test_a_model_without_norms_that_learn_is_copied_with_a_warning():
    plain = keras.Sequential([keras.Input((5,)), L.Dense(2)])
    with pytest.warns(NoEffectWarning, match="there are none"):
        twin = reestimate_batch_norm(plain, points())
    assert twin is not plain and (twin.get_weights()[0] == plain.get_weights()[0]).all()
    frozen = two_norms()
    frozen.trainable = False
    with pytest.warns(NoEffectWarning, match="are frozen: n1, n2"):
        reestimate_batch_norm(frozen, points())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"data": None}, "data=None"),
        ({"data": np.zeros((0, 5), "float32")}, "no batch at all"),
        ({"data": points(), "batches": 0}, "batches is 0"),
        ({"data": points(), "batch_size": None}, "batch_size is None"),
        ({"data": iter([points()]), "layer_by_layer": True}, "gone through once"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, text):
    with pytest.raises(KpipeError, match=text):
        reestimate_batch_norm(two_norms(), **arguments)


def test_a_layer_that_sees_nothing_but_masked_values_keeps_its_statistics_and_is_named():
    x = keras.Input((3, 2))
    net = keras.Model(x, L.BatchNormalization(name="norm")(L.Masking()(x)))
    net.get_layer("norm").set_weights([np.ones(2), np.zeros(2), np.array([0.5, 2.0]), np.array([3.0, 4.0])])
    for layer_by_layer in (False, True):
        with pytest.warns(NoEffectWarning, match=r"norm \(all that it sees on these data is masked\)"):
            anew = reestimate_batch_norm(net, np.zeros((4, 3, 2)), layer_by_layer=layer_by_layer)
        for old, new in zip(net.get_weights(), anew.get_weights(), strict=True):
            assert np.array_equal(old, new)
    values = np.array([[[1.0, 5.0], [3.0, 9.0], [0.0, 0.0]]])  # the last step is masked
    anew = reestimate_batch_norm(net, np.concatenate([np.zeros((2, 3, 2)), values]), batch_size=1)
    assert np.allclose(anew.get_layer("norm").moving_mean, [2.0, 7.0])
    assert np.allclose(anew.get_layer("norm").moving_variance, [1.0, 4.0], atol=1e-4)


@pytest.mark.slow
def test_it_brings_accuracy_back_after_a_cut():
    """Half the filters of a convolutional net trained on digits for a moment, without any training afterwards."""
    keras.utils.set_random_seed(0)
    digits = sources.load("digits")
    layers: list = [keras.Input((8, 8, 1))]
    for number, filters in enumerate((32, 32)):
        layers += [L.Conv2D(filters, 3, padding="same", use_bias=False, name=f"c{number}")]
        layers += [L.BatchNormalization(momentum=0.9), L.ReLU()]
    net = keras.Sequential([*layers, L.GlobalAveragePooling2D(), L.Dense(10)])
    net.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(*digits.train, epochs=4, batch_size=64, verbose=0)
    small = prune_filters(net, plan_filters(net, ratio=0.5))

    def accuracy(model: keras.Model) -> float:
        x, y = digits.test
        return float((np.asarray(model(x)).argmax(-1) == y).mean())

    cut, again = accuracy(small), accuracy(reestimate_batch_norm(small, digits.train))
    assert accuracy(net) > 0.9
    assert again > cut + 0.3, (cut, again)


def test_it_leaves_the_answers_of_a_model_that_was_measured_already():
    net = build("conv_bn")
    x = np.random.default_rng(0).normal(0, 1, (64, 10, 10, 3)).astype("float32")
    once = reestimate_batch_norm(net, x, layer_by_layer=True)
    again = reestimate_batch_norm(once, x, layer_by_layer=True)
    assert np.allclose(once(x), again(x), atol=1e-4)
    assert not np.allclose(net(x), once(x), atol=1e-2)
