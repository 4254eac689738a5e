"""What a file says of itself: found or given, read back, and of no effect on what it computes."""

import hashlib
import json
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError
from kpipe.export import FORMATS, load_runtime, read_metadata
from kpipe.export.metadata import as_json
from kpipe.export.normalisation import normalisations
from tests.models import build, samples

SUFFIXES = [FORMATS[name].suffix[1:] for name in FORMATS]
LABELS = [f"class {n} – Größe" for n in range(4)]


def net(**more: Any) -> keras.Model:
    x = keras.Input((6, 6, 3), name="x")
    y = L.Rescaling(2.0, -1.0)(x)
    y = L.Normalization(mean=[0.0, 1.0, 3.0], variance=[1.0, 4.0, 16.0], **more)(y)
    return keras.Model(x, L.Dense(4, name="logits")(L.Flatten()(L.Conv2D(4, 3)(y))), name="net")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_found_and_what_is_given_come_back(suffix, tmp_path):
    given = {"labels": LABELS, "author": "an author", "threshold": np.float32(0.5), "grid": np.eye(2, dtype="int64")}
    file = kpipe.export(net(), tmp_path / f"m.{suffix}", metadata=given)
    facts = read_metadata(file.path)
    assert facts == file.metadata
    assert facts["labels"] == LABELS
    assert (facts["author"], facts["threshold"], facts["grid"]) == ("an author", 0.5, [[1, 0], [0, 1]])
    assert (facts["model"], facts["format"], facts["precision"], facts["scheme"]) == (
        "net",
        file.format,
        "float32",
        None,
    )
    assert facts["kpipe"] == kpipe.__version__
    (scaling,) = facts["normalisation"]
    assert (scaling["input"], scaling["by"]) == ("x", "file")
    raw = samples(net(), 5)[0]  # the formula that is promised: x · scale + offset is what the layers give
    through = (raw * 2 - 1 - np.array([0.0, 1.0, 3.0])) / np.sqrt([1.0, 4.0, 16.0])
    np.testing.assert_allclose(raw * np.array(scaling["scale"]) + scaling["offset"], through, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_json_beside_the_file_says_the_same_and_more(suffix, tmp_path):
    file = kpipe.export(net(), tmp_path / f"m.{suffix}", metadata={})
    assert file.beside == (tmp_path / f"m.{suffix}.json",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"m.{suffix}", f"m.{suffix}.json"]
    beside = json.loads(file.beside[0].read_text(encoding="utf-8"))
    assert {key: beside[key] for key in file.metadata} == file.metadata
    assert beside["file"]["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert (beside["file"]["bytes"], beside["file"]["zstd_bytes"]) == (file.bytes, file.zstd_bytes)
    assert beside["agreement"]["samples"] == 64
    assert kpipe.export(net(), tmp_path / f"alone.{suffix}").beside == ()


@pytest.mark.parametrize(
    ("suffix", "quantized"), [(suffix, False) for suffix in SUFFIXES] + [("tflite", True)], ids=[*SUFFIXES, "int8"]
)
def test_a_file_computes_the_same_bit_for_bit_whatever_it_says(suffix, quantized, tmp_path):
    model = build("conv_bn")
    x = samples(model, 16)
    model = kpipe.quantize(model, calibration=x[0]) if quantized else model
    form = next(FORMATS[name] for name in FORMATS if FORMATS[name].suffix == f".{suffix}")
    file = kpipe.export(
        model, tmp_path / f"m.{suffix}", metadata={"labels": list("abcde"[: model.outputs[0].shape[-1]])}
    )
    other = tmp_path / f"other.{suffix}"
    answers = []
    for words in ("", "{}", as_json({**file.metadata, "long": "x" * 10_000})):
        other.write_bytes(form.embed(file.path.read_bytes(), words))
        with load_runtime(other) as runtime:
            answers.append(runtime.run(x))
    with load_runtime(file.path) as runtime:
        reference = runtime.run(x)
    for answer in answers:
        assert [one.tobytes() for one in answer] == [one.tobytes() for one in reference]
    assert kpipe.verify(file, model) == file.agreement


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_texts_are_kept_one_at_a_time_and_leave_all_else(suffix, tmp_path):
    form = next(FORMATS[name] for name in FORMATS if FORMATS[name].suffix == f".{suffix}")
    content = kpipe.export(build("dense"), tmp_path / f"m.{suffix}").path.read_bytes()
    for words in ("", "ä", "{}"):
        again = form.embed(form.embed(content, "x" * 1000), words)
        assert form.extract(again) == words
        assert form.embed(again, "y") == form.embed(content, "y")
    if suffix == "tflite":
        from ai_edge_litert.tools import flatbuffer_utils

        model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        assert [entry.name for entry in model.metadata].count(b"kpipe") == 1
        assert b"min_runtime_version" in [entry.name for entry in model.metadata]  # the converter's own stay


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_function_gives_metadata_for_the_written_file(suffix, tmp_path):
    model, seen = build("dense"), []

    def measured(path):
        seen.append(path)
        with load_runtime(path) as runtime:
            return {"greatest": float(np.abs(runtime.run(samples(model, 4))[0]).max())}

    file = kpipe.export(model, tmp_path / f"m.{suffix}", metadata=measured)
    assert len(seen) == 1 and seen[0] != file.path and seen[0].suffix == f".{suffix}"
    with load_runtime(file.path) as runtime:
        expected = float(np.abs(runtime.run(samples(model, 4))[0]).max())
    assert read_metadata(file.path)["greatest"] == expected

    def broken(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kpipe.export(model, tmp_path / f"new.{suffix}", metadata=broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"m.{suffix}", f"m.{suffix}.json"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"precision": "int8"}, "precision, which kpipe finds itself"),
        ({"labels": ["one"]}, "1 labels; the output 'logits' has 4"),
        ({"labels": "abcd"}, "a list of texts"),
        ({"labels": [1, 2, 3, 4]}, "a list of texts"),
        ({"labels": {"other": LABELS}}, "output 'other'; the model has logits"),
        ({"normalisation": {"scale": "twice"}}, "expected {'scale'"),
        ({"normalisation": {"y": {"scale": 2.0}}}, "for each of the inputs x"),
        ({"made": object()}, "no plain data"),
        ({"made": float("nan")}, "not JSON compliant"),
    ],
)
def test_metadata_that_cannot_be_are_refused_before_anything_is_written(given, why, tmp_path):
    with pytest.raises(ExportError, match=why):
        kpipe.export(net(), tmp_path / "m.onnx", metadata=given)
    assert not list(tmp_path.iterdir())


def test_the_caller_s_own_scaling_stands_beside_the_file_s(tmp_path):
    file = kpipe.export(net(), tmp_path / "m.onnx", metadata={"normalisation": {"scale": 1 / 255}})
    assert [one["by"] for one in file.metadata["normalisation"]] == ["file", "caller"]
    assert file.metadata["normalisation"][1] == {"input": "x", "by": "caller", "scale": 1 / 255, "offset": 0.0}


def test_scaling_that_is_not_alone_behind_an_input_is_not_told():
    x = keras.Input((3,), name="x")
    scaled = L.Rescaling(0.5)(x)
    for y in (L.Add()([scaled, x]), L.Rescaling(0.5)(L.ReLU()(x)), L.Dense(2)(x)):
        assert normalisations(keras.Model(x, y)) == []
    assert normalisations(keras.Model(x, L.Dense(1)(scaled)))[0]["scale"] == 0.5
    rounded = kpipe.quantize(net(), calibration=samples(net(), 8)[0])
    assert normalisations(rounded)[0]["scale"] == pytest.approx([2.0, 1.0, 0.5])


def test_labels_of_several_outputs_name_their_output(tmp_path):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, [L.Dense(2, name="kind")(x), L.Dense(1, name="size")(x)])
    labels = {"kind": ["cat", "dog"]}
    assert kpipe.export(model, tmp_path / "m.onnx", metadata={"labels": labels}).metadata["labels"] == labels
    with pytest.raises(ExportError, match="name the output"):
        kpipe.export(model, tmp_path / "m.onnx", metadata={"labels": ["cat", "dog"]})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_from_elsewhere_and_broken_ones(suffix, tmp_path):
    form = next(FORMATS[name] for name in FORMATS if FORMATS[name].suffix == f".{suffix}")
    from kpipe.export.signature import output_names

    model = build("dense")
    plain = tmp_path / f"plain.{suffix}"
    plain.write_bytes(form.convert(model, "float32", output_names(model), 1))
    assert read_metadata(plain) == {}
    for words, why in (("no json", "cannot be read"), ("[]", "expected a mapping")):
        plain.write_bytes(form.embed(plain.read_bytes(), words))
        with pytest.raises(ExportError, match=why):
            read_metadata(plain)
    plain.write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match="cannot be read"):
        read_metadata(plain)
    with pytest.raises(ExportError, match="There is no file"):
        read_metadata(tmp_path / f"absent.{suffix}")
