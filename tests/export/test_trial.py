"""Files are tried in another process, which may die, hang or run out of memory."""

import sys
import textwrap
from pathlib import Path

import pytest

import kpipe
from kpipe.errors import ExportError
from kpipe.export import native, trial
from tests.models import build

PLANTED = f"""
import importlib.util, os
spec = importlib.util.spec_from_file_location("native", {native.__file__!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)

def act(path, threads=1):
    what = path.read_text()
    if what == "die":
        os.abort()
    while what == "hang":
        pass
    if what == "grow":
        return native.np.ones(2**40)
    if what == "refuse":
        raise ValueError("I do not\\n  like this file")
    return lambda: None

native.OPENERS["litert"] = (act, lambda opened, signature: opened, lambda path: None)
native._import = lambda engine, run: None
native.serve()
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Give a process whose runtime does what a file says, and a function that tries such a file."""
    program = tmp_path / "planted.py"
    program.write_text(textwrap.dedent(PLANTED))
    helper = trial.Helper()
    monkeypatch.setattr(trial, "PROGRAM", program)
    monkeypatch.setattr(trial, "HELPER", helper)
    monkeypatch.setattr(trial, "_FAULTS", {})

    def attempt(what):
        (tmp_path / f"{what}.tflite").write_text(what)
        trial.assure(tmp_path / f"{what}.tflite", "litert")

    yield helper, attempt
    helper.stop()


def test_what_a_file_can_do_to_a_process_is_named(planted, monkeypatch):
    helper, attempt = planted
    monkeypatch.setenv(trial.SECONDS_VARIABLE, "1")
    attempt("be good")
    for what, message in (
        ("die", r"die\.tflite is broken: litert died of it \(SIGABRT\)"),
        ("hang", r"hang\.tflite took litert longer than 1 s\. Set KPIPE_TRIAL_SECONDS"),
        ("refuse", r"refuse\.tflite cannot be loaded and run by litert: ValueError: I do not like this file"),
    ):
        with pytest.raises(ExportError, match=message):
            attempt(what)
    if sys.platform == "linux":
        with pytest.raises(ExportError, match=r"grow\.tflite .*MemoryError"):
            attempt("grow")
    process = helper.process
    attempt("be good again")
    if sys.platform == "linux":  # where each file has a process of its own
        assert helper.process is process


def test_a_content_is_tried_once(planted, tmp_path):
    helper, attempt = planted
    asked = []
    ask, helper.ask = helper.ask, lambda request: asked.append(request["path"]) or ask(request)
    for _ in range(2):
        attempt("be good")
        with pytest.raises(ExportError):
            attempt("refuse")
    (tmp_path / "copy.tflite").write_text("refuse")
    with pytest.raises(ExportError, match=r"copy\.tflite cannot"):  # the message names the file at hand
        trial.assure(tmp_path / "copy.tflite", "litert")
    assert len(asked) == 2


def test_a_process_that_is_gone_is_started_anew(planted):
    helper, attempt = planted
    attempt("be good")
    gone = helper.process
    gone.kill()
    gone.wait()
    attempt("be better")
    assert helper.process is not gone and helper.process.poll() is None


def test_a_process_that_does_not_answer_is_ended(planted, tmp_path, monkeypatch):
    helper, attempt = planted
    (tmp_path / "planted.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(trial, "GRACE", 0.2)
    monkeypatch.setenv(trial.SECONDS_VARIABLE, "1")
    with pytest.raises(ExportError, match="longer than 1 s"):
        attempt("be good")
    assert helper.process is None


def test_a_bad_limit(planted, monkeypatch):
    _, attempt = planted
    monkeypatch.setenv(trial.SECONDS_VARIABLE, "long")
    with pytest.raises(ExportError, match="KPIPE_TRIAL_SECONDS is 'long'; expected a number"):
        attempt("be good")


def test_what_this_process_wrote_is_trusted_and_a_copy_that_differs_is_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trial.HELPER, "ask", lambda request: asked.append(Path(request["path"]).name) or {})
    file = kpipe.export(build("dense"), tmp_path / "m.tflite")
    kpipe.benchmark(file, runs=1)
    kpipe.verify(file, build("dense"))
    assert asked == []
    (tmp_path / "other.tflite").write_bytes(file.path.read_bytes() + b" ")
    kpipe.benchmark(tmp_path / "other.tflite", runs=1)
    assert asked == ["other.tflite"]


def test_the_program_needs_no_kpipe():
    text = Path(native.__file__).read_text(encoding="utf-8")
    assert "from kpipe" not in text and "import kpipe" not in text and "import keras" not in text
    assert trial.PROGRAM.samefile(native.__file__)
