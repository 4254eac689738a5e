"""Engines, cold starts, times of operations and comparisons, measured on real files."""

import sys
import time

import keras
import numpy as np
import pytest
from scipy.stats import binom

import kpipe
from kpipe.errors import ExportError
from kpipe.export import ENGINES, FORMATS, compare_latencies, load_runtime, native
from kpipe.export.comparison import median_bounds
from kpipe.export.engines import engines_of
from kpipe.export.litert.profile import _difference, prefixes
from tests.models import build, samples

LITERT = ["litert", "litert_builtin", "litert_compiled"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("files"), build("siamese")
    found = {suffix: kpipe.export(model, folder / f"m.{suffix}").path for suffix in ("tflite", "onnx")}
    wide = keras.Sequential([keras.Input((500,), name="x"), keras.layers.Dense(2000, name="y")], name="wide")
    found["wide"] = kpipe.export(wide, folder / "wide.tflite").path
    found["wide_onnx"] = kpipe.export(wide, folder / "wide.onnx").path
    return found


def test_each_format_has_an_engine_and_each_engine_an_opener():
    assert {ENGINES[name].format for name in ENGINES} == set(FORMATS)
    assert set(ENGINES) == set(native.OPENERS)
    assert [engines_of(form)[0] for form in FORMATS] == ["litert", "onnxruntime"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("engine", LITERT)
def test_engines_answer_as_the_keras_model_does(files, engine):
    model = build("siamese")
    x = samples(model, 3)
    with load_runtime(files["tflite"], engine=engine) as runtime:
        assert [port.name for port in runtime.inputs] == ["left", "right"]
        found = runtime.run(x)
    for output, expected in zip(found, model.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_rounded_file_gives_the_same_in_all_engines(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 12)).astype("float32")
    file = kpipe.export(kpipe.quantize(build("dense"), calibration=x), tmp_path / "d.tflite")
    answers = []
    for engine in LITERT:
        with load_runtime(file, engine=engine) as runtime:
            answers.append(runtime.run([x])[0])
            scale = runtime.outputs[0].scale
            assert runtime.outputs[0].dtype == "int8" and scale
    for answer in answers[1:]:
        assert (
            np.abs(answer - answers[0]).max() <= 2.01 * scale
        )  # the builtin kernels round twice, in each of two layers


def test_files_and_engines_take_turns(files):
    found = kpipe.benchmark([files["tflite"], files["onnx"]], runs=3, engine=[*LITERT, "onnxruntime"])
    assert [(latency.path, latency.engine) for latency in found] == [
        *((files["tflite"], engine) for engine in LITERT),
        (files["onnx"], "onnxruntime"),
    ]
    assert [latency.engine for latency in kpipe.benchmark(files["tflite"], runs=2, engine=["litert_builtin"])] == [
        "litert_builtin"
    ]
    assert kpipe.benchmark(files["tflite"], runs=2, engine="litert_compiled").engine == "litert_compiled"
    assert all(len(latency.times_ms) == 3 and "times_ms" not in latency.to_dict() for latency in found)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("lithert", "Did you mean 'litert'"),
        ("onnxruntime", "does not run .*m.tflite.*litert, litert_compiled, litert_builtin"),
        (["litert", "none"], "Unknown engine 'none'"),
        (["litert", "onnxruntime"], "'onnxruntime' does not run"),
    ],
)
def test_engines_that_do_not_fit(files, engine, message):
    with pytest.raises(ExportError, match=message):
        kpipe.benchmark(files["tflite"], runs=1, engine=engine)


def test_a_file_that_none_of_the_engines_runs(files):
    with pytest.raises(ExportError, match=r"None of the engines onnxruntime runs .*m\.tflite"):
        kpipe.benchmark([files["onnx"], files["tflite"]], runs=1, engine=["onnxruntime"])


@pytest.mark.parametrize("name", ["wide", "wide_onnx"])
def test_cold_starts(files, name):
    found = kpipe.benchmark(files[name], runs=2, cold=True)
    assert found.cold.load_ms > 0 and found.cold.first_ms > 0
    assert found.to_dict()["cold"]["load_ms"] == found.cold.load_ms and "cold: loaded in" in str(found)
    if sys.platform == "linux":  # the weights of 4 MB, as they are and as the runtime packs them, and little else
        assert 4e6 < found.cold.peak_bytes < 16e6
    assert kpipe.benchmark(files[name], runs=2).cold is None


def test_memory_grows_with_the_file(files):
    if sys.platform != "linux":
        pytest.skip("only Linux tells the greatest use of memory")
    small, large = kpipe.benchmark([files["tflite"], files["wide"]], runs=2, cold=True)
    assert small.cold.peak_bytes < 1e6 < large.cold.peak_bytes


@pytest.mark.parametrize("engine", LITERT)
def test_the_operations_of_a_litert_file_are_timed(files, engine):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(
        str(files["tflite"]), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    expected = [operation["op_name"] for operation in plain._get_ops_details()]
    latency = kpipe.benchmark(files["tflite"], runs=5, engine=engine, per_op=True)
    assert [operation.name for operation in latency.operations] == expected
    assert sum(operation.share for operation in latency.operations) == pytest.approx(1, abs=1e-3)
    assert 0 < sum(operation.ms for operation in latency.operations) < 20 * latency.median_ms


def test_the_nodes_of_an_onnx_file_are_timed(files):
    latency = kpipe.benchmark(files["onnx"], runs=5, per_op=True)
    names = {operation.name for operation in latency.operations}
    assert {"Conv", "ReduceMean"} <= names and all(operation.ms >= 0 for operation in latency.operations)
    assert latency.to_dict()["operations"][0]["name"] == latency.operations[0].name
    assert "Conv" in str(latency)


def test_the_last_of_the_prefixes_gives_what_the_whole_file_gives(files, tmp_path):
    steps = list(prefixes(native.read_litert(files["tflite"])))
    (tmp_path / "last.tflite").write_bytes(steps[-1][2]())
    (tmp_path / "first.tflite").write_bytes(steps[0][2]())
    x = samples(build("siamese"), 2)
    with load_runtime(tmp_path / "last.tflite") as last, load_runtime(files["tflite"]) as whole:
        by_shape = {array.shape: array for array in last.run(x)}
        for output in whole.run(x):
            np.testing.assert_array_equal(by_shape[output.shape], output)
    assert (tmp_path / "first.tflite").stat().st_size < (tmp_path / "last.tflite").stat().st_size


def test_the_time_of_an_operation_is_a_difference():
    found = _difference(lambda: time.sleep(0.004), lambda: time.sleep(0.001), runs=5, seconds=1)
    assert 0.0025 < found < 0.004
    assert _difference(lambda: time.sleep(0.001), None, runs=5, seconds=1) >= 0.001


def test_files_are_compared_with_the_first(files):
    timed = kpipe.benchmark([files["tflite"], files["onnx"], files["wide"]], runs=9)
    same, other, foreign = compare_latencies(timed)
    assert (same.size_ratio, same.speedup, same.max_relative_error, same.argmax_agreement) == (1, 1, 0, 1)
    assert other.size_ratio == files["onnx"].stat().st_size / files["tflite"].stat().st_size
    ratios = np.array(timed[0].times_ms) / np.array(timed[1].times_ms)
    assert other.speedup == pytest.approx(np.median(ratios)) and other.speedup_low <= other.speedup
    assert other.speedup <= other.speedup_high
    assert other.max_relative_error < 1e-5 and other.argmax_agreement == 1 and other.why_not == ""
    assert (foreign.max_relative_error, foreign.why_not) == (None, "1 inputs, the first has 2")
    assert other.to_dict()["path"] == str(files["onnx"])


def test_files_of_other_weights_differ(files, tmp_path):
    other = kpipe.export(build("siamese", seed=1), tmp_path / "other.tflite")
    _, compared = compare_latencies(kpipe.benchmark([files["tflite"], other], runs=3))
    assert compared.max_relative_error > 0.01


def test_what_was_not_timed_together_is_not_compared(files):
    alone = [kpipe.benchmark(files["tflite"], runs=runs) for runs in (2, 3)]
    for wrong in ([], alone):
        with pytest.raises(ExportError, match="timed together"):
            compare_latencies(wrong)


@pytest.mark.parametrize("count", [10, 33, 100, 1000])
def test_the_bounds_of_a_median_hold_in_95_of_100_cases(count):
    low, high = median_bounds(np.arange(1.0, count + 1))
    assert low + high == count + 1
    assert 0.93 < 1 - 2 * binom.cdf(low - 1, count, 0.5) < 0.999
