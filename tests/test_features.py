"""Features in distillation: the loss by formula, matched channels, learned maps, one pass of the student."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.distill import Feature, distill
from kpipe.distill.features import FeatureAnswers, Pupil, feature_losses
from kpipe.errors import KpipeError
from tests.models import build

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = RNG.integers(0, 4, 64)
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(units, seed, norm=False):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units, "relu", name="hidden")]
    layers += [keras.layers.BatchNormalization(name="bn", momentum=0.5)] if norm else []
    return keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(4, name="logits")])


def hidden(model):
    return keras.Model(model.inputs[0], model.get_layer("hidden").output)(X).numpy()


def relative_square(theirs, ours):
    return np.mean((theirs - ours) ** 2) / np.mean(theirs**2)


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_loss_is_the_squared_difference_of_matched_channels(axis):
    theirs, ours = RNG.normal(size=(5, 6, 7)), RNG.normal(size=(5, 6, 3))
    expected = relative_square(theirs[:, :, [1, 4, 6]], ours)
    if axis == 1:
        theirs, ours = np.moveaxis(theirs, 2, 1), np.moveaxis(ours, 2, 1)
    found = FeatureAnswers(Feature("a", kept=(1, 4, 6), axis=axis)).compute_loss(theirs, ours)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    other = FeatureAnswers(Feature("a", kept=(1, 4, 5), axis=axis)).compute_loss(theirs, ours)
    assert float(other) != pytest.approx(expected, rel=1e-2), "the control: other channels give another loss"


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_learned_map_is_linear_along_the_channels(axis):
    teacher = keras.Sequential([keras.Input((4, 4)), keras.layers.Dense(4, name="a")])
    student = keras.Sequential([keras.Input((4, 4)), keras.layers.Permute((2, 1)), keras.layers.Dense(4, name="a")])
    (one,) = feature_losses(teacher, student, [Feature("a", axis=axis)])
    assert one.projection is None
    theirs, ours = RNG.normal(size=(5, 6, 7)), RNG.normal(size=(5, 6, 3))
    layer = keras.layers.Dense(7, use_bias=False)
    layer.build((None, 3))
    expected = relative_square(theirs, ours @ layer.kernel.numpy())
    if axis == 1:
        theirs, ours = np.moveaxis(theirs, 2, 1), np.moveaxis(ours, 2, 1)
    found = FeatureAnswers(Feature("a", axis=axis), layer).compute_loss(theirs, ours)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_keras_own_distiller_learns_the_same():
    """Where a second pass of the student makes no difference, the weights are those of Keras's Distiller."""
    weights = []
    for kind in (Pupil, keras.distillation.Distiller):
        teacher, student = net(6, 1), net(6, 2)
        losses = [keras.distillation.LogitsDistillation(3.0), *feature_losses(teacher, student, ["hidden"])]
        distiller = kind(teacher, student, losses, [1.0, 2.0], student_loss_weight=0.25)
        distiller.compile(keras.optimizers.SGD(0.1), CE)
        distiller.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}], ids=str
)
def test_the_student_runs_once_a_step(options):
    """Its batch norm has moved as far as in a plain fit with the same weights; in Keras's own twice as far."""
    moved = []
    for kind in (None, Pupil, keras.distillation.Distiller):
        teacher, student = net(6, 1, norm=True), net(6, 2, norm=True)
        model = student
        if kind:
            model = kind(teacher, student, feature_losses(teacher, student, ["hidden"]), [1.0])
        model.compile(keras.optimizers.SGD(0.0), CE, **options)
        model.fit(X, Y, batch_size=32, shuffle=False, verbose=0)
        moved.append(student.get_layer("bn").moving_mean.numpy())
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-5)
    assert np.abs(moved[2] - moved[0]).max() > 0.05


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("units", "feature"), [(6, "hidden"), (3, Feature("hidden", kept=(0, 2, 5))), (3, "hidden"), (8, "hidden")], ids=str
)
def test_features_come_closer_and_both_models_stay_as_they_are(units, feature):
    teacher, student = net(6, 1), net(units, 2)
    before = [model.get_weights() for model in (teacher, student)]
    away = []
    for features in ([], [feature]):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.Adam(0.01)
        taught = distill(
            teacher,
            student,
            (X, Y),
            alpha=0.1,
            epochs=20,
            features=features,
            feature_weight=10.0,
            optimizer=optimizer,
            verbose=0,
        )
        ours, theirs = hidden(taught), hidden(teacher)
        theirs = theirs[:, feature.kept] if isinstance(feature, Feature) else theirs
        if ours.shape != theirs.shape:  # the best linear map
            ours = ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0]
        away.append(relative_square(theirs, ours))
    mapped = units < 6 and feature == "hidden"  # three numbers tell no more of six than they can
    assert away[1] < (0.99 if mapped else 0.7) * away[0], away
    assert type(taught) is keras.Sequential and len(taught.weights) == 4
    for model, weights in zip((teacher, student), before, strict=True):
        assert all((old == new).all() for old, new in zip(weights, model.get_weights(), strict=True))


def test_a_learned_map_is_trained():
    teacher, student = net(6, 1), net(3, 2)
    hints = feature_losses(teacher, student, ["hidden"])
    distiller = Pupil(teacher, student, hints, [1.0], student_loss_weight=0.5)
    before = hints[0].projection.kernel.numpy()
    distiller.compile(keras.optimizers.SGD(0.1), CE)
    distiller.fit(X, Y, verbose=0)
    assert (hints[0].projection.kernel.numpy() != before).all()
    assert not any("projection" in variable.path for variable in student.weights)


@pytest.mark.slow
def test_maps_of_an_image_are_compared():
    teacher, student = build("conv_bn", 1), build("conv_bn", 2)
    x = RNG.normal(size=(16, 10, 10, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(16) % 5)).batch(8)
    taught = distill(teacher, student, data, epochs=2, features=["conv1", "conv2"], verbose=0)
    assert np.isfinite(taught(x).numpy()).all()


@pytest.mark.parametrize(
    ("features", "more", "match"),
    [
        (["hiden"], {}, "has no layer 'hiden'.*Did you mean 'hidden'"),
        ([Feature("hidden", kept=(0, 1))], {}, r"kept is \(0, 1\); expected the place of each"),
        ([Feature("hidden", kept=(0, 1, 6))], {}, r"kept is \(0, 1, 6\); expected the place of each"),
        (["hidden"], {"alpha": 1}, "features would do nothing"),
        (["hidden"], {"feature_weight": 0}, "feature_weight is 0"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, more, match):
    with pytest.raises(KpipeError, match=match):
        distill(net(6, 1), net(3, 2), (X, Y), features=features, verbose=0, **more)
    with pytest.raises(KpipeError, match="features need one number of axes"):
        image = keras.Sequential([keras.Input((12,)), keras.layers.Reshape((3, 4), name="hidden")])
        feature_losses(image, net(3, 2), ["hidden"])
