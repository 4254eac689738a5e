"""Models by name: each folder gets its own modules, and a user's mistake is told as one."""

import sys

import keras
import numpy as np
import pytest

from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.pipeline import ModelSource
from kpipe.pipeline.context import Baseline
from kpipe.pipeline.source import function_named, importable, make_model

NETS = """
import keras


def net(classes):
    from source_units import UNITS
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(UNITS), keras.layers.Dense(classes)])


def breaks():
    return 1 / 0
"""


def data(width=4):
    x, y = np.zeros((8, width), "float32"), np.arange(8) % 3
    return Dataset("zeros", (x, y), (x, y), (x, y), x, 3)


def recipe_folder(path, units):
    path.mkdir()
    (path / "source_nets.py").write_text(NETS)
    (path / "source_units.py").write_text(f"UNITS = {units}\n")
    return path


def made(folder, name="net"):
    return make_model(ModelSource(factory=f"source_nets:{name}"), data(), folder)


def test_each_folder_gets_its_own_modules_also_those_imported_by_the_call(tmp_path):
    first, second = recipe_folder(tmp_path / "a", 5), recipe_folder(tmp_path / "b", 6)
    path = list(sys.path)
    assert [made(folder).layers[0].units for folder in (first, second, first)] == [5, 6, 5]
    assert sys.path == path


def test_modules_that_a_folder_did_not_give_are_left_alone(tmp_path):
    folder = recipe_folder(tmp_path / "a", 5)
    (folder / "json.py").write_text("raise RuntimeError")
    before = sys.modules["json"]
    with importable(folder):
        assert function_named("source_nets:net") is function_named("source_nets:net")
    with importable(tmp_path):
        assert sys.modules["json"] is before
        assert "source_nets" not in sys.modules


def test_a_function_that_fails_is_told_with_its_cause(tmp_path):
    with pytest.raises(KpipeError, match=r"source_nets:breaks failed: ZeroDivisionError: division by zero") as caught:
        made(recipe_folder(tmp_path / "a", 5), "breaks")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_module_that_cannot_be_read_is_told_with_its_cause(tmp_path):
    folder = recipe_folder(tmp_path / "a", 5)
    (folder / "source_nets.py").write_text("def net(:\n")
    with pytest.raises(KpipeError, match=r"module 'source_nets' cannot be imported: SyntaxError"):
        made(folder)


def test_a_model_that_does_not_take_the_data_is_refused(tmp_path):
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]).save(tmp_path / "five.keras")
    source = ModelSource(load="five.keras")
    with pytest.raises(KpipeError, match=r"five.keras takes samples of shape \(5,\).*'zeros' have shape \(4,\)"):
        make_model(source, data(), tmp_path)
    assert make_model(source, data(width=5), tmp_path).input_shape == (None, 5)


@pytest.fixture
def coded(tmp_path):
    """Give a recipe's folder with a function whose model holds a lambda, and a model saved from it."""
    (tmp_path / "source_coded.py").write_text(
        "import keras\n\n\ndef net(classes):\n"
        "    double = keras.layers.Lambda(lambda x: x * 2.0)\n"
        "    return keras.Sequential([keras.Input((4,)), double, keras.layers.Dense(classes)])\n"
    )
    with importable(tmp_path):
        function_named("source_coded:net")(3).save(tmp_path / "coded.keras")
    return tmp_path


@pytest.mark.parametrize("source", [{"factory": "source_coded:net"}, {"load": "coded.keras"}])
def test_models_with_functions_as_code_are_refused_before_hours_of_training(coded, source):
    with pytest.raises(KpipeError, match=r"code.*safe_mode: false under model"):
        make_model(ModelSource(**source), data(), coded)
    assert make_model(ModelSource(**source, safe_mode=False), data(), coded).output_shape == (None, 3)


def test_a_baseline_is_loaded_as_the_run_says(coded):
    with pytest.raises(KpipeError, match="code"):
        Baseline({}, coded / "coded.keras").load()
    assert Baseline({}, coded / "coded.keras", safe_mode=False).load().output_shape == (None, 3)
