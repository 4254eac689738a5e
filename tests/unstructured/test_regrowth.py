import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.patterns import ErdosRenyiKernel
from kpipe.projections import kernels
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured import WeightPruning
from kpipe.unstructured.regrowth import GROWTHS, Regrowth, replace
from kpipe.unstructured.slots import slots_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 12)).astype("float32")
Y = RNG.integers(0, 4, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHAPES = [(12, 16), (16, 4)]


def compiled(optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)])
    model.compile(optimizer, LOSS, **options)
    return model


def moved(keep, scores, growth, count):
    """Drop the `count` lowest of what is kept, one by one, then grow as many; lowest indices first among equals."""
    new = keep.copy()
    for _ in range(count):
        places = np.flatnonzero(new)
        new[places[np.argmin(scores[places])]] = False
    stays = new.copy()
    for _ in range(count):
        places = np.flatnonzero(~new)[::-1]
        new[places[np.argmax(growth[places])]] = True
    assert (new | ~stays).all()
    return new


@pytest.mark.parametrize("growth", ["spread", "ties"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("gone", [0, 20, 45])
def test_as_many_grow_as_are_dropped(gone, fraction, growth):
    rng = np.random.default_rng(gone)
    keep = rng.permutation(60) >= gone
    scores = rng.random(60)
    grows = rng.random(60) if growth == "spread" else rng.integers(0, 3, 60).astype("float64")
    found = replace(keep, scores, grows, fraction)
    np.testing.assert_array_equal(found, moved(keep, scores, grows, round(fraction * (60 - gone))))
    assert np.count_nonzero(~found) == gone


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_the_sparsity_can_change_at_a_move(sparsity):
    rng = np.random.default_rng(1)
    keep = rng.random(50) < 0.5
    found = replace(keep, rng.random(50), rng.random(50), 0.3, sparsity=sparsity)
    assert np.count_nonzero(~found) == round(50 * sparsity)


def test_blocks_move_whole():
    rng = np.random.default_rng(2)
    blocks = rng.random((4, 6)) < 0.5
    keep = blocks.repeat(2, axis=0)
    found = replace(keep, rng.random((8, 6)), rng.random((8, 6)), 0.5, "block:2x1")
    assert (found[0::2] == found[1::2]).all() and found.sum() == keep.sum() and (found != keep).any()


def keep_all(scores, sparsity):
    return np.ones(scores.shape, bool)


@pytest.mark.parametrize(("pattern", "name"), [("2:4", "2:4"), (keep_all, "keep_all")])
def test_groups_and_functions_have_nothing_to_move(pattern, name):
    with pytest.raises(KpipeError, match=f"'{name}' says which weights may go"):
        WeightPruning(ConstantSparsity(0.5, 0), pattern=pattern, regrowth="rigl")


def test_the_fraction_falls_as_a_cosine_and_ends():
    moves = Regrowth("rigl", fraction=0.3, frequency=5)
    for step in range(40):
        expected = 0.15 * (1 + math.cos(math.pi * step / 30)) if step % 5 == 0 and 0 < step < 30 else 0.0
        assert moves.due(step, end=30) == pytest.approx(expected)
    assert moves.due(5) == 0.0, "without an end nothing is known of the fraction"


class Watch(keras.callbacks.Callback):
    """After every batch: is every dropped entry zero, and are there as many as asked for? Keep the masks too."""

    def __init__(self, prune):
        super().__init__()
        self.prune, self.counts, self.masks, self.zero = prune, [], [], True

    def on_train_batch_end(self, batch, logs=None):
        masks = [~one.mask.numpy() for one in self.prune._weights.values()]
        self.masks.append(masks)
        self.counts.append([int(mask.sum()) for mask in masks])
        values = [variable.numpy() for variable in kernels(self.model)]
        self.zero &= all(not value[mask].any() for value, mask in zip(values, masks, strict=True))


def fit(model, prune, epochs=4):
    watch = Watch(prune)
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[prune, watch])
    return watch


@pytest.mark.sweep(2)
@pytest.mark.parametrize("scope", ["layer", "erk"])
@pytest.mark.parametrize("kind", GROWTHS)
def test_zeros_move_and_their_number_is_exact_after_every_step(kind, scope):
    model = compiled()
    prune = WeightPruning(ConstantSparsity(0.6, 0), scope=scope, regrowth=Regrowth(kind, 0.4, frequency=3))
    watch = fit(model, prune)
    shares = dict(enumerate([0.6, 0.6]))
    if scope == "erk":
        shares = ErdosRenyiKernel().sparsities(dict(enumerate(SHAPES)), 0.6)
    asked = [round(shares[n] * math.prod(shape)) for n, shape in enumerate(SHAPES)]
    assert watch.zero and watch.counts == [asked] * 24
    moved_at = [
        step
        for step, (old, new) in enumerate(zip(watch.masks, watch.masks[1:], strict=False), start=2)
        if any((a != b).any() for a, b in zip(old, new, strict=True))
    ]
    assert moved_at == [3, 6, 9, 12, 15]  # of 24 steps, in the first three quarters
    assert [row.zeros for row in prune.report().pruned] == asked


def test_without_regrowth_zeros_stay_where_they_are():
    watch = fit(compiled(), WeightPruning(ConstantSparsity(0.6, 0)), epochs=2)
    assert all((watch.masks[0][n] == watch.masks[-1][n]).all() for n in range(2))


def test_rigl_grows_where_the_gradient_is_largest_and_forgets_the_momentum():
    model = compiled(keras.optimizers.SGD(0.1, momentum=0.9))
    prune = WeightPruning(ConstantSparsity(0.5, 0), regrowth=Regrowth("rigl", 0.4, frequency=3, end_step=100))
    state = {}

    class Last(keras.callbacks.Callback):
        """Work out, before the third step, where its gradient is large."""

        def on_train_batch_begin(self, batch, logs=None):
            kernel = self.model.layers[0].kernel
            if batch == 2:
                x, y = X[16:24], Y[16:24]
                with tf.GradientTape() as tape:
                    loss = LOSS(y, self.model(x))
                state["gradient"] = np.abs(np.asarray(tape.gradient(loss, kernel.value))).ravel()
                state["keep"] = next(iter(prune._weights.values())).mask.numpy().ravel()

    class Before(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                state["weight"] = np.abs(self.model.layers[0].kernel.numpy()).ravel()

    class After(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                state["mask"] = next(iter(prune._weights.values())).mask.numpy().ravel()
                ((slot, _),) = slots_of(self.model.optimizer, self.model.layers[0].kernel)
                state["slot"] = slot.numpy().ravel()

    model.fit(X[:24], Y[:24], batch_size=8, shuffle=False, verbose=0, callbacks=[Last(), Before(), prune, After()])
    fraction = 0.2 * (1 + math.cos(math.pi * 3 / 100))
    expected = moved(state["keep"], state["weight"], state["gradient"], round(fraction * state["keep"].sum()))
    np.testing.assert_array_equal(state["mask"], expected)
    grown = expected & ~state["keep"]
    assert grown.any() and not state["slot"][grown].any() and np.count_nonzero(state["slot"][~grown]) > 100


def test_grown_weights_learn():
    model = compiled()
    watch = fit(model, WeightPruning(ConstantSparsity(0.6, 0), regrowth=Regrowth("rigl", 0.4, frequency=5, end_step=6)))
    for variable, first, last in zip(kernels(model), watch.masks[0], watch.masks[-1], strict=True):
        grown = first & ~last
        assert grown.any() and (variable.numpy()[grown] != 0).mean() > 0.9


@pytest.mark.sweep(1)
@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_with_a_criterion_that_needs_the_training_itself(criterion):
    model = compiled()
    watch = fit(model, WeightPruning(ConstantSparsity(0.6, 0), criterion, regrowth=Regrowth("rigl", 0.4, frequency=3)))
    assert watch.zero and watch.counts == [[115, 38]] * 24  # the first update comes with the first gradients
    assert any((a != b).any() for a, b in zip(watch.masks[0], watch.masks[-1], strict=True))


def test_regrowth_while_the_sparsity_rises():
    schedule = PolynomialDecay(0.1, 0.8, 0, 18, frequency=4)
    watch = fit(compiled(), WeightPruning(schedule, regrowth=Regrowth("set", 0.4, frequency=3)))
    sparsity, expected = 0.1, []
    for step in range(1, 25):
        sparsity = schedule(step)[1] if schedule(step)[0] else sparsity
        expected.append([round(sparsity * math.prod(shape)) for shape in SHAPES])
    assert watch.zero and watch.counts == expected


def test_a_resumed_training_has_the_exact_number_again(tmp_path):
    """Inputs that are always zero: what grows there never learns, stays zero and is not saved as kept."""
    x = X.copy()
    x[:, :6] = 0.0
    schedule, moves = ConstantSparsity(0.5, 0), Regrowth("set", 0.5, frequency=2, end_step=100)
    model = compiled("sgd")
    model.fit(x, Y, batch_size=8, verbose=0, callbacks=[WeightPruning(schedule, regrowth=moves)])
    assert np.count_nonzero(kernels(model)[0].numpy() == 0) > 96
    model.save(tmp_path / "sparse.keras")
    again = keras.models.load_model(tmp_path / "sparse.keras")
    watch = fit(again, WeightPruning(schedule, regrowth=moves), epochs=1)
    assert watch.zero and watch.counts == [[96, 32]] * 6


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Regrowth("rigle"), "Did you mean 'rigl'"),
        (lambda: Regrowth("set", fraction=1.5), "fraction is 1.5"),
        (lambda: Regrowth("set", frequency=0), "frequency is 0"),
        (lambda: Regrowth("set", end_step=-1), "end_step is -1"),
        (lambda: WeightPruning(ConstantSparsity(0.5, 0), regrowth={"knd": "set"}), "regrowth is {'knd': 'set'}"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make()


def test_a_run_in_which_nothing_moves_says_so():
    with pytest.warns(NoEffectWarning, match=r"moved no zeros between steps 0 and 24: zeros move every 100 steps"):
        fit(compiled(), WeightPruning(ConstantSparsity(0.6, 0), regrowth="rigl"))


def test_a_loop_of_ones_own_has_to_say_when_the_moves_end():
    model = compiled()
    prune = WeightPruning(ConstantSparsity(0.5, 0), regrowth="set")
    prune.set_model(model)
    with pytest.raises(KpipeError, match=r"Regrowth\('set', end_step=\.\.\.\)"):
        prune.on_train_begin()
    assert kernels(model)[0].constraint is None
