import keras
import numpy as np
import pytest
from keras import layers as L

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


OF_KERNELS = [name for name in CRITERIA if name != "bn_scale" and "movement" not in CRITERIA.facts(name)["needs"]]


def test_a_criterion_of_norms_alone_refuses_kernels():
    with pytest.raises(KpipeError, match=r"gave None for 'hidden1/kernel' \(role 'kernel'\)"):
        prune_weights(build("dense"), 0.5, criterion="bn_scale")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", OF_KERNELS)
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


def every_axis():
    """Build a model whose kernels have their inputs on different axes, all a multiple of four."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 4))
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
    x = L.Conv2DTranspose(12, 3, padding="same", activation="relu", name="transposed")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Reshape((36, 12), name="sequence")(x)
    x = L.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = L.GlobalAveragePooling1D(name="average")(x)
    return keras.Model(image, L.Dense(5, name="dense")(x))


def along_inputs(model):
    """Give the kernels with their inputs first: path -> shape (inputs, everything else)."""
    inputs = {
        "conv/kernel": (2,),
        "transposed/kernel": (3,),  # (height, width, out, in)
        "attention/query/kernel": (0,),  # (in, head, dimension)
        "attention/key/kernel": (0,),
        "attention/value/kernel": (0,),
        "attention/attention_output/kernel": (0, 1),  # (head, dimension, out)
        "dense/kernel": (0,),
    }
    by_path = {variable.path: variable.numpy() for variable in model.variables}
    return {
        path: np.moveaxis(by_path[path], axes, range(len(axes))).reshape(
            int(np.prod([by_path[path].shape[axis] for axis in axes])), -1
        )
        for path, axes in inputs.items()
    }


@pytest.mark.sweep(6)
@pytest.mark.parametrize("scope", ["layer", "global", "global:lamp", "erk"])
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:2", 1, 2)])
def test_n_of_m_goes_along_the_inputs_of_every_kind_of_kernel(pattern, n, m, scope):
    model = every_axis()
    pruned = prune_weights(model, 1 - n / m, pattern=pattern, scope=scope)
    old, new = along_inputs(model), along_inputs(pruned)
    for path, kernel in new.items():
        groups = kernel.reshape(-1, m, kernel.shape[-1])
        assert (np.count_nonzero(groups, axis=1) == n).all(), path
        before = np.abs(old[path].reshape(groups.shape))
        highest = np.sort(before, axis=1)[:, m - n :].sum(axis=1)
        np.testing.assert_allclose(np.abs(groups).sum(axis=1), highest, rtol=1e-6, err_msg=path)
    assert sum(np.count_nonzero(variable.numpy() == 0) for variable in kernels(pruned)) == sum(
        kernel.size - kernel.size // m * n for kernel in new.values()
    ), "depthwise kernels stay dense"


def test_n_of_m_along_the_wrong_axis_would_be_seen():
    model = every_axis()
    pruned = along_inputs(prune_weights(model, 0.5))
    assert any((np.count_nonzero(k.reshape(-1, 4, k.shape[-1]), axis=1) != 2).any() for k in pruned.values())


@pytest.mark.sweep(6)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x1", "block:2x2:max"])
@pytest.mark.parametrize("scope", ["layer", "global", "global:mean", "global:lamp:0.5", "erk"])
def test_every_scope_gives_its_count_in_every_pattern(scope, pattern):
    model = every_axis()
    pruned = prune_weights(model, 0.4, pattern=pattern, scope=scope)
    chosen = [variable for variable in kernels(pruned) if "depthwise" not in variable.path]
    gone, total = (sum(int(count(v.numpy())) for v in chosen) for count in (lambda w: (w == 0).sum(), np.size))
    slack = len(chosen) * (2 if pattern.startswith("block") else 0.5) if scope in ("layer", "erk") else 2.5
    assert gone == pytest.approx(0.4 * total, abs=slack)
    assert all((v.numpy() == 0).mean() <= 0.5 for v in chosen) or scope not in ("global:lamp:0.5", "layer")


def test_depthwise_kernels_are_pruned_when_they_are_named():
    model = every_axis()
    pruned = prune_weights(model, 0.5, roles=("depthwise_kernel",))
    zeros = {variable.path: int((variable.numpy() == 0).sum()) for variable in kernels(pruned)}
    assert zeros.pop("depthwise/kernel") == 54 and not any(zeros.values())


def test_a_layer_class_chooses():
    pruned = prune_weights(every_axis(), 0.5, layers=L.Conv2D)
    assert {variable.path for variable in kernels(pruned) if (variable.numpy() == 0).any()} == {"conv/kernel"}


def test_what_cannot_have_the_pattern_stays_and_is_named():
    model = build("depthwise")
    with pytest.warns(UserWarning, match="dw/kernel: the pattern '1:2' keeps 1 of each group, and it sums over 1"):
        pruned = prune_weights(model, 0.5, pattern="1:2", roles=("kernel", "depthwise_kernel"))
    left = {variable.path for variable in kernels(pruned) if not (variable.numpy() == 0).any()}
    assert left == {"dw/kernel", "sep/depthwise_kernel"}


def test_a_function_is_a_pattern():
    def first_inputs(scores, sparsity):
        keep = np.ones(scores.shape, bool)
        keep[..., : round(sparsity * scores.shape[-2]), :] = False
        return keep

    pruned = prune_weights(every_axis(), 0.5, pattern=first_inputs, layers="transposed")
    kernel = along_inputs(pruned)["transposed/kernel"]
    assert not kernel[:4].any() and kernel[4:].all()


def test_a_subclassed_model_is_pruned():
    @keras.saving.register_keras_serializable(package="tests")
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.second = L.Dense(8, name="first"), L.Dense(3, name="second")

        def call(self, x):
            return self.second(self.first(x))

        def build(self, shape):
            self.first.build(shape)
            self.second.build((None, 8))
            self.built = True

    model = Net()
    model.build((None, 12))
    pruned = prune_weights(model, 0.5)
    assert [int((v.numpy() == 0).sum()) for v in kernels(pruned)] == [48, 12]
    assert type(pruned) is Net and all(v.numpy().all() for v in kernels(model))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: prune_weights("model", 0.5), "Received str; expected a Keras 3 model"),
        (lambda: prune_weights(keras.Sequential([keras.layers.Dense(2)]), 0.5), "not built"),
        (lambda: prune_weights(build("dense"), 1.0), "sparsity is 1.0"),
        (lambda: prune_weights(build("dense"), float("nan")), "sparsity is nan"),
        (lambda: prune_weights(build("dense"), "0.5"), "sparsity is '0.5'; expected a fraction"),
        (lambda: prune_weights(build("dense"), 0.6, pattern="2:4"), "pattern '2:4' reaches 0.5 at most"),
        (lambda: prune_weights(build("dense"), 0.5, pattern="2:4", scope="everywhere"), "scope is 'everywhere'"),
        (lambda: prune_weights(build("dense"), 0.5, pattern="3:2"), "n:m, 1 <= n < m"),
        (
            lambda: prune_weights(build("conv_bn"), 0.25, pattern="3:4", layers="conv1"),
            "No weight can have the pattern",
        ),
        (lambda: prune_weights(build("dense"), 0.5, "movement"), "movement"),
        (lambda: prune_weights(build("dense"), 0.5, layers="conv9"), "matches no prunable weight"),
        (lambda: prune_weights(build("dense"), 0.5, "taylor"), "needs"),
        (lambda: prune_weights(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]), 0.5), "no weight to prune"),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
