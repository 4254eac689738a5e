import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.projections import FIELDS, kernels
from kpipe.saliency import CRITERIA
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured import WeightPruning
from tests.models import ZOO, build, samples

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS = 12  # of two epochs of batches of 8


def compiled(optimizer="adam", **options):
    model = build("dense")
    model.compile(optimizer, LOSS, **options)
    return model


def zeros(model):
    return [int((variable.numpy() == 0).sum()) for variable in kernels(model)]


def asked(model, sparsity):
    return [round(sparsity * int(np.prod(variable.shape))) for variable in kernels(model)]


class Watch(keras.callbacks.Callback):
    """Keep the zeros after every batch, and the weights."""

    def __init__(self):
        super().__init__()
        self.zeros, self.weights = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.zeros.append(zeros(self.model))
        self.weights.append([variable.numpy() for variable in kernels(self.model)])


def fit(model, *callbacks, epochs=2, **options):
    watch = Watch()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch


@pytest.mark.parametrize("scope", ["global", "global:lamp", "erk"])
def test_the_count_over_all_weights_is_exact_at_every_step(scope):
    model = compiled()
    schedule = PolynomialDecay(0.1, 0.8, begin_step=1, end_step=STEPS, frequency=2)
    watch = fit(model, WeightPruning(schedule, scope=scope))
    sparsity = 0.0
    for step in range(1, STEPS + 1):
        due, found = schedule(step)
        sparsity = found if due else sparsity
        assert sum(watch.zeros[step - 1]) == round(sparsity * sum(asked(model, 1.0)))
    assert watch.zeros[-1] != asked(model, 0.8), "each weight has a share of its own"


def test_the_smallest_weights_go_and_what_is_dropped_stays_dropped():
    model = compiled()
    before = [variable.numpy() for variable in kernels(model)]
    prune = WeightPruning(ConstantSparsity(0.5, begin_step=0))
    watch = fit(model, prune, epochs=1)
    for old, new in zip(before, watch.weights[0], strict=True):
        order = np.argsort(np.abs(old).reshape(-1), kind="stable")[: round(0.5 * old.size)]
        expected = np.ones(old.size, bool)
        expected[order] = False
        np.testing.assert_array_equal(new != 0, expected.reshape(old.shape))
    for first, last in zip(watch.weights[0], watch.weights[-1], strict=True):
        np.testing.assert_array_equal(first == 0, last == 0)


def test_a_global_ranking_drops_the_smallest_of_all():
    model = compiled()
    before = np.concatenate([np.abs(variable.numpy()).reshape(-1) for variable in kernels(model)])
    model.optimizer.learning_rate = 0.0
    fit(model, WeightPruning(ConstantSparsity(0.6, begin_step=0), scope="global"), epochs=1)
    after = np.concatenate([variable.numpy().reshape(-1) for variable in kernels(model)])
    assert before[after == 0].max() <= before[after != 0].min() and int((after == 0).sum()) == round(0.6 * after.size)


def test_it_goes_on_in_a_second_fit_and_after_a_plain_one():
    model = compiled()
    fit(model, epochs=1)  # 6 plain steps: the traced train function must not be used again
    schedule = PolynomialDecay(0.0, 0.8, 0, 18, frequency=3)
    prune = WeightPruning(schedule)
    with pytest.warns(UserWarning, match=r"ended at step 12, before its schedule reaches .* at step 18"):
        fit(model, prune, epochs=1)
    assert zeros(model) == asked(model, schedule(12)[1])
    fit(model, prune, epochs=1)
    assert zeros(model) == asked(model, 0.8)
    fit(model, prune, epochs=1)  # past the end: what is zero stays zero
    assert zeros(model) == asked(model, 0.8)
    fit(model, epochs=1)
    assert sum(zeros(model)) < sum(asked(model, 0.8)), "without the callback the zeros are free"


def test_zeros_of_before_are_kept_even_where_fewer_are_asked_for():
    model = compiled()
    first = kernels(model)[0]
    keep = RNG.random(first.shape) < 0.2
    first.assign(first * keep)
    fit(model, WeightPruning(ConstantSparsity(0.5, begin_step=3, frequency=1)))
    np.testing.assert_array_equal(first.numpy() != 0, keep)
    assert zeros(model)[1:] == asked(model, 0.5)[1:]


def test_the_users_constraint_is_chained_and_given_back():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, kernel_constraint="non_neg")])
    model.compile("adam", LOSS)
    (kernel,) = kernels(model)
    own = kernel.constraint
    fit(model, WeightPruning(ConstantSparsity(0.5, begin_step=0)))
    assert kernel.constraint is own and (kernel.numpy() >= 0).all() and int((kernel.numpy() == 0).sum()) >= 24


@pytest.mark.parametrize("layers", ["hidden2", lambda layer: layer.name == "hidden2"])
def test_only_the_chosen_layers_are_pruned_and_the_report_says_so(layers):
    model = compiled()
    prune = WeightPruning(ConstantSparsity(0.5, begin_step=0), layers=layers)
    fit(model, prune, epochs=1)
    assert zeros(model) == [0, asked(model, 0.5)[1], 0]
    report = prune.report()
    (row,) = report.pruned
    assert (row.shape, row.zeros, row.sparsity) == ((16, 10), 80, 0.5) and row.path.endswith("hidden2/kernel")
    reasons = {
        skipped.path.split("/")[-2] + "/" + skipped.path.split("/")[-1]: skipped.reason for skipped in report.skipped
    }
    assert reasons["hidden1/kernel"] == "not selected by layers" and "'bias'" in str(reasons["hidden1/bias"])
    assert "hidden2/kernel" in str(report) and "50.0%" in str(report) and "skipped: not selected" in str(report)
    assert len(report.to_list()) == 6 and report.sparsity == 0.5


class Scale(keras.layers.Layer):
    """A layer that kpipe does not know."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, x):
        return x * self.factor


class Own(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = keras.Sequential([keras.layers.Dense(6)]), Scale()
        self.head, self.frozen = keras.layers.Dense(4), keras.layers.Dense(12, trainable=False)

    def call(self, x):
        return self.head(self.scale(self.inner(self.frozen(x))))


@pytest.mark.plain_fit
def test_subclassed_models_unknown_and_frozen_layers():
    model = Own()
    model.compile("adam", LOSS)
    prune = WeightPruning(ConstantSparsity(0.5, begin_step=0))
    fit(model, prune, epochs=1)
    assert [row.zeros for row in prune.report().pruned] == [36, 12]
    reasons = [str(row.reason) for row in prune.report().skipped]
    assert any("Scale" in reason for reason in reasons) and any("frozen" in reason for reason in reasons)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", [name for name in ZOO if name != "siamese"])
def test_every_model_of_the_zoo(name):
    model = build(name)
    x, y = samples(model, 16)[0], np.arange(16) % model.output_shape[-1]
    model.compile("adam", LOSS)
    prune = WeightPruning(PolynomialDecay(0.0, 0.75, 0, 4, frequency=3))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[prune])
    rows = prune.report().pruned
    assert rows and all(row.zeros == round(0.75 * int(np.prod(row.shape))) for row in rows)
    assert len({row.path for row in rows}) == len(rows)


FROM_TRAINING = [name for name in CRITERIA if set(CRITERIA.facts(name)["needs"]) & set(FIELDS)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "bn_scale"])  # it judges norms
def test_every_criterion(criterion):
    model = compiled()
    fit(model, WeightPruning(PolynomialDecay(0.1, 0.6, 0, 6, frequency=3), criterion, data=(X, Y)), epochs=1)
    assert zeros(model) == asked(model, 0.6)


@pytest.mark.parametrize("criterion", FROM_TRAINING)
def test_without_data_gradients_come_from_the_training_and_the_first_update_after_the_first_batch(criterion):
    model = compiled()
    watch = fit(model, WeightPruning(PolynomialDecay(0.1, 0.6, 0, 6, frequency=3), criterion), epochs=1)
    assert [sum(found) for found in watch.zeros[:2]] == [sum(asked(model, 0.1))] * 2
    assert zeros(model) == asked(model, 0.6)
    assert "apply" not in vars(model.optimizer)


def test_scores_from_the_training_are_those_of_its_mean_gradient():
    model = build("dense")
    model.layers[1].rate = 0.0  # no dropout: the loss of a batch is known
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    kernel = kernels(model)[0]
    before, gradients = kernel.numpy(), []
    for start in range(0, 24, 8):
        with tf.GradientTape() as tape:
            loss = LOSS(Y[start : start + 8], model(X[start : start + 8]))
        gradients.append(np.asarray(tape.gradient(loss, kernel.value)))
    model.fit(
        X[:24],
        Y[:24],
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[WeightPruning(ConstantSparsity(0.5, begin_step=3), "taylor")],
    )
    scores = np.abs(before * np.mean(gradients, axis=0)).ravel()
    lowest = np.sort(np.argsort(scores, kind="stable")[:96])
    np.testing.assert_array_equal(np.flatnonzero(kernel.numpy() == 0), lowest)


def test_each_weight_follows_the_first_schedule_whose_expression_is_found():
    model = compiled()
    schedules = {
        "hidden1": ConstantSparsity(0.25, 0),
        "hidden": PolynomialDecay.over_epochs(final_sparsity=0.5, begin=1, end=2),
    }
    prune = WeightPruning(schedules)
    watch = fit(model, prune)
    assert watch.zeros[5] == [48, 0, 0] and watch.zeros[-1] == [48, 80, 0]
    (reason,) = [row.reason for row in prune.report().skipped if row.path.endswith("logits/kernel")]
    assert reason == "no schedule's expression is found in its path"


def test_a_pattern_on_a_schedule_and_a_weight_that_cannot_have_it():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(2), keras.layers.Dense(8), keras.layers.Dense(4)])
    model.compile("adam", LOSS)
    prune = WeightPruning(PolynomialDecay(0.0, 0.5, 0, STEPS, frequency=3), pattern="2:4")
    watch = fit(model, prune)
    first, _, last = kernels(model)
    assert watch.zeros[5][0] == round(24 * 0.5 * (1 - 0.5**3)) and watch.zeros[-1] == [12, 0, 16]
    for kernel in (first, last):
        assert ((kernel.numpy() != 0).reshape(-1, 4, kernel.shape[1]).sum(axis=1) == 2).all()
    assert any("'2:4' keeps 2 of each group" in str(row.reason) for row in prune.report().skipped)


def test_blocks_transposed_kernels_and_roles():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            keras.layers.Conv2DTranspose(6, 2),
            keras.layers.DepthwiseConv2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    model.compile("adam", LOSS)
    prune = WeightPruning(
        ConstantSparsity(0.5, 0), pattern="block:2x1", layers=keras.layers.Conv2DTranspose, roles=("kernel",)
    )
    model.fit(RNG.normal(size=(8, 4, 4, 4)), np.arange(8) % 4, verbose=0, callbacks=[prune])
    kernel = model.layers[0].kernel.numpy()  # (rows, columns, outputs, inputs)
    assert (kernel == 0).sum() == 48 and ((kernel == 0)[..., 0::2] == (kernel == 0)[..., 1::2]).all()
    prune = WeightPruning(ConstantSparsity(0.5, 0), roles=("depthwise_kernel",))
    model.fit(RNG.normal(size=(8, 4, 4, 4)), np.arange(8) % 4, verbose=0, callbacks=[prune])
    assert [row.zeros for row in prune.report().pruned] == [12]


def test_nothing_but_a_byte_an_entry_is_kept():
    prune = WeightPruning(PolynomialDecay(0.1, 0.6, 0, 6, frequency=3))
    fit(compiled(), prune, epochs=1)
    found, seen, waiting = 0, set(), [vars(prune)["_weights"], *(value for name, value in vars(prune).items())]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, keras.Model | keras.layers.Layer | keras.Variable | type):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            found += one.nbytes
        elif isinstance(one, tf.Variable):
            found += one.shape.num_elements() * one.dtype.size
        elif isinstance(one, dict | list | tuple):
            waiting += one.values() if isinstance(one, dict) else one
        else:
            waiting.append(getattr(one, "__dict__", ()))
    assert found == 12 * 16 + 16 * 10 + 10 * 4


def test_a_function_as_criterion_and_as_pattern():
    def middle(evidence):
        return -np.abs(evidence.weight)  # the largest go first

    def columns(scores, sparsity):
        keep = np.ones(scores.shape, bool)
        keep[:, : round(sparsity * scores.shape[1])] = False
        return keep

    model = compiled(keras.optimizers.SGD(0.0))
    before = np.abs(kernels(model)[0].numpy())
    fit(model, WeightPruning(ConstantSparsity(0.25, 0), middle, columns, layers="hidden1"), epochs=1)
    assert not kernels(model)[0].numpy()[:, :4].any() and kernels(model)[0].numpy()[:, 4:].all()
    model = compiled(keras.optimizers.SGD(0.0))
    fit(model, WeightPruning(ConstantSparsity(0.25, 0), middle, layers="hidden1"), epochs=1)
    gone = kernels(model)[0].numpy() == 0
    assert before[gone].min() >= before[~gone].max()


def test_a_run_too_short_says_so():
    with pytest.warns(NoEffectWarning, match="pruned nothing: training ended at step 6, before begin_step=100"):
        fit(compiled(), WeightPruning(ConstantSparsity(0.5, begin_step=100)), epochs=1)
    with pytest.warns(UserWarning, match="ended at step 6, before its schedule reaches 0.5 at step 50"):
        fit(compiled(), WeightPruning(PolynomialDecay(0.2, 0.5, 0, 50)), epochs=1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WeightPruning(ConstantSparsity(0.5, 0), "obd"), r"needs data.*kpipe\.prune_weights.*data="),
        (lambda: WeightPruning(ConstantSparsity(0.8, 0), pattern="2:4"), "reaches 0.5 at most"),
        (
            lambda: fit(compiled(), WeightPruning({"conv": ConstantSparsity(0.5, 0)})),
            "expression 'conv' is found in the path of no weight.*hidden1/kernel",
        ),
        (lambda: WeightPruning(ConstantSparsity(0.5, 0), "tailor"), "Did you mean 'taylor'"),
        (lambda: WeightPruning(ConstantSparsity(0.5, 0), scope="model"), "scope is 'model'"),
        (lambda: WeightPruning(0.5), "schedule is 0.5"),
        (lambda: WeightPruning(ConstantSparsity(0.5, 0)).report(), "has no model yet"),
        (
            lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), layers="conv")),
            "prunable weights: .*hidden1/kernel",
        ),
        (lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), layers="(")), "no regular expression"),
        (lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), layers=3)), "layers is 3"),
        (
            lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), layers=keras.layers.Dense(2, name="d"))),
            "layers is <Dense name=d.*expected None, a regular expression",
        ),
        (lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), lambda e: None)), "gave None for"),
        (lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), lambda e: np.ones(3))), r"shape \(3,\)"),
        (lambda: fit(compiled(), WeightPruning(ConstantSparsity(0.5, 0), lambda e: e.weight * np.nan)), "NaN"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()
