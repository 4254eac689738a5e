"""Real architectures and rarer wrappers, converted; the oracle is what tf_keras gave on the same inputs."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
import pytest

from kpipe.legacy.load import _places, converted
from kpipe.legacy.reading import Request, read_files
from kpipe.legacy.source import look_at
from tests.legacy.old_large_models import MODELS, SIZES
from tests.legacy.old_writing import FORMATS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FILES = [name + FORMATS[form] for name, builder in MODELS.items() for form in builder.forms]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Give the folder with the old files."""
    folder = tmp_path_factory.mktemp("old")
    script = ROOT / "tests" / "legacy" / "old_large_models.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def convnext():
    """Give the layers of ConvNeXt, which Keras registers in neither version, and where tf_keras has them."""
    home = import_module("keras.src.applications.convnext")
    names = ("LayerScale", "StochasticDepth")
    given = {name: getattr(home, name) for name in names}
    return given, {name: f"tf_keras.src.applications.convnext:{name}" for name in names}


@pytest.fixture(scope="module")
def readings(old, convnext, tmp_path_factory):
    """Give what tf_keras said of each file."""
    files = [look_at(old / name) for name in FILES]
    requests = [Request(file, _places(file, *convnext) if "ConvNeXt" in file.path.name else {}) for file in files]
    return dict(zip(FILES, read_files(requests, tmp_path_factory.mktemp("work")), strict=True))


@pytest.mark.parametrize("name", FILES)
def test_a_converted_model_gives_what_the_old_one_gave(old, readings, convnext, name):
    with keras.saving.custom_object_scope(convnext[0]):
        model, _ = converted(readings[name])
    with np.load(old / f"{Path(name).stem}.npz") as arrays:
        given, expected = arrays["input_00"], arrays["output_00"]
    got = np.asarray(model(given, training=False))
    # Random weights make some outputs tiny: they are held to their own size.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["EfficientNetB0.h5", "MobileNetV3Small.h5", "NASNetMobile.h5"])
def test_a_converted_model_is_saved_and_loaded_by_keras(readings, tmp_path, name):
    model, _ = converted(readings[name])
    model.save(tmp_path / "new.keras")
    again = keras.models.load_model(tmp_path / "new.keras")
    image = np.random.default_rng(0).normal(size=(1, *model.inputs[0].shape[1:])).astype("float32")
    np.testing.assert_array_equal(np.asarray(again(image)), np.asarray(model(image)))


def test_all_sizes_were_tried(readings):
    assert {f"{name}.h5" for name in SIZES} <= readings.keys()


def test_clusters_survive_quantization(readings):
    model, _ = converted(readings["quantized_with_clusters"])
    assert len(np.unique(np.asarray(model.get_layer("classes").kernel))) <= 4
