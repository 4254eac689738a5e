"""What is no model, or none that can be converted, is refused with its reason."""

import importlib.util
import zipfile

import h5py
import keras
import pytest

from kpipe.errors import KpipeError
from kpipe.legacy import load
from kpipe.legacy import reading as reading_module
from kpipe.legacy.load import converted
from tests.legacy import old_layers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("called_in_training.h5", ["'always'", "training=True"]),
        ("pruned_after_masks.keras", ["wrappers", "mask_zero"]),
        ("subclassed", ["'Own'", "Functional"]),
        ("unknown_operation.h5", ["tf.math.bessel_i0", "custom_objects"]),
        ("unknown_to_keras_3.h5", ["'local'", "LocallyConnected1D", "custom_objects"]),
        ("distance.h5, code run", ["'distance'", "calls for tf", "custom_objects={'distance': function}"]),
        ("masked_lambda", ["'masked'", "mask of its own"]),
        ("masked_lambda.h5", ["'masked'", "mask of its own"]),
        ("residual.h5", ["Python code", "safe_mode=False"]),
        ("own_classes, no function", ["(Dense)", "custom_objects={'squash': ...}"]),
        ("own_classes.h5, code refused", ["'thrice'", "Lambda", "safe_mode=False"]),
        ("own_classes.h5, no class", ["custom_objects={'Shift': ...}"]),
        ("own_classes.keras, no class", ["custom_objects={'Shift': ...}"]),  # though the file names its module
        ("own_classes.h5, no module", ["'Shift'", "no.such.module", "originals"]),
        ("own_classes.h5, too many samples", ["1 inputs", "2"]),
    ],
)
def test_what_cannot_be_converted_is_named(readings, name, words):
    with pytest.raises(KpipeError) as error:
        converted(readings[name])
    assert all(word in str(error.value) for word in [*words, name.partition(",")[0]]), str(error.value)


def test_a_class_that_keras_3_is_not_given_is_named(readings):
    given = {"squash": old_layers.squash}
    with keras.saving.custom_object_scope(given), pytest.raises(KpipeError, match=r"'shift'.*'Shift': YourClass"):
        converted(readings["own_classes.h5"])


def test_files_that_hold_no_model_are_refused_at_once(old, tmp_path):
    (tmp_path / "text.h5").write_text("no model")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with h5py.File(tmp_path / "table.hdf5", "w") as file:
        file["x"] = [1, 2]
    for path, words in {
        tmp_path / "none.h5": "There is no file",
        tmp_path / "text.h5": "is no Keras model",
        tmp_path / "empty": "without saved_model.pb",
        tmp_path / "other.keras": "without a Keras config",
        tmp_path / "table.hdf5": "no model config",
        old / "weights_alone.h5": "load_weights",
        old / "without_keras": "TFSMLayer",
    }.items():
        with pytest.raises(KpipeError, match=words):
            load(path)


def test_wrappers_without_tfmot_are_refused_at_once(old, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(reading_module, "find_spec", lambda name: None if "optimization" in name else find(name))
    with pytest.raises(KpipeError, match="pip install tensorflow-model-optimization"):
        load(old / "pruned.h5")


def test_an_object_that_no_other_process_can_import_is_refused_at_once(old):
    class Shift(keras.layers.Layer):
        pass

    with pytest.raises(KpipeError, match=r"'Shift'.*originals"):
        load(old / "own_classes.h5", custom_objects={"Shift": Shift})


def test_a_process_that_dies_is_told_of(old, monkeypatch):
    monkeypatch.setattr(reading_module, "_PROGRAM", "import sys; sys.exit('it fell over')  # {home} {job}")
    with pytest.raises(KpipeError, match=r"ended early.*it fell over"):
        load(old / "dense.keras")
