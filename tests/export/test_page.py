"""The page on files, as a reader would type it."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.slow
def test_the_page_on_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
    beside, said, latency, rounded_by = capsys.readouterr().out.splitlines()[:4]
    assert rounded_by == "converter None"
    assert latency.startswith("autoencoder.tflite (encode): median")
    assert "net.tflite.json" in beside and "'bird'" in said and "'by': 'file'" in said
    made = {"net.tflite", "net.tflite.json", "net.cc", "net.h", "net_any.tflite", "net_8.onnx", "net_16.tflite"}
    made |= {"whole.tflite", "encode.tflite", "autoencoder.tflite", "full.tflite"}
    assert {path.name for path in tmp_path.iterdir()} == made
    header = (tmp_path / "net.h").read_text()
    assert "#define NET_OPERATORS" in header and "#define NET_ARENA_BYTES" in header and "net_add_operators" in header
