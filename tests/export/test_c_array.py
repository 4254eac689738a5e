"""Arrays for TFLite Micro: the bytes, the operators and the memory, against a compiler and TFLite Micro itself."""

import itertools
import re
import shutil
import subprocess
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError
from kpipe.export import load_runtime
from kpipe.export.micro.arena import Lifetime, arena, lifetimes, peak, plan
from kpipe.export.micro.c_array import array_content, c_array
from kpipe.export.micro.operators import OPERATORS, operators_of, read, resolver_call
from tests.models import build, samples

PROGRAM = """\
#include <cstdio>
#include "{name}.h"
#include "{name}.h"  // twice: the guard holds

struct Resolver {{
  int count = 0;
  int fails = -1;
{methods}
  int Add(const char* name) {{ std::fprintf(stderr, "%s\\n", name); return count++ == fails; }}
}};

int main() {{
  Resolver all, some;
  some.fails = {upper}_OPERATORS - 1;
  if (!{name}_add_operators(all) || all.count != {upper}_OPERATORS || {name}_add_operators(some)) return 1;
  if (reinterpret_cast<unsigned long>({name}_model) % 16) return 2;
  std::fwrite({name}_model, 1, {name}_model_bytes, stdout);
  return {upper}_ARENA_BYTES > 0 ? 0 : 3;
}}
"""


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """Give the int8 file of a model of convolutions, with its array."""
    folder = tmp_path_factory.mktemp("int8")
    model = build("conv_bn")
    made = kpipe.quantize(model, calibration=samples(model, 64)[0])
    return kpipe.export(made, folder / "net.v2.tflite", c_array=True)


def test_a_compiler_takes_the_array_and_gives_the_bytes_back(int8, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    names = [resolver_call(name) for name in operators_of(read(int8.path.read_bytes()))]
    methods = "\n".join(f'  int {name}() {{ return Add("{name}"); }}' for name in names)
    (tmp_path / "main.cc").write_text(
        PROGRAM.format(name="net_v2", upper="NET_V2", methods=methods).replace('net_v2.h"', 'net.v2.h"')
    )
    folder = int8.path.parent
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{folder}", "-o", str(tmp_path / "program")]
    subprocess.run([compiler, *flags, str(tmp_path / "main.cc"), str(folder / "net.v2.cc")], check=True)
    ran = subprocess.run([str(tmp_path / "program")], capture_output=True, check=True)
    assert ran.stdout == int8.path.read_bytes()
    assert ran.stderr.decode().split()[: len(names)] == names


def test_the_array_is_the_file_and_lies_beside_it(int8):
    assert [path.name for path in int8.beside] == ["net.v2.cc", "net.v2.h"]
    source, header = (path.read_text() for path in int8.beside)
    assert array_content(source) == int8.path.read_bytes()
    assert "alignas(16) const unsigned char net_v2_model[]" in source and '#include "net.v2.h"' in source
    assert "resolver.AddConv2D() == 0" in header and "resolver.AddFullyConnected() == 0" in header
    with pytest.raises(ExportError, match="no array"):
        array_content(header)


def micro(content: bytes, arena_size: int) -> Any:
    """Load a file in TFLite Micro, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    return runtime.Interpreter.from_bytes(content, arena_size=arena_size)


def test_tflite_micro_runs_the_array_in_the_estimated_arena(int8, capfd):
    content = array_content(int8.beside[0].read_text())
    estimate = arena(read(content))
    interpreter = micro(content, estimate.total)
    x = samples(build("conv_bn"), 3)[0]
    with load_runtime(int8.path) as runtime:
        port = runtime.inputs[0]
        expected = runtime.run([x])[0]
        out = runtime.outputs[0]
    for row, answer in zip(x, expected, strict=True):
        levels = np.clip(np.round(row / port.scale) + port.zero_point, -128, 127).astype("int8")[None]
        interpreter.set_input(levels, 0)
        interpreter.invoke()
        given = (interpreter.get_output(0).astype(int) - out.zero_point) * out.scale
        assert np.abs(given - answer).max() <= 1.01 * out.scale
    capfd.readouterr()
    interpreter.print_allocations()
    told = "".join(capfd.readouterr())
    head, total = (int(re.search(rf"{name} (\d+) bytes", told)[1]) for name in ("head", "total"))
    assert head == estimate.activations
    assert total <= estimate.total < total + 2048


@pytest.mark.slow
def test_many_small_tensors_need_room_for_the_planner_itself(tmp_path):
    """The plan of a few small layers takes more than what it plans: with less TFLite Micro does not load the file."""
    model = build("siamese")
    content = kpipe.export(
        kpipe.quantize(model, calibration=samples(model, 16)), tmp_path / "m.tflite"
    ).path.read_bytes()
    estimate = arena(read(content))
    assert estimate.planning > estimate.activations
    assert micro(content, estimate.total) is not None
    with pytest.raises(RuntimeError):
        micro(content, estimate.total * 3 // 4)


def test_a_plan_never_lays_two_living_tensors_over_one_another():
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts = rng.integers(0, 8, 10)
        tensors = [
            Lifetime(int(16 * size), int(start), int(start + length))
            for size, start, length in zip(rng.integers(1, 9, 10), starts, rng.integers(0, 4, 10), strict=True)
        ]
        places = plan(tensors)
        for (a, at_a), (b, at_b) in itertools.combinations(zip(tensors, places, strict=True), 2):
            together = a.first <= b.last and b.first <= a.last
            assert not together or at_a + a.size <= at_b or at_b + b.size <= at_a
        living = [sum(one.size for one in tensors if one.first <= step <= one.last) for step in range(12)]
        assert max(living) <= peak(tensors) <= sum(one.size for one in tensors)


@pytest.mark.slow
def test_a_chain_takes_the_greatest_pair_of_neighbours():
    """In a chain of layers only what goes in and what comes out lives: the peak is the largest sum of two."""
    model = keras.Sequential([keras.Input((10,)), L.Dense(40), L.Dense(100), L.Dense(30), L.Dense(3)])
    made = kpipe.quantize(model, calibration=np.random.default_rng(0).normal(size=(8, 10)).astype("float32"))
    from kpipe.export.litert.convert import convert
    from kpipe.fake_quant import bake

    content = convert(bake(made), "int8", ["y"])
    found = lifetimes(read(content), read(content).subgraphs[0])
    assert sorted(one.size for one in found) == [16, 16, 32, 48, 112]  # 3, 10, 30, 40, 100, each up to 16
    assert peak(found) == 48 + 112


def test_what_tflite_micro_lacks_is_named(tmp_path):
    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(2)(keras.ops.tile(x, (1, 3))))
    with pytest.raises(ExportError, match="it has no TILE"):
        kpipe.export(model, tmp_path / "m.tflite", c_array=True)
    dense = build("dense")
    with pytest.raises(ExportError, match="takes no 16-bit floats"):
        kpipe.export(dense, tmp_path / "m.tflite", precision="float16", c_array=True)
    with pytest.raises(ExportError, match="FULLY_CONNECTED takes no floats together with whole weights"):
        kpipe.export(dense, tmp_path / "m.tflite", precision="int8_dynamic", c_array=True)
    with pytest.raises(ExportError, match=r"for \.tflite files"):
        kpipe.export(dense, tmp_path / "m.onnx", c_array=True)
    assert not list(tmp_path.iterdir())


def test_all_its_operators_are_known_to_litert():
    from ai_edge_litert import schema_py_generated as schema

    assert set(vars(schema.BuiltinOperator)) >= OPERATORS


@pytest.mark.parametrize("broken", [b"", b"\x1c\0\0\0TFL3", bytes(64)], ids=["empty", "only_a_beginning", "of_zeros"])
def test_a_broken_file_is_refused(broken):
    with pytest.raises(ExportError):
        c_array(broken, "net")


@pytest.mark.sweep(1)
@pytest.mark.parametrize("place", ["m.tflite", "m.tflite.json", "m.cc", "m.h"])
def test_an_interrupted_export_leaves_all_of_its_files_or_none(place, tmp_path, monkeypatch):
    model = build("dense")
    new, old = tmp_path / "new", tmp_path / "old"
    kpipe.export(model, old / "m.tflite", metadata={"made": "first"}, c_array=True)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert sorted(before) == ["m.cc", "m.h", "m.tflite", "m.tflite.json"]
    from pathlib import Path

    replace = Path.replace

    def failing(path, target):
        if Path(target).name == place and "old-" not in path.name:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    for folder in (new, old):
        with pytest.raises(KeyboardInterrupt):
            kpipe.export(model, folder / "m.tflite", metadata={"made": "second"}, c_array=True)
    assert not new.exists()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
