"""Models that tf_keras and TFMOT wrote, converted; the oracle is what tf_keras gave on the same inputs."""

import importlib.util
import os
import pickle
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.legacy import load
from kpipe.legacy import reading as reading_module
from kpipe.legacy.attention import Keras2MultiHeadAttention
from kpipe.legacy.compare import _Truth
from kpipe.legacy.load import _places, converted
from kpipe.legacy.reading import Request, read_files
from kpipe.legacy.source import look_at
from kpipe.legacy.translate import TRANSLATIONS
from tests.legacy import old_layers

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KPIPE_DATA", ROOT.parent / "shared" / "data"))
OWN = {"squash": old_layers.squash, "Shift": old_layers.Shift, "thrice": old_layers.double}
REAL = DATA / "sww_streaming_wakeword_keras2.h5"
SAMPLES = (np.full((1, 3), 7.0, np.float32),)
PLAIN = (
    "attention.keras",
    "called_at_inference.h5",
    "convolutions.h5",
    "dense.keras",
    "features.h5",
    "nested.h5",
    "operations.h5",
    "padded.keras",
    "recurrent.h5",
    "siamese",
    "stateful.h5",
    "text.keras",
)
WRAPPED = ("clustered.h5", "pruned.h5", "pruned.keras", "quantized.h5", "quantized_graph.keras")
REFUSED = (
    "called_in_training.h5",
    "pruned_after_masks.keras",
    "subclassed",
    "unknown_operation.h5",
    "unknown_to_keras_3.h5",
)
ASKED = {
    **{name: {} for name in (*PLAIN, *WRAPPED, "half_precision.h5")},
    **{name: {} for name in REFUSED},
    **{name: {"given": OWN} for name in ("own_classes", "own_classes.h5", "own_classes.keras")},
    **({str(REAL): {}} if REAL.is_file() else {}),
    "own_classes.h5, code run": {"given": {**OWN, "thrice": None}, "safe_mode": False},
    "own_classes.h5, samples": {"given": OWN, "samples": SAMPLES},
    "own_classes.h5, code refused": {"given": {**OWN, "thrice": None}},
    "own_classes.h5, too many samples": {"given": OWN, "samples": SAMPLES * 2},
    "own_classes.h5, no class": {"given": {**OWN, "Shift": None}},
    "own_classes.h5, no module": {"given": OWN, "originals": {"Shift": "no.such.module:Shift"}},
}
"""What is asked of tf_keras, all in one go: the name of a file, and a remark where a file is asked for again."""


def run_once(folder: Path, name: str, work) -> Path:
    """Do a piece of work once for all the workers of a run, each of which waits for it."""
    place, lock = folder / name, folder / f"{name}.lock"
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        while not (place / "done").exists():
            assert not (place / "failed").exists(), f"{name}: see the worker that did it"
            time.sleep(0.2)
        return place
    place.mkdir()
    try:
        work(place)
    except BaseException:
        (place / "failed").touch()
        raise
    (place / "done").touch()
    return place


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Give the folder with the old files."""
    base = tmp_path_factory.getbasetemp()

    def write(folder):
        script = ROOT / "tests" / "legacy" / "old_models.py"
        done = subprocess.run(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run_once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base, "old_models", write)


@pytest.fixture(scope="module")
def readings(old, tmp_path_factory):
    """Give what tf_keras said of each file."""

    def read(folder):
        requests = [request(old / name.partition(",")[0], **asked) for name, asked in ASKED.items()]
        read_all = read_files(requests, tmp_path_factory.mktemp("work"))
        (folder / "readings").write_bytes(pickle.dumps(dict(zip(ASKED, read_all, strict=True))))

    return pickle.loads((run_once(old.parent, "old_readings", read) / "readings").read_bytes())


def request(path, given=None, originals=None, **asked):
    given = {name: value for name, value in (given or {}).items() if value is not None}
    file = look_at(path)
    return Request(file, _places(file, given, originals or {}), **asked)


def truth(old, name):
    """Give inputs and outputs that tf_keras left beside a file."""
    with np.load(old / f"{Path(name).stem}.npz") as arrays:
        return (
            [arrays[key] for key in arrays if key.startswith("input")],
            [arrays[key] for key in arrays if key.startswith("output")],
        )


def answers(model, inputs):
    """Run a model on inputs in sorted order; give its outputs in sorted order."""
    structure = model._inputs_struct if not isinstance(model, keras.Sequential) else model.inputs[0]
    if isinstance(structure, dict):
        values = dict(zip(sorted(structure), inputs, strict=True))
    else:
        values = inputs if isinstance(structure, (list, tuple)) else inputs[0]
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, values), training=False)
    if isinstance(outputs, dict):
        outputs = [outputs[key] for key in sorted(outputs)]
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def assert_equal(got, expected, tolerance=1e-5):
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        if other.dtype.kind == "S":
            np.testing.assert_array_equal(one.astype(bytes), other)
            continue
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


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
    given = {**OWN, "thrice": None} if "code run" in name else OWN
    with keras.saving.custom_object_scope({key: value for key, value in given.items() if value is not None}):
        model, notes = converted(readings[name])
    inputs, outputs = truth(old, "own_classes")
    assert_equal(answers(model, inputs), outputs)
    assert isinstance(model.get_layer("scale"), old_layers.Scale)
    assert not notes


def test_given_samples_are_what_is_compared_on(readings):
    probe = readings["own_classes.h5, samples"].probe
    (name,) = [name for name in probe if name.startswith("input:")]
    np.testing.assert_array_equal(probe[name], SAMPLES[0])


def test_half_precision_is_held_to_its_own_measure(old, readings):
    model, _ = converted(readings["half_precision.h5"])
    assert [layer.dtype_policy.name for layer in model.layers] == ["mixed_float16", "float32"]
    inputs, outputs = truth(old, "half_precision")
    assert_equal(answers(model, inputs), outputs, tolerance=4 * 2**-10)


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


@pytest.mark.parametrize(
    "layer",
    [
        ("convolutions.h5", "stem/conv"),
        ("convolutions.h5", "conv3d_transpose"),
        ("nested.h5", "shared"),
        ("recurrent.h5", "lstm_1"),
        ("attention.keras", "multi_head_attention"),
        ("pruned.h5", "separable"),
        ("stateful.h5", "gru"),
    ],
    ids=lambda layer: layer[1],
)
def test_one_wrong_weight_is_found_and_its_layer_named(readings, layer):
    name, layer = layer
    reading = readings[name]
    (entry,) = [entry for entry in reading.layers.values() if entry["name"].startswith(layer) and entry.get("weights")][
        :1
    ]
    key = entry["weights"][0][1]
    spoilt = reading.arrays[key].copy()
    spoilt.reshape(-1)[0] += 0.5
    with pytest.raises(KpipeError, match=f"first at layer '{entry['name']}'"):
        converted(replace(reading, arrays={**reading.arrays, key: spoilt}))


def test_a_wrong_layer_of_tiny_outputs_is_found():
    expected, name = np.asarray([1e-9, 3e-9], np.float32), "call:0:0"
    truth = _Truth({name: expected}, 1e-5)
    truth.check_layer("'gate' (Activation)", name, expected, noise=0.0)
    truth.check_layer("'gate' (Activation)", name, expected * 2, noise=1e-6)  # a difference of values round 1
    with pytest.raises(KpipeError, match="first at layer 'gate'"):
        truth.check_layer("'gate' (Activation)", name, expected * 2, noise=0.0)


def test_what_grows_on_its_way_is_told_by_where_it_began():
    ones = np.ones(3, np.float32)
    truth = _Truth({"call:0:0": ones, "call:1:0": ones, "output:0": ones}, 1e-5)
    truth.check_layer("'early' (Dense)", "call:0:0", ones + np.float32(5e-5), noise=0.0)
    with pytest.raises(KpipeError, match="first at layer 'early'"):
        truth.check_layer("'late' (Dense)", "call:1:0", ones + np.float32(5e-4), noise=0.0)
    with pytest.raises(KpipeError, match="first at layer 'early'"):
        truth.check_output(0, ones + np.float32(2e-5))


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("convolutions.h5", "LeakyReLU", {"negative_slope": 0.25}),
        ("convolutions.h5", "BatchNormalization", {"epsilon": 0.01}),
        ("recurrent.h5", "GRU", {"go_backwards": False}),
        ("recurrent.h5", "LSTMCell", {"activation": "relu"}),
        ("dense.keras", "Dense", {"activation": "hard_sigmoid"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_translation_is_found(readings, monkeypatch, name, kind, change):
    right = TRANSLATIONS[kind] if kind in TRANSLATIONS else lambda config: (kind, config)

    def wrong(config):
        other, config = right(dict(config))
        return other, {**config, **{key: value for key, value in change.items() if key in config}}

    monkeypatch.setitem(TRANSLATIONS._objects, kind, wrong)
    with pytest.raises(KpipeError, match="differs from the old one, first at layer"):
        converted(readings[name])


def test_inputs_that_change_places_are_found(readings):
    reading = readings["nested.h5"]
    tower = next(entry for entry in reading.layers.values() if entry["name"] == "tower")
    graph = {**tower["graph"], "inputs": tower["graph"]["inputs"][::-1]}
    layers = {key: {**entry, "graph": graph} if entry is tower else entry for key, entry in reading.layers.items()}
    with pytest.raises(KpipeError, match=r"first at layer '(shared|dense)"):
        converted(replace(reading, layers=layers))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("called_in_training.h5", ["'always'", "training=True"]),
        ("pruned_after_masks.keras", ["wrappers", "mask_zero"]),
        ("subclassed", ["'Own'", "Functional"]),
        ("unknown_operation.h5", ["tf.math.bessel_i0", "custom_objects"]),
        ("unknown_to_keras_3.h5", ["'local'", "LocallyConnected1D", "custom_objects"]),
        ("own_classes.h5, code refused", ["'thrice'", "Lambda", "safe_mode=False"]),
        ("own_classes.h5, no class", ["Shift"]),
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


def test_a_class_that_computes_something_else_is_named(readings, monkeypatch):
    monkeypatch.setattr(old_layers.Shift, "by", 1.001)
    with keras.saving.custom_object_scope(OWN), pytest.raises(KpipeError, match="first at layer 'shift'"):
        converted(readings["own_classes.h5"])


def test_load_does_it_all_at_once_and_leaves_nothing_behind(old, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match=r"quantized_graph.keras: the fake quantization .* ranges are dropped"):
        model = load(str(old / "quantized_graph.keras"))
    inputs, outputs = truth(old, "quantized_graph")
    assert_equal(answers(model, inputs), outputs)
    assert list(tmp_path.iterdir()) == []
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
