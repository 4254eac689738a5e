import keras
import numpy as np
import pytest

from kpipe.cluster import cluster_weights
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.layers import KERNEL_ROLES, weights_within
from kpipe.unstructured import prune_weights
from tests.models import ZOO, build


def distinct(model, roles=("kernel", "recurrent_kernel", "embedding")):
    return {
        weight.path: len(np.unique(weight.variable.numpy())) for weight in weights_within(model) if weight.role in roles
    }


@pytest.mark.parametrize("name", ZOO)
def test_every_kernel_has_few_values_and_the_given_model_is_untouched(name):
    model = build(name)
    before = model.get_weights()
    small = cluster_weights(model, 8)
    assert max(distinct(small).values()) <= 8 and max(distinct(model).values()) > 8
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))
    roles = {id(weight.variable): weight.role for weight in weights_within(small)}
    for old, twin in zip(before, small.weights, strict=True):
        clustered = roles.get(id(twin)) in ("kernel", "recurrent_kernel", "embedding") and len(np.unique(old)) > 8
        assert (twin.numpy() == old).all() == (not clustered), twin.path


def test_depthwise_kernels_are_clustered_where_they_are_named():
    model = build("depthwise")
    by_default, named = cluster_weights(model, 4), cluster_weights(model, 4, roles=KERNEL_ROLES)
    assert max(distinct(by_default, ("depthwise_kernel",)).values()) > 4
    assert max(distinct(named, ("depthwise_kernel",)).values()) == 4


@pytest.mark.parametrize(
    "layers", ["hidden2", lambda layer: layer.name == "hidden2", "hidden2/kernel"], ids=["path", "function", "weight"]
)
def test_only_the_chosen_layers(layers):
    small = cluster_weights(build("dense"), 3, layers=layers)
    assert [count for count in distinct(small).values() if count <= 3] == [3]
    assert len(np.unique(small.get_layer("hidden2").kernel.numpy())) == 3


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_sparse_models_stay_as_sparse(per):
    model = prune_weights(build("conv_bn"), 0.6)
    small = cluster_weights(model, 5, per=per)
    for old, new in zip(model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(old == 0, new == 0)
    lost = cluster_weights(model, 5, init="linear", iterations=0, preserve_sparsity=False)
    pairs = zip(model.get_weights(), lost.get_weights(), strict=True)
    assert any(((old == 0) != (new == 0)).any() for old, new in pairs)


def test_a_codebook_for_each_channel():
    small = cluster_weights(build("conv_bn"), 3, per="channel")
    kernel = small.get_layer("conv2").kernel.numpy()
    assert all(len(np.unique(kernel[..., channel])) == 3 for channel in range(kernel.shape[-1]))
    assert len(np.unique(kernel)) == 3 * kernel.shape[-1]


def test_the_same_seed_gives_the_same_values_and_a_layer_does_not_rest_on_the_others():
    model = build("dense")
    options = {"init": "random", "iterations": 0}
    one, same, other = (cluster_weights(model, 6, seed=seed, **options).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
    alone = cluster_weights(model, 6, seed=1, layers="logits", **options)
    np.testing.assert_array_equal(alone.get_weights()[-2], one[-2])


def test_more_rounds_and_more_clusters_are_nearer():
    model = build("dense")

    def error(**options):
        pairs = zip(model.get_weights(), cluster_weights(model, **options).get_weights(), strict=True)
        return sum(float(((old - new) ** 2).sum()) for old, new in pairs)

    assert error(clusters=16) < error(clusters=8) < error(clusters=4)
    assert error(clusters=8, init="random") < error(clusters=8, init="random", iterations=0)
    assert error(clusters=8, per="channel") < error(clusters=8)


def test_nothing_to_do_is_said():
    model = cluster_weights(build("dense"), 4)
    with pytest.warns(NoEffectWarning, match="no more than clusters=4 distinct values: hidden1/kernel \\(4\\)"):
        again = cluster_weights(model, 4)
    assert all((a == b).all() for a, b in zip(model.get_weights(), again.get_weights(), strict=True))


def test_what_does_not_fit_is_refused_by_name():
    model = build("dense")
    with pytest.raises(KpipeError, match="layers='conv' matches no clusterable weight of 'dense'"):
        cluster_weights(model, layers="conv")
    with pytest.raises(KpipeError, match="no weight to cluster"):
        cluster_weights(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]))
    kernel = model.get_layer("hidden2").kernel
    kernel.assign(np.where(np.eye(16, 10) > 0, np.nan, kernel.numpy()))
    with pytest.raises(KpipeError, match="hidden2/kernel: The weight holds NaN"):
        cluster_weights(model)
