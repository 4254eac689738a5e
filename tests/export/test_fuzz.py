"""Damaged files give an error of kpipe's or a correct answer: this process neither dies nor hangs."""

import time

import numpy as np
import pytest

import kpipe
from kpipe.errors import ExportError
from kpipe.export import dissect, load_runtime, read_metadata
from tests.export.mutants import mutants
from tests.models import build, samples

PATIENCE = 20
"""Seconds that a damaged file may take at most, the limit of memory and time included."""

FOREIGN = {
    "empty": b"",
    "one byte": b"\0",
    "an image": b"GIF89a" * 50,
    "an identifier": b"\x1c\0\0\0TFL3" + bytes(200),
    "a field": b"\x08\x0a" + bytes(99),
}


def uses(model):
    """Give what users do with a file."""

    def run(path):
        with load_runtime(path) as runtime:
            shapes = [(2, *(size or 1 for size in port.shape[1:])) for port in runtime.inputs]
            return runtime.run([np.zeros(shape, "float32") for shape in shapes])

    return {
        "show": lambda path: str(dissect(path)),
        "bench": lambda path: kpipe.benchmark(path, runs=1, warmup=0),
        "verify": lambda path: kpipe.verify(path, model),
        "run": run,
        "metadata": read_metadata,
    }


def sweep(folder, name, suffix, count, seed, quantized=False):
    """Use damaged files; give how often each use was refused, and how long the slowest one took."""
    model = build(name)
    if quantized:
        model = kpipe.quantize(model, calibration=samples(model, 32))
    content = kpipe.export(model, folder / f"good.{suffix}").path.read_bytes()
    refused, slowest = dict.fromkeys(uses(model), 0), 0.0
    for label, damaged in mutants(content, count, seed):
        path = folder / f"{label}.{suffix}"
        path.write_bytes(damaged)
        for what, use in uses(model).items():
            start = time.perf_counter()
            try:
                use(path)
            except ExportError as error:
                assert label in str(error), error
                refused[what] += 1
            slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    return refused, slowest


@pytest.mark.parametrize(("name", "suffix"), [("dense", "tflite"), ("dense", "onnx")])
def test_damaged_files(name, suffix, tmp_path):
    refused, slowest = sweep(tmp_path, name, suffix, 24, seed=0)
    assert all(count >= (0 if what == "metadata" else 12) for what, count in refused.items()), refused
    assert refused["verify"] >= refused["bench"]  # some still run, and answer otherwise
    assert slowest < PATIENCE


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("name", ["conv_bn", "siamese"])
def test_many_damaged_files(name, suffix, quantized, tmp_path):
    refused, slowest = sweep(tmp_path, name, suffix, 200, seed=1, quantized=quantized)
    assert all(count >= (0 if what == "metadata" else 100) for what, count in refused.items()), refused
    assert slowest < PATIENCE


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"GIF89a" * 50, b"\x1c\0\0\0TFL3" + bytes(200), b"\x08\x0a" + bytes(99)]
)
def test_foreign_files(suffix, content, tmp_path):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    for what, use in uses(build("dense")).items():
        if what != "metadata":  # which tells of none where there are none
            with pytest.raises(ExportError, match="bad"):
                use(path)
