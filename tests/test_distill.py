import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.distill import SoftAnswers, answers_of, distill
from kpipe.errors import KpipeError
from kpipe.projections import kernels
from kpipe.schedules import ConstantSparsity, PolynomialDecay
from kpipe.unstructured import WeightPruning, prune_weights
from tests.models import build

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = RNG.integers(0, 4, 64)


def softmax(z):
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def with_softmax(model):
    return keras.Sequential([keras.Input((12,), name="features"), model, keras.layers.Softmax()])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kinds", [("logits", "logits"), ("probabilities", "logits"), ("logits", "probabilities")])
def test_the_loss_is_hintons(temperature, kinds):
    t, s = (RNG.normal(size=(5, 4)).astype("float32") for _ in range(2))
    p, q = softmax(t / temperature), softmax(s / temperature)
    expected = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=-1))
    given = [softmax(z) if kind == "probabilities" else z for z, kind in zip((t, s), kinds, strict=True)]
    assert float(SoftAnswers(temperature, *kinds).compute_loss(*given)) == pytest.approx(expected, rel=1e-4)
    if kinds == ("probabilities", "logits"):
        taken_as_logits = float(SoftAnswers(temperature).compute_loss(*given))
        assert taken_as_logits != pytest.approx(expected, rel=0.05), "probabilities taken as logits would be wrong"


def test_the_loss_is_saved_with_its_arguments():
    made = SoftAnswers(2.0, "probabilities", "logits")
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert back.get_config() == made.get_config()


def test_answers_are_told_apart():
    logits = build("dense")
    assert answers_of(logits, X[:8]) == "logits"
    assert answers_of(with_softmax(logits), X[:8]) == "probabilities"
    assert answers_of(keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, "softmax")]), X) == "probabilities"


def test_a_teacher_of_several_models_is_asked():
    x = keras.Input((12,))
    shares = [keras.layers.Dense(4, "softmax")(x) for _ in range(2)]
    assert answers_of(keras.Model(x, keras.layers.Average()(shares)), X[:8]) == "probabilities"
    assert answers_of(keras.Model(x, keras.layers.Add()(shares)), X[:8]) == "logits"
    squashed = keras.Model(x, keras.layers.Reshape((4,))(keras.layers.Dense(4, "sigmoid")(x)))
    with pytest.raises(KpipeError, match="from a sigmoid"):
        answers_of(squashed, X[:8])


def agreement(teacher, student):
    return np.mean(np.argmax(teacher(X), -1) == np.argmax(student(X), -1))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("soft", [False, True])
def test_the_student_learns_the_teacher_and_both_stay_as_they_are(soft):
    teacher, student = build("dense", 1), build("dense", 2)
    teacher = with_softmax(teacher) if soft else teacher
    teacher.layers[0].trainable = False
    frozen = [layer.trainable for layer in teacher._flatten_layers()]
    before = [model.get_weights() for model in (teacher, student)]
    keras.utils.set_random_seed(0)
    taught = distill(teacher, student, X, alpha=0.0, epochs=60, optimizer=keras.optimizers.Adam(0.01), verbose=0)
    assert agreement(teacher, student) < 0.6 and agreement(teacher, taught) > 0.85
    assert [layer.trainable for layer in teacher._flatten_layers()] == frozen
    for model, weights in zip((teacher, student), before, strict=True):
        assert all((old == new).all() for old, new in zip(weights, model.get_weights(), strict=True))
    assert type(taught) is type(student) and taught is not student and taught.inputs[0].name == "features"


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["numbers", "one-hot"])
def test_labels_alone_are_plain_training(labels):
    y = np.eye(4, dtype="float32")[Y] if labels == "one-hot" else Y
    keras.utils.set_random_seed(0)
    taught = distill(build("dense", 1), build("dense", 2), (X, y), alpha=1.0, epochs=80, verbose=0)
    assert np.mean(np.argmax(taught(X), -1) == Y) > np.mean(np.argmax(build("dense", 2)(X), -1) == Y) + 0.2


@pytest.mark.slow
@pytest.mark.sweep(1)
@pytest.mark.parametrize("labels", ["numbers", "numbers with an axis", "one-hot"])
def test_labels_of_every_pixel_are_learnt(labels):
    x = RNG.normal(size=(32, 4, 5, 3)).astype("float32")
    classes = np.argmax(x, -1)  # one a pixel: (32, 4, 5)
    y = {"numbers": classes, "numbers with an axis": classes[..., np.newaxis], "one-hot": np.eye(3)[classes]}[labels]
    teacher, student = (keras.Sequential([keras.Input((4, 5, 3)), keras.layers.Conv2D(3, 1)]) for _ in range(2))
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.Adam(0.05)
    taught = distill(teacher, student, (x, y), alpha=1.0, epochs=40, optimizer=optimizer, verbose=0)
    assert np.mean(np.argmax(taught(x), -1) == classes) > 0.8


class Pages(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.asked = []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.asked.append(index)
        return X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]


def test_the_batches_of_a_pydataset_come_in_the_order_of_a_plain_fit():
    asked = []
    for teach in (
        lambda pages: compiled(build("dense", 2)).fit(pages, epochs=6, verbose=0),
        lambda pages: distill(build("dense", 1), build("dense", 2), pages, epochs=6, verbose=0),
    ):
        pages = Pages()
        keras.utils.set_random_seed(0)
        teach(pages)
        asked.append(pages.asked[-24:])
    every_epoch = 6 * [[0, 1, 2, 3]]
    batches_an_epoch = [[sorted(order[n : n + 4]) for n in range(0, 24, 4)] for order in asked]
    assert batches_an_epoch == [every_epoch, every_epoch]
    assert all(order != 6 * [0, 1, 2, 3] for order in asked)


def compiled(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def forms():
    return {
        "tf.data": tf.data.Dataset.from_tensor_slices((X, Y)).batch(16),
        "generator function": lambda: ((X[n : n + 16], Y[n : n + 16]) for n in (0, 16, 32, 48)),
    }


@pytest.mark.sweep(1)
@pytest.mark.parametrize("form", forms())
def test_other_forms_of_data_and_callbacks(form):
    history = keras.callbacks.History()
    distill(
        build("dense", 1),
        build("dense", 2),
        forms()[form],
        epochs=2,
        callbacks=[history],
        validation_data=(X, Y),
        batch_size=16,
        verbose=0,
    )
    assert len(history.history["loss"]) == 2 and "val_accuracy" in history.history


def test_zeros_of_the_student_stay():
    student = prune_weights(build("dense", 2), 0.7)
    taught = distill(build("dense", 1), student, (X, Y), epochs=2, verbose=0)
    for old, new in zip(kernels(student), kernels(taught), strict=True):
        np.testing.assert_array_equal(old.numpy() == 0, new.numpy() == 0)
        assert (old.numpy() != new.numpy()).any()


def test_weights_are_pruned_while_the_student_learns():
    student = build("dense", 2)
    prune = WeightPruning(PolynomialDecay(0.0, 0.8, 0, 8, frequency=3))
    taught = distill(build("dense", 1), student, (X, Y), epochs=4, callbacks=[prune], verbose=0)
    for variable in kernels(taught):
        assert int((variable.numpy() == 0).sum()) == round(0.8 * int(np.prod(variable.shape)))
    assert all(variable.constraint is None for variable in kernels(taught)) and len(prune.report().pruned) == 3
    assert not any((variable.numpy() == 0).any() for variable in kernels(student))


def test_a_criterion_with_gradients_while_the_student_learns():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prune = WeightPruning(ConstantSparsity(0.5, 0), "taylor", data=(X, Y), loss=loss)
    taught = distill(build("dense", 1), build("dense", 2), (X, Y), callbacks=[prune], verbose=0)
    assert int((kernels(taught)[0].numpy() == 0).sum()) == 96


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda t, s: distill(t, s, (X, Y), temperature=0), "temperature is 0"),
        (lambda t, s: distill(t, s, (X, Y), alpha=2), "alpha is 2"),
        (lambda t, s: distill(t, s, (X, Y), epochs=0), "epochs is 0"),
        (lambda t, s: distill(t, s, (X, Y), temperature="3"), "temperature is '3'; expected a number above 0"),
        (lambda t, s: distill(t, s, (X, Y), temperature=float("inf")), "temperature is inf"),
        (lambda t, s: distill(t, s, (X, Y), alpha="half"), "alpha is 'half'"),
        (lambda t, s: distill(t, s, (X, Y), epochs=1.5), "epochs is 1.5; expected a whole number"),
        (lambda t, s: distill(t, s, (X, Y), batch_size=0), "batch_size is 0; expected a whole number"),
        (lambda t, s: distill(t, s, (X, Y), feature_weight=None), "feature_weight is None"),
        (lambda t, s: distill(t, s, X), "no labels"),
        (lambda t, s: distill(t, s, (X[:0], Y[:0])), "is empty"),
        (lambda t, s: distill(t, s, iter([(X, Y)])), "iterator"),
        (lambda t, s: distill("t", s, (X, Y)), "expected a Keras 3 model"),
        (lambda t, s: distill(t, build("siamese"), (X, Y)), "training data has 1 input arrays"),
        (
            lambda t, s: distill(keras.Sequential([keras.Input((12,)), keras.layers.Dense(3)]), s, (X, Y)),
            "cannot learn",
        ),
        (lambda t, s: distill(keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)]), s, (X, Y)), "2 classes"),
        (
            lambda t, s: distill(keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, "sigmoid")]), s, (X, Y)),
            "from a sigmoid",
        ),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(KpipeError, match=match):
        make(build("dense", 1), build("dense", 2))
