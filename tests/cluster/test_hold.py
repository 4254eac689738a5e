"""Where clustering must hold: few distinct values after every step, the same clusters, exact zeros."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.cluster import HoldClusters, WeightClustering, cluster_weights
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import Codebook, average_of, hold_clusters, kernels
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured import WeightPruning
from tests.cluster.nets import LOSS, X, Y, compiled, fit, partition

O = keras.optimizers  # noqa: E741
CLUSTERS = 6
OPTIMIZERS = {
    "sgd momentum": lambda: O.SGD(0.01, momentum=0.9, nesterov=True),
    "adam": lambda: O.Adam(0.01),
    "adamw, clipnorm": lambda: O.AdamW(0.01, weight_decay=0.1, clipnorm=0.1),
    "lion, global clipnorm": lambda: O.Lion(0.001, weight_decay=0.1, global_clipnorm=0.1),
    "muon": lambda: O.Muon(0.01, exclude_layers=["logits"]),
    "averages": lambda: O.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "averages written back": lambda: O.SGD(0.01, momentum=0.9, use_ema=True, ema_overwrite_frequency=5),
    "accumulation": lambda: O.Adam(0.01, gradient_accumulation_steps=2),
    "scaled": lambda: O.LossScaleOptimizer(O.SGD(1e-3, momentum=0.9)),
}
MODES = {
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "three steps an execution": {"steps_per_execution": 3},
    "xla, five steps an execution": {"jit_compile": True, "steps_per_execution": 5},
}


def holds(model, watch, zeros, most=CLUSTERS):
    """Tell whether at most so many values, the same clusters and the very zeros were there after every step."""
    kept = [variable.numpy() == 0 for variable in kernels(model)]
    few = max(max(counts) for counts in watch.counts) <= most
    exact = all((one == other).all() for step in [*watch.zeros, kept] for one, other in zip(step, zeros, strict=True))
    return few and exact and watch.same


@pytest.mark.plain_fit
@pytest.mark.sweep(2)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer(optimizer):
    if optimizer == "muon" and getattr(O, "Muon", None) is None:
        pytest.skip("this Keras has no such optimizer")
    model = compiled(OPTIMIZERS[optimizer](), sparsity=0.4, jit_compile=False)
    zeros, before = [v.numpy() == 0 for v in kernels(model)], [v.numpy() for v in kernels(model)]
    watch = fit(model, WeightClustering(CLUSTERS))
    assert holds(model, watch, zeros) and len(watch.counts) == 12
    for variable, old in zip(kernels(model), before, strict=True):
        value, average = variable.numpy(), average_of(model.optimizer, variable)
        assert (value != old)[old != 0].mean() > 0.9
        if average is not None:
            assert (partition(average.numpy()) == partition(value)).all()


@pytest.mark.plain_fit
@pytest.mark.sweep(2)
@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_of_execution(mode):
    model = compiled(O.SGD(0.01, momentum=0.9), sparsity=0.4, **MODES[mode])
    zeros = [v.numpy() == 0 for v in kernels(model)]
    assert holds(model, fit(model, WeightClustering(CLUSTERS)), zeros)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_in_half_precision(policy):
    model = compiled(O.Adam(0.01), sparsity=0.4, policy=policy, jit_compile=False)
    zeros = [v.numpy() == 0 for v in kernels(model)]
    assert holds(model, fit(model, WeightClustering(CLUSTERS)), zeros)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_after_a_training_without_clusters(per):
    """What the optimizer remembers of each entry would part those of a cluster."""
    model = compiled(O.Adam(0.01), sparsity=0.4)
    model.fit(X, Y, batch_size=8, verbose=0)
    for variable in kernels(model):
        variable.assign(variable.numpy() * (np.random.default_rng(2).random(variable.shape) > 0.4))
    zeros = [v.numpy() == 0 for v in kernels(model)]
    watch = fit(model, WeightClustering(4, per=per))
    assert holds(model, watch, zeros, most=4 if per == "layer" else 3 * 16 + 1)
    for variable in kernels(model):
        assert all(len(np.unique(column)) <= 4 for column in variable.numpy().T)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("lost", ["values", "gradients", None])
def test_the_contract_fails_without_either_half(lost, monkeypatch):
    """Without the projection values part; without the shared gradient a step is not that of the common value."""
    model = compiled(O.Adam(0.01), sparsity=0.4)
    model.fit(X, Y, batch_size=8, verbose=0)
    if lost == "values":
        monkeypatch.setattr(Codebook, "__call__", lambda self, w: tf.convert_to_tensor(w))
    if lost == "gradients":
        monkeypatch.setattr(Codebook, "shared", lambda self, gradient, mean=False: gradient)
    watch = fit(model, WeightClustering(4))
    assert (max(map(max, watch.counts)) <= 4) == (lost != "values")
    assert (away_from_by_hand(O.SGD(0.05), {}) < 1e-6) == (lost != "gradients")


def sgd(step, gradient, memory):
    return 0.05 * gradient


def away_from_by_hand(optimizer, options, steps=1, rule=sgd, **compile_options):
    """Train the common values of a linear layer in NumPy; give how far the values of a `fit` are from those."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 5)).astype("float32"), rng.normal(size=(6, 4)).astype("float32")
    numbers = np.array(rng.permutation(np.arange(20) % 4)).reshape(5, 4)
    values = np.array([0.0, -0.7, 0.4, 0.9])
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, use_bias=False)])
    net.layers[0].kernel.assign(values[numbers])
    net.compile(optimizer, "mse", **compile_options)
    net.fit(x, y, batch_size=6, epochs=steps, verbose=0, callbacks=[WeightClustering(4, **options)])
    memory = {}
    for step in range(1, steps + 1):
        w = values[numbers]
        gradient = 2 * x.T @ (x @ w - y) / y.size
        total = np.array([gradient[numbers == n].sum() for n in range(4)])
        if options.get("gradient") == "mean":
            total /= np.bincount(numbers.ravel())
        moved = rule(step, total, memory)
        moved[0] = 0  # exact zeros stay
        values = values - moved
    return float(np.abs(net.layers[0].kernel.numpy() - values[numbers]).max())


def momentum(step, gradient, memory):
    memory["v"] = 0.9 * memory.get("v", 0) + 0.05 * gradient
    return memory["v"].copy()


def adam(step, gradient, memory):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * gradient
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * gradient**2
    scale = 0.05 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return scale * memory["m"] / (np.sqrt(memory["v"]) + 1e-7)


RULES = {
    "sgd": (lambda: O.SGD(0.05), sgd, 1e-6),
    "momentum": (lambda: O.SGD(0.05, momentum=0.9), momentum, 1e-6),
    "adam": (lambda: O.Adam(0.05), adam, 5e-6),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("gradient", ["sum", "mean"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 4])
def test_values_are_trained_as_if_they_were_the_weights(rule, gradient, steps):
    make, by_hand, tolerance = RULES[rule]
    assert away_from_by_hand(make(), {"gradient": gradient}, steps, by_hand) < tolerance


def test_compiled_by_xla_and_accumulated_the_sum_is_the_same():
    def every_second(step, gradient, memory):
        return 0.05 * gradient * (step == 2)

    assert away_from_by_hand(O.SGD(0.05), {}, jit_compile=True) < 1e-6
    assert away_from_by_hand(O.SGD(0.05, gradient_accumulation_steps=2), {}, 2, every_second) < 1e-6


def test_gradients_of_rows_are_shared_too():
    """An Embedding's gradient names rows, some of them twice."""
    net = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2)])
    before = np.array([[0.5, 0.5], [1.0, 0.5], [0.5, 1.0], [1.0, 1.0], [0.0, 0.5]])
    net.layers[0].embeddings.assign(before)
    net.compile(O.SGD(1.0), keras.losses.MeanSquaredError("sum"))
    tokens, asked = np.array([[0, 1, 0], [4, 4, 2]]), np.zeros((2, 3, 2))
    net.fit(tokens, asked, batch_size=2, verbose=0, callbacks=[WeightClustering(3)])
    gradient = np.zeros((5, 2))
    for token in tokens.ravel():
        gradient[token] += before[token]  # of the sum over places of the mean of two squares
    values = {value: value - gradient[before == value].sum() for value in (0.5, 1.0)} | {0.0: 0.0}
    np.testing.assert_allclose(net.layers[0].embeddings.numpy(), np.vectorize(values.get)(before), rtol=1e-6)


def test_a_second_fit_keeps_the_clusters():
    model = compiled(sparsity=0.4)
    zeros = [v.numpy() == 0 for v in kernels(model)]
    cluster = WeightClustering(CLUSTERS)
    first, second = fit(model, cluster), fit(model, cluster)
    assert holds(model, second, zeros)
    for one, other in zip(first.partitions[-1], second.partitions[-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_is_given_back_at_the_end():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, kernel_constraint="non_neg", name="only")])
    model.compile("sgd", LOSS)
    kernel, own = model.layers[0].kernel, model.layers[0].kernel.constraint
    watch = fit(model, WeightClustering(4))
    assert kernel.constraint is own and (kernel.numpy() >= 0).all() and max(map(max, watch.counts)) <= 4
    assert "apply" not in vars(model.optimizer)
    assert max(fit(model).counts[-1]) > 20, "nothing is held any more"


def test_a_fit_that_broke_off_is_let_go():
    """Else gradients would be summed twice."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    once, twice = compiled(O.SGD(0.01)), compiled(O.SGD(0.01))
    with pytest.raises(KeyboardInterrupt):
        fit(twice, WeightClustering(4), Stop())
    once.set_weights(twice.get_weights())
    for model in (once, twice):
        keras.utils.set_random_seed(5)
        fit(model, WeightClustering(4), epochs=1)
    for one, other in zip(once.get_weights(), twice.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_restored_weights_are_clustered(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    def callbacks(*more):
        return [keras.callbacks.BackupAndRestore(tmp_path / "backup"), WeightClustering(CLUSTERS), *more]

    with pytest.raises(KeyboardInterrupt):
        fit(compiled(sparsity=0.4), *callbacks(Stop()))
    again = compiled(sparsity=0.4)
    zeros = [v.numpy() == 0 for v in kernels(again)]
    watch = fit(again, *callbacks())
    assert len(watch.counts) == 6 and holds(again, watch, zeros)


@pytest.mark.parametrize("first", [True, False])
def test_best_weights_that_are_restored_are_clustered(first):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, restore_best_weights=True, min_delta=10.0)
    model, cluster = compiled(O.SGD(0.01)), WeightClustering(CLUSTERS)
    fit(model, *([stop, cluster] if first else [cluster, stop]), epochs=4)
    assert all(len(np.unique(variable.numpy())) <= CLUSTERS for variable in kernels(model))


@pytest.mark.slow
def test_a_distiller_trains_its_student():
    student, teacher = compiled(), compiled()
    distiller = keras.distillation.Distiller(teacher, student, keras.distillation.LogitsDistillation())
    distiller.compile("adam", LOSS)
    distiller.fit(X, Y, batch_size=8, verbose=0, callbacks=[WeightClustering(CLUSTERS)])
    assert all(len(np.unique(variable.numpy())) == CLUSTERS for variable in kernels(student))


class Freeze(keras.callbacks.Callback):
    """Freeze or unfreeze the hidden layer before the second epoch."""

    def __init__(self, trainable):
        super().__init__()
        self.trainable = trainable

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = self.trainable
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_layer_that_is_frozen_or_unfrozen_midway(trainable):
    model = compiled(O.SGD(0.01))
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = not trainable
    cluster = WeightClustering(CLUSTERS)
    watch = fit(model, Freeze(trainable), cluster)
    assert (watch.counts[5][0] > CLUSTERS) == trainable
    assert watch.counts[-1] == [CLUSTERS, CLUSTERS]
    assert [row.path for row in cluster.report().clustered][-1] == "logits/kernel"
    assert ("frozen" in str(cluster.report())) == (not trainable)


class Own(keras.Model):
    """A subclassed model that has no weights before its first batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(16, "relu"), keras.layers.Dense(4)

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.plain_fit
def test_a_model_without_weights_begins_after_its_first_batch():
    model = Own()
    model.compile("adam", LOSS)
    watch = fit(model, WeightClustering(CLUSTERS))
    assert max(map(max, watch.counts[1:])) <= CLUSTERS


def test_in_a_loop_of_ones_own():
    model, cluster = compiled(O.Adam(0.01)), WeightClustering(CLUSTERS)
    cluster.set_model(model)
    cluster.on_train_begin()
    for step in range(6):
        model.train_on_batch(X[8 * step : 8 * step + 8], Y[8 * step : 8 * step + 8])
        cluster.on_train_batch_end(step)
        assert all(len(np.unique(variable.numpy())) <= CLUSTERS for variable in kernels(model))
    cluster.on_train_end()
    assert all(variable.constraint is None for variable in kernels(model))


def test_prune_then_cluster_then_train_on():
    model = compiled(O.Adam(0.01))
    fit(model, WeightPruning(ConstantSparsity(0.5, begin_step=0)))
    zeros = [v.numpy() == 0 for v in kernels(model)]
    assert holds(model, fit(model, WeightClustering(CLUSTERS)), zeros)
    assert holds(model, fit(model, HoldClusters()), zeros)
    with hold_clusters(model):
        assert holds(model, fit(model), zeros)
    assert not holds(model, fit(model), zeros)


def test_clusters_are_held_once():
    model = compiled()
    model.set_weights(cluster_weights(model, CLUSTERS).get_weights())
    with hold_clusters(model), pytest.raises(KpipeError, match="hidden/kernel are held already"):
        fit(model, WeightClustering(CLUSTERS))
    with pytest.raises(KpipeError, match="hidden/kernel are held already"):
        fit(model, WeightClustering(CLUSTERS), WeightClustering(CLUSTERS))
    first, second = WeightClustering(CLUSTERS, layers="hidden"), WeightClustering(4, layers="logits")
    assert fit(model, first, second).counts[-1] == [CLUSTERS, 4]
    assert all(variable.constraint is None for variable in kernels(model)) and "apply" not in vars(model.optimizer)


def test_what_is_left_alone_is_named():
    model = compiled()
    kernels(model)[0].assign(np.zeros((12, 16)))
    cluster = WeightClustering(64, layers="hidden|logits")
    with pytest.warns(NoEffectWarning, match=r"logits/kernel: no two of its entries.*hidden/kernel: it is nothing but"):
        fit(model, cluster, epochs=1)
    assert {row.path: row.reason for row in cluster.report().skipped}["hidden/kernel"].startswith("it is nothing but")
    with pytest.raises(KpipeError, match="layers='nothing' matches no clusterable weight"):
        fit(compiled(), WeightClustering(layers="nothing"))
    with pytest.raises(KpipeError, match=r"gradient is 'summ'; expected one of sum, mean\. Did you mean 'sum'\?"):
        WeightClustering(gradient="summ")
    with pytest.raises(KpipeError, match="has no model yet"):
        WeightClustering().report()


def test_the_report_counts_what_is_left():
    model, cluster = compiled(sparsity=0.4), WeightClustering(CLUSTERS)
    zeros = [int((variable.numpy() == 0).sum()) for variable in kernels(model)]
    fit(model, cluster)
    rows = cluster.report().clustered
    assert [(row.path, row.clusters, row.bits, row.zeros) for row in rows] == [
        ("hidden/kernel", 6, 3, zeros[0]),
        ("logits/kernel", 6, 3, zeros[1]),
    ]
    assert [row.packed_bytes for row in rows] == [192 * 3 // 8, 64 * 3 // 8]
