"""Files are written whole or not at all."""

import pytest

from kpipe.atomic import PARTIAL, replace_atomically


def test_a_failure_spares_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_atomically(target) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"
    with replace_atomically(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "file.txt"):
        pass


def test_a_run_sweeps_away_what_a_kill_left(tmp_path):
    from kpipe.pipeline.checkpoint import sweep

    block = replace_atomically(tmp_path / "model.tflite")
    block.__enter__().write_bytes(b"half")  # and never left: the process was killed
    assert [path.name.startswith(PARTIAL) for path in tmp_path.iterdir()] == [True]
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
