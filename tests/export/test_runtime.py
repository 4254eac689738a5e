"""Runtimes, latencies and bad files."""

import numpy as np
import pytest

import kpipe
from kpipe.errors import ExportError
from kpipe.export import inspect, load_runtime
from kpipe.export.benchmark import take_turns
from tests.models import build, samples

SUFFIXES = ("tflite", "onnx")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("files"), build("siamese")
    return {suffix: kpipe.export(model, folder / f"m.{suffix}") for suffix in SUFFIXES}


def test_latencies_of_several_files(files):
    found = kpipe.benchmark([files["tflite"], files["onnx"].path], runs=7, warmup=1)
    assert [latency.path for latency in found] == [files["tflite"].path, files["onnx"].path]
    for latency in found:
        assert 0 < latency.min_ms <= latency.median_ms <= latency.p90_ms <= latency.max_ms
        assert latency.min_ms <= latency.mean_ms <= latency.max_ms
        assert (latency.runs, latency.warmup, latency.threads) == (7, 1, 1)
        assert latency.repeats > 1  # a tiny net is faster than the clock can tell
    assert kpipe.benchmark(str(files["onnx"].path), runs=2).path == files["onnx"].path
    assert "median" in str(found[0]) and found[0].to_dict()["runs"] == 7


def test_files_take_turns():
    order = []
    take_turns([lambda: order.append("a"), lambda: order.append("b")], [1, 2], runs=3)
    assert order == ["a", "b", "b"] * 3


@pytest.mark.parametrize("arguments", [{"runs": 0}, {"warmup": -1}, {"threads": 0}])
def test_bad_counts(files, arguments):
    with pytest.raises(ExportError, match="expected"):
        kpipe.benchmark(files["tflite"], **arguments)
    with pytest.raises(ExportError, match="empty"):
        kpipe.benchmark([])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_samples_run_one_by_one_or_together(files, suffix):
    x = samples(build("siamese"), 5)
    with load_runtime(files[suffix], threads=2) as runtime:
        together = runtime.run(x)
        single = [runtime.run([array[n : n + 1] for array in x]) for n in range(5)]
        for n, output in enumerate(together):
            np.testing.assert_allclose(output, np.concatenate([each[n] for each in single]), atol=1e-6)
        with pytest.raises(ExportError, match="takes 2 inputs; received 1"):
            runtime.run(x[:1])
        with pytest.raises(ExportError, match=r"'left' has the shape \(5, 2\)"):
            runtime.run([np.zeros((5, 2)), x[1]])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", ["empty", "foreign", "short", "half"])
def test_broken_files(files, suffix, content, tmp_path):
    good = files[suffix].path.read_bytes()
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(
        {"empty": b"", "foreign": b"GIF89a" * 50, "short": good[:10], "half": good[: len(good) // 2]}[content]
    )
    for use in (load_runtime, inspect, kpipe.benchmark):
        with pytest.raises(ExportError, match="bad"):
            use(path)


def test_missing_and_unknown_files(tmp_path):
    for path, why in ((tmp_path / "none.onnx", "no file"), (tmp_path / "m.pt", "Unknown suffix")):
        for use in (load_runtime, inspect, kpipe.benchmark):
            with pytest.raises(ExportError, match=why):
                use(path)


def test_what_is_inside(files):
    for suffix, name in (("tflite", "CONV_2D"), ("onnx", "Conv")):
        found = inspect(files[suffix])
        assert {o.name: o.count for o in found.operations}[name] == 2  # the shared tower, for either side
        assert found.precision == "float32" and name in str(found) and found.to_dict()["precision"] == "float32"
