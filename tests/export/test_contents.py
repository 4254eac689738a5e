"""What `dissect` says of files, against what was put into the models and what other readers see."""

import keras
import numpy as np
import pytest

import kpipe
from kpipe.errors import ExportError
from kpipe.export import dissect
from kpipe.export.litert.contents import entries
from kpipe.export.sizes import gzip_size
from tests.models import build

SUFFIXES = ("tflite", "onnx")
KERNEL = np.array([[0, 1, 2, -3], [0, 0, 2, -3], [5, 0, 0, 1]], "float32")
"""Five zeros of twelve entries, five different values."""


@pytest.fixture(scope="module")
def sparse():
    layers = [keras.Input((3,), name="x"), keras.layers.Dense(4, name="wide"), keras.layers.Dense(2, name="y")]
    model = keras.Sequential(layers, name="sparse")
    model.layers[0].kernel.assign(KERNEL)
    return model


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_zeros_values_and_bytes_of_weights(sparse, suffix, tmp_path):
    path = kpipe.export(sparse, tmp_path / f"m.{suffix}").path
    found = dissect(path)
    weight = next(node.weight for node in found.nodes if node.weight)
    assert sorted(weight.shape) == [3, 4] and weight.dtype == "float32"
    assert (weight.bytes, weight.zeros, weight.values) == (4 * 12, 5 / 12, 5)
    assert (found.format, found.precision, found.bytes) == (suffix, "float32", path.stat().st_size)
    assert found.gzip_bytes == gzip_size(path.read_bytes())
    (entered,), (left,) = found.inputs, found.outputs
    assert (entered.name, entered.dtype, left.name, left.scale) == ("x", "float32", "y", None)
    assert entered.shape == ((1, 3) if suffix == "tflite" else (None, 3))
    assert "3" in str(found) and "41.7%" in str(found) and "input  x: float32" in str(found)


def test_the_constants_of_a_litert_file_are_all_counted(sparse, tmp_path):
    path = kpipe.export(sparse, tmp_path / "m.tflite").path
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    ends = {detail["index"] for detail in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    found = {constant.name: constant for node in dissect(path).nodes for constant in node.constants}
    for detail in interpreter.get_tensor_details():
        if detail["index"] in ends or detail["name"] not in found:
            continue
        stored = interpreter.get_tensor(detail["index"])
        assert found[detail["name"]].bytes == stored.nbytes
        assert found[detail["name"]].zeros == np.mean(stored == 0)
    assert sum(constant.bytes for constant in found.values()) == 4 * (12 + 4 * 2)  # biases of zeros are left out


def test_the_constants_of_an_onnx_file_are_all_counted(sparse, tmp_path):
    import onnx

    path = kpipe.export(sparse, tmp_path / "m.onnx").path
    graph = onnx.load(path).graph
    total = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert sum(node.bytes for node in dissect(path).nodes) == total


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_rounded_weight_belongs_to_what_takes_it(sparse, suffix, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    found = dissect(kpipe.export(kpipe.quantize(sparse, calibration=x), tmp_path / f"m.{suffix}"))
    assert found.precision == "int8"
    node = next(node for node in found.nodes if node.weight)
    assert node.name in ("FULLY_CONNECTED", "MatMul", "Gemm") and "int8" in node.inputs
    assert (node.weight.dtype, node.weight.bytes, node.weight.zeros) == ("int8", 12, 5 / 12)
    columns = [np.unique(np.round(column / np.abs(column).max() * 127)) for column in KERNEL.T]
    assert node.weight.values == len(np.unique(np.concatenate(columns)))
    if suffix == "tflite":
        assert "int8" in str(found) and "· 0." in str(found)
        assert found.inputs[0].scale and found.outputs[0].scale


def test_float16_weights_are_shown_as_they_are_stored(sparse, tmp_path):
    found = dissect(kpipe.export(sparse, tmp_path / "m.tflite", precision="float16"))
    assert [node.name for node in found.nodes] == ["FULLY_CONNECTED"] * 2
    assert found.nodes[0].weight.dtype == "float16" and found.nodes[0].weight.bytes == 2 * 12


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_of_4_bits_take_half_a_byte(sparse, suffix, tmp_path):
    found = dissect(kpipe.export(sparse, tmp_path / f"m.{suffix}", precision="int4"))
    node = next(node for node in found.nodes if node.weight)
    assert node.name in ("FULLY_CONNECTED", "MatMul", "Gemm") and "int4" in node.inputs
    assert (node.weight.dtype, node.weight.bytes, node.weight.zeros) == ("int4", 6, 5 / 12)
    columns = [np.unique(np.round(column / np.abs(column).max() * 7)) for column in KERNEL.T]
    assert node.weight.values == len(np.unique(np.concatenate(columns)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shared_weights_are_counted_once(suffix, tmp_path):
    model = build("siamese")
    found = dissect(kpipe.export(model, tmp_path / f"m.{suffix}"))
    convolutions = [node for node in found.nodes if node.name in ("CONV_2D", "Conv")]
    assert len(convolutions) == 2 and convolutions[1].weight is None
    kernels = sum(int(np.prod(variable.shape)) for variable in model.weights if len(variable.shape) > 1)
    assert sum(node.weight.bytes for node in found.nodes if node.weight) == 4 * kernels


@pytest.mark.sweep(1)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_float_islands_are_named(suffix, tmp_path):
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(8, name="before")(x)
    y = keras.layers.LayerNormalization(name="island")(y)
    model = keras.Model(x, keras.layers.Dense(3, name="after")(y), name="mixed")
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    with pytest.warns(UserWarning, match="island"):
        quantized = kpipe.quantize(model, calibration=data)
    found = dissect(kpipe.export(quantized, tmp_path / f"m.{suffix}"))
    assert found.floats and all("island" in one.scope for one in found.floats)
    assert "computed in float:" in str(found)
    assert not dissect(kpipe.export(model, tmp_path / f"plain.{suffix}")).floats


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("name", "suffix"), [("residual", "tflite"), ("depthwise", "onnx")])
def test_tables_stay_readable(name, suffix, tmp_path):
    lines = str(dissect(kpipe.export(build(name), tmp_path / f"m.{suffix}"))).splitlines()
    assert max(map(len, lines[1:])) <= 150
    assert any(line.lstrip().startswith("operation") for line in lines) and any("in all" in line for line in lines)


def test_packed_whole_numbers():
    levels = np.array([-8, 7, -1, 0, 3], np.int8)
    packed = np.array([(-8 & 15) | (7 << 4), (-1 & 15) | (0 << 4), 3], np.uint8)
    np.testing.assert_array_equal(entries(packed, "int4", (5,)), levels)
    np.testing.assert_array_equal(entries(np.array([0b11_10_01_00], np.uint8), "int2", (4,)), [0, 1, -2, -1])
    np.testing.assert_array_equal(entries(packed, "int8", (3,)), packed.view(np.int8))


def test_broken_files_are_refused(tmp_path):
    for suffix in SUFFIXES:
        (tmp_path / f"bad.{suffix}").write_bytes(b"GIF89a" * 50)
        with pytest.raises(ExportError, match="bad"):
            dissect(tmp_path / f"bad.{suffix}")
