"""The page of what can be written, held against the registries and a sample of its cells; the check on arm64."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.export import FORMATS
from kpipe.export.file import Inspection, Port
from kpipe.fake_quant import SCHEMES
from tests.models import ZOO, build

ROOT = Path(__file__).parent.parent
COLUMNS = ["float32", *SCHEMES]
SAMPLE = [
    ("dense", "onnx", "int8_dynamic"),
    ("dense", "tflite", "w4a8"),
    ("siamese", "onnx", "int8"),
    ("siamese", "tflite", "int4"),
    ("reshaped", "tflite", "float32"),
    ("reshaped", "onnx", "float16"),
]
"""One cell of each precision, in both formats; `-m slow` measures all."""


def program(name):
    """Load a program of benchmarks/ as a module; what it adds to the path is taken off again."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


support, arm64_check = program("support"), program("arm64_check")


def tables(text):
    """Read the page: format -> (columns, model -> cells)."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        if part[0] == ".":
            found[part.splitlines()[0]] = (rows[0][1:], {row[0]: row[1:] for row in rows[2:]})
    return found


def told(one):
    """Give what a cell says, without figures, which differ from processor to processor."""
    return one["state"], one.get("notes", ""), re.sub(r"\d+(\.\d+)?", "#", one.get("why", ""))


def test_the_page_has_every_format_precision_and_network():
    found = tables(support.PAGE.read_text(encoding="utf-8"))
    assert list(found) == [FORMATS[name].suffix for name in FORMATS]
    slow = list(support.slow_models())
    for columns, rows in found.values():
        assert columns == COLUMNS, "run benchmarks/support.py anew"
        assert list(rows)[: len(ZOO)] == list(ZOO)
        assert set(slow) >= set(list(rows)[len(ZOO) :])
        assert not [cells for cells in rows.values() if "—" in cells or any("fault" in cell for cell in cells)]


def test_each_family_has_its_steps_of_training():
    assert sorted(support.families.STEPS) == sorted(support.families.zoo.FAMILIES)


def test_the_page_is_what_was_measured():
    assert support.PAGE.read_text(encoding="utf-8") == support.page(json.loads(support.RECORD.read_text()))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("model", "name", "precision"), SAMPLE, ids=["-".join(one) for one in SAMPLE])
def test_a_cell_measured_anew_says_the_same(model, name, precision):
    kept = json.loads(support.RECORD.read_text())[model][f"{name} {precision}"]
    found = support.cell(support.Subject(build(model)), name, precision)
    assert told(found) == told(kept)


def test_the_sample_has_every_precision_and_format():
    assert sorted({precision for _, _, precision in SAMPLE}) == sorted(COLUMNS)
    assert {name for _, name, _ in SAMPLE} == set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("model", ZOO)
def test_all_cells_measured_anew_say_the_same(model):
    kept = json.loads(support.RECORD.read_text())[model]
    found = support.row(support.Subject(build(model)))
    assert {key: told(one) for key, one in found.items()} == {key: told(one) for key, one in kept.items()}


@pytest.mark.parametrize(
    ("raised", "state"),
    [(KpipeError("no kernel"), "refused"), (TypeError("no attribute"), "fault")],
    ids=["own", "other"],
)
def test_only_named_errors_are_refusals(raised, state, monkeypatch):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("kpipe.export", fail)
    found = support.cell(support.Subject(build("dense")), "onnx", "float32")
    assert found["state"] == state and str(raised) in found["why"]


def test_a_file_of_another_precision_is_a_fault(monkeypatch):
    fake = Inspection((), "float32", stored=(("float32", 8),))
    monkeypatch.setattr(sys.modules["kpipe.export"], "inspect", lambda path: fake)
    found = support.cell(support.Subject(build("dense")), "onnx", "int8_dynamic")
    assert found["state"] == "fault" and found["why"] == "its precision is float32; no weights of int8"


def judged(there, scale=0.5, precision="int8"):
    """Judge answers of ten samples and two classes that here are 4 and 0, or 0 and 4."""
    here = np.array([[4.0, 0.0], [0.0, 4.0]] * 5)
    ports = [Port("y", (1, 2), "int8" if scale else "float32", scale)]
    return arm64_check.judge(
        Inspection((), precision), arm64_check.agreement_of(ports, [here], [there(here)]), 1.0, 1.0
    )


def test_answers_of_arm64_are_judged_by_the_bars():
    assert not judged(lambda y: y + 1.0)  # two steps off, all of them
    assert not judged(lambda y: y * (1 + 5e-5), scale=None, precision="float16")
    (fault,) = judged(lambda y: y + 1.5)
    assert "0.0% of the values lie within 2 steps" in fault
    (fault,) = judged(lambda y: y * (1 + 2e-4), scale=None, precision="float16")
    assert "relative error 0.0002" in fault and "this machine" in fault
    (fault,) = judged(lambda y: y[:, ::-1])
    assert "argmax agrees on 0.0%" in fault
    same = arm64_check.agreement_of([Port("y", (1, 2), "float32")], [np.eye(2)], [np.eye(2)])
    assert arm64_check.judge(Inspection((), "float32"), same, 0.995, 0.990) == ()
    assert arm64_check.judge(Inspection((), "float32"), same, 0.995, 0.98) == ("accuracy 99.50% here, 98.00% on arm64",)


def test_the_check_on_arm64_skips_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["arm64_check.py"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert arm64_check.main() == 0
    assert capsys.readouterr().out == "skipped: it needs root, to change the root folder.\n"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(arm64_check.machine.shutil, "which", lambda name: None if "qemu" in name else name)
    assert arm64_check.main() == 0
    assert capsys.readouterr().out == "skipped: it needs Debian's packages qemu-user-static.\n"
