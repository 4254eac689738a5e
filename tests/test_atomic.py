"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from kpipe.atomic import PARTIAL, replace_atomically, replace_together


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


def test_several_files_take_their_places_together_the_first_one_last(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("net.tflite", "net.json", "net.cc")]
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append(target.name), replace(path, target)))
    with replace_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert not any(path.exists() for path in paths)
    assert order == ["net.cc", "net.json", "net.tflite"]
    assert [path.read_text() for path in paths] == ["new"] * 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
@pytest.mark.parametrize("there", [True, False], ids=["over_old_ones", "anew"])
@pytest.mark.parametrize("broken", range(3))
def test_when_one_of_several_cannot_be_moved_all_is_as_before(broken, there, links, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("net.tflite", "net.json", "net.cc")]
    for path in paths if there else ():
        path.write_text(f"old {path.name}")
    replace = Path.replace

    def failing(path, target):
        if target == paths[broken] and path.read_text() == "new":
            raise KeyboardInterrupt
        return replace(path, target)

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "replace", failing)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(KeyboardInterrupt), replace_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == ({path.name: f"old {path.name}" for path in paths} if there else {})


def test_a_file_of_several_that_was_not_written_leaves_none(tmp_path):
    with pytest.raises(FileNotFoundError), replace_together([tmp_path / "a", tmp_path / "b"]) as (first, _):
        first.write_text("new")
    assert not list(tmp_path.iterdir())


def test_the_file_that_counts_is_never_beside_others_than_its_own(tmp_path, monkeypatch):
    counts, beside = tmp_path / "metrics.json", tmp_path / "net.tflite"
    for path in (counts, beside):
        path.write_text("old")
    replace, found = Path.replace, []

    def watched(path, target):
        found.append((counts.exists(), beside.read_text()))
        replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    with replace_together([counts, beside]) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert counts.read_text() == "old"  # until all is written
    assert found == [(False, "old"), (False, "new")]
    assert counts.read_text() == beside.read_text() == "new"


def test_what_is_to_go_goes_with_the_others_and_is_back_when_they_fail(tmp_path, monkeypatch):
    kept, gone = tmp_path / "new.txt", tmp_path / "old.txt"
    gone.write_text("old")
    replace = Path.replace

    def failing(path, target):
        if target == kept:
            raise OSError("no room left")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(OSError), replace_together([kept], without=[gone]) as (temporary,):
            temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"] and gone.read_text() == "old"
    with replace_together([kept], without=[gone, tmp_path / "never.txt"]) as (temporary,):
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def test_the_file_that_counts_comes_back_last_and_what_cannot_come_back_is_kept(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("metrics.json", "net.tflite", "net.json")]
    for path in paths:
        path.write_text("old")
    replace, back = Path.replace, []

    def failing(path, target):
        if path.read_text() == "new" and target == paths[0]:
            raise OSError("no room left")
        if path.read_text() == "old":
            back.append(target.name)
            if target == paths[1]:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(KeyboardInterrupt), replace_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert back == ["net.json", "net.tflite"] and not paths[0].exists()
    left = [path for path in tmp_path.iterdir() if path.name.startswith(PARTIAL)]
    assert sorted(path.name.rpartition("-")[2] for path in left) == ["metrics.json", "net.tflite"]
    assert {path.read_text() for path in left} == {"old"}


def test_a_folder_in_the_way_is_refused_before_anything_is_moved(tmp_path):
    paths = [tmp_path / name for name in ("metrics.json", "net.json", "net.tflite")]
    for path in paths[:2]:
        path.write_text("old")
    paths[2].mkdir()
    with pytest.raises(IsADirectoryError, match=r"net.tflite is a folder"), replace_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert [path.read_text() for path in paths[:2]] == ["old", "old"]
