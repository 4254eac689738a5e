"""Models that tf_keras and TFMOT wrote, converted; the oracle is what tf_keras gave on the same inputs."""

import keras
import numpy as np
import pytest

from kpipe.legacy import load
from kpipe.legacy.attention import Keras2MultiHeadAttention
from kpipe.legacy.load import converted
from tests.legacy import old_layers
from tests.legacy.old_files import (
    DATA,
    LAMBDAS,
    OWN,
    PLAIN,
    REAL,
    SAMPLES,
    WRAPPED,
    answers,
    assert_equal,
    request_of,
    truth,
)
from tests.legacy.old_wrapped_models import DROPPED


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", [*PLAIN, *WRAPPED])
def test_a_converted_model_gives_what_the_old_one_gave(old, readings, name):
    model, _ = converted(readings[name])
    inputs, outputs = truth(old, name)
    assert_equal(answers(model, inputs), outputs)


@pytest.mark.parametrize(
    "name",
    ["own_classes", "own_classes.h5", "own_classes.keras", "own_classes.h5, code run", "own_classes.h5, samples"],
)
def test_classes_and_functions_of_the_users_own_are_taken(old, readings, name):
    model, notes = converted_own(readings[name], *(["thrice"] if "code run" in name else []))
    inputs, outputs = truth(old, "own_classes")
    assert_equal(answers(model, inputs), outputs)
    assert isinstance(model.get_layer("scale"), old_layers.Scale)
    assert not notes


def converted_own(reading, *without):
    """Convert with the user's own classes and functions but some."""
    with keras.saving.custom_object_scope({key: value for key, value in OWN.items() if key not in without}):
        return converted(reading)


def test_what_is_registered_is_found_without_being_given(old, readings):
    for name in ("registered", "registered.h5"):
        assert request_of(old / name).objects == {"Old>bent": "tests.legacy.old_layers:bent"}
        model, _ = converted(readings[name])
        assert model.layers[0].activation is old_layers.bent
    model, _ = converted_own(readings["own_classes.h5"])
    assert type(model.layers[0].kernel_constraint) is old_layers.Clip
    assert model.layers[0].kernel_constraint.bound == 7.0


def test_a_lambda_takes_the_function_given_for_it(old, readings):
    with keras.saving.custom_object_scope(LAMBDAS):
        model, _ = converted(readings["distance.h5"])
    inputs, outputs = truth(old, "distance")
    assert_equal(answers(model, inputs), outputs)
    assert model.get_layer("distance").function is old_layers.distance


def test_given_samples_are_what_is_compared_on(readings):
    probe = readings["own_classes.h5, samples"].probe
    (name,) = [name for name in probe if name.startswith("input:")]
    np.testing.assert_array_equal(probe[name], SAMPLES[0])


def test_names_kinds_and_freezing_stay(readings):
    dense, _ = converted(readings["dense.keras"])
    assert type(dense) is keras.Sequential
    assert (dense.name, dense.layers[-1].name, dense.inputs[0].name) == ("perceptron", "classes", "first_input")
    assert [layer.name for layer in dense.layers if not layer.trainable] == ["frozen"]
    assert dense.layers[0].kernel_constraint.max_value == 2.0
    assert float(dense.layers[5].bias_regularizer.l1) == pytest.approx(0.1)
    assert not dense.compiled
    convolutions, _ = converted(readings["convolutions.h5"])
    assert {layer.name for layer in convolutions.layers} >= {"image", "stem_conv", "stem_bn"}  # no slash in Keras 3
    nested, _ = converted(readings["nested.h5"])
    tower = nested.get_layer("tower")
    assert type(tower.get_layer("inner")) is keras.Sequential
    assert [layer.name for layer in tower.layers].count("shared") == 1
    small = nested.get_layer("per_step").layer
    assert not small.trainable_variables and len(small.trainable_weights) == 0 < len(small.weights)
    siamese, _ = converted(readings["siamese"])
    assert siamese.get_layer("first") is siamese.get_layer("tower").get_layer("first")


def test_a_converted_model_is_saved_and_loaded_by_keras(old, readings, tmp_path):
    for name in ("dense.keras", "nested.h5", "operations.h5", "padded.keras"):
        model, _ = converted(readings[name])
        model.save(tmp_path / "new.keras")
        again = keras.models.load_model(tmp_path / "new.keras")
        inputs, outputs = truth(old, name)
        assert_equal(answers(again, inputs), outputs)


def test_wrappers_leave_what_they_made_of_the_weights(readings):
    pruned, _ = converted(readings["pruned.h5"])
    for layer in ("conv", "classes"):
        kernel = np.asarray(pruned.get_layer(layer).kernel)
        assert np.count_nonzero(kernel) == kernel.size - round(0.75 * kernel.size)
    clustered, notes = converted(readings["clustered.h5"])
    assert len(np.unique(np.asarray(clustered.get_layer("classes").kernel))) <= 4
    assert not notes
    quantized, notes = converted(readings["quantized.h5"])
    kinds = [type(layer).__name__ for layer in quantized.layers]
    assert kinds == ["Conv2D", "BatchNormalization", "ReLU", "DepthwiseConv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    assert "ranges are dropped" in notes[0]


def test_clusters_keep_the_zeros_that_tfmot_forgets(readings):
    sparse, notes = converted(readings["clustered_sparse.h5"])
    assert not notes
    midway, (note,) = converted(readings["clustered_midway.h5"])
    assert "conv" in note and "right after an update" in note
    for model in (sparse, midway):
        kernel = np.asarray(model.get_layer("conv").kernel)
        assert len(np.unique(kernel)) <= 6 and not kernel[DROPPED].any() and kernel[~DROPPED].any()


def test_steps_that_a_mask_hides_may_differ_and_that_is_said(readings):
    _, (note,) = converted(readings["attention.keras"])
    assert "mask hides" in note


def test_attention_is_replaced_only_where_it_must_be(readings):
    padded, notes = converted(readings["padded.keras"])
    assert type(padded.get_layer("mha")) is Keras2MultiHeadAttention
    assert any("Keras2MultiHeadAttention" in note for note in notes)
    attention, _ = converted(readings["attention.keras"])
    assert type(attention.get_layer("multi_head_attention")) is keras.layers.MultiHeadAttention


def test_that_keras_3_trains_otherwise_is_said(readings):
    _, (note,) = converted(readings["called_at_inference.h5"])
    assert "base is called with training=False" in note


def test_load_does_it_all_at_once_and_leaves_nothing_behind(old, tmp_path, monkeypatch, capfd):
    (tmp_path / "temporary").mkdir()
    for own in ("on_path/keras2.py", "here/tf_keras.py"):  # modules of the user's own, of names that are ours
        (tmp_path / own).parent.mkdir()
        (tmp_path / own).write_text("raise SystemExit('this module is the user's own')")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.syspath_prepend(tmp_path / "on_path")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.warns(UserWarning, match=r"quantized_graph.keras: the fake quantization .* ranges are dropped"):
        model = load(str(old / "quantized_graph.keras"))
    inputs, outputs = truth(old, "quantized_graph")
    assert_equal(answers(model, inputs), outputs)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not REAL.is_file(), reason="the shared data is not there")
def test_a_real_file_that_plain_keras_3_refuses(readings):
    with pytest.raises(TypeError, match="groups"):
        keras.models.load_model(REAL, compile=False)
    model, notes = converted(readings[str(REAL)])
    assert not notes
    twin = keras.models.load_model(DATA / "sww_streaming_wakeword.keras", compile=False)
    with np.load(DATA / "sww_samples.npz") as samples:
        np.testing.assert_allclose(np.asarray(model(samples["x"])), np.asarray(twin([samples["x"]])), atol=1e-6)


def test_a_file_of_keras_3_is_loaded_as_it_is(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for name in ("new.keras", "new.h5"):
        model.save(tmp_path / name)
        np.testing.assert_array_equal(load(tmp_path / name).get_weights()[0], model.get_weights()[0])
