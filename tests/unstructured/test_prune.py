import keras
import numpy as np
import pytest

from kpipe.copies import copy_model
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import kernels
from kpipe.saliency import CRITERIA
from kpipe.unstructured import prune_weights
from tests.models import ZOO, build, samples

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 12)).astype("float32")
Y = RNG.integers(0, 4, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("name", ZOO)
def test_a_copy_answers_alike_and_shares_nothing(name):
    model = build(name)
    before, x = model.get_weights(), samples(model)
    x = x[0] if len(x) == 1 else x
    twin = copy_model(model)
    for one, other in zip(keras.tree.flatten(model(x)), keras.tree.flatten(twin(x)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [tensor.name for tensor in twin.inputs] == [tensor.name for tensor in model.inputs]
    for variable in twin.variables:
        variable.assign(variable + 1)
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))


def test_a_copy_keeps_what_is_frozen():
    model = build("nested")
    model.get_layer("block").trainable = False
    twin = copy_model(model)
    assert not twin.get_layer("block").trainable and twin.get_layer("inner").trainable
    assert len(twin.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_count_is_exact_and_the_original_untouched(criterion, scope):
    model = build("dense")
    before = model.get_weights()
    pruned = prune_weights(model, 0.7, criterion, scope=scope, data=(X, Y), loss=LOSS)
    gone = [int((variable.numpy() == 0).sum()) for variable in kernels(pruned)]
    sizes = [int(np.prod(variable.shape)) for variable in kernels(model)]
    if scope == "layer":
        assert gone == [round(0.7 * size) for size in sizes]
    assert sum(gone) == pytest.approx(0.7 * sum(sizes), abs=2)
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))
    for old, new in zip(kernels(model), kernels(pruned), strict=True):
        old, new = old.numpy(), new.numpy()
        np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_taylor_drops_by_weight_times_gradient():
    import tensorflow as tf

    model = build("dense")
    first = kernels(model)[0]
    with tf.GradientTape() as tape:
        value = LOSS(Y, model(X, training=False))
    scores = np.abs(first.numpy() * tape.gradient(value, first.value).numpy())
    pruned = prune_weights(model, 0.5, "taylor", layers="hidden1", data=(X, Y), loss=LOSS)
    gone = kernels(pruned)[0].numpy() == 0
    assert scores[gone].max() <= scores[~gone].min() * (1 + 1e-4)
    by_magnitude = kernels(prune_weights(model, 0.5, layers="hidden1"))[0].numpy() == 0
    assert scores[by_magnitude].max() > scores[~by_magnitude].min(), "the check tells one criterion from another"


def test_sparser_layers_keep_their_zeros_and_nothing_to_do_is_said():
    model = build("dense")
    sparse = prune_weights(model, 0.8)
    with pytest.warns(NoEffectWarning, match="set no weight"):
        same = prune_weights(sparse, 0.5)
    assert all((a == b).all() for a, b in zip(sparse.get_weights(), same.get_weights(), strict=True))
    with pytest.warns(NoEffectWarning):
        prune_weights(model, 0.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: prune_weights("model", 0.5), "Received str; expected a Keras 3 model"),
        (lambda: prune_weights(keras.Sequential([keras.layers.Dense(2)]), 0.5), "not built"),
        (lambda: prune_weights(build("dense"), 1.0), "sparsity is 1.0"),
        (lambda: prune_weights(build("dense"), float("nan")), "sparsity is nan"),
        (lambda: prune_weights(build("dense"), "0.5"), "sparsity is '0.5'; expected a fraction"),
        (lambda: prune_weights(build("dense"), 0.5, layers="conv9"), "matches no prunable weight"),
        (lambda: prune_weights(build("dense"), 0.5, "taylor"), "needs"),
        (lambda: prune_weights(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]), 0.5), "no weight to prune"),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
