"""What becomes of a delivery whose removal is cut off."""

import json
from pathlib import Path

import pytest

from kpipe.pipeline import delivery


def delivered(folder):
    names = ["net.onnx", "net.tflite"]
    for name in (*names, "report.md", "report.html", *delivery.TOLD):
        (folder / name).write_text("{}")
    (folder / delivery.DELIVERED).write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("after", [1, 2, 4, 7])
def test_a_removal_that_is_cut_off_leaves_nothing_that_counts_and_is_carried_on(after, tmp_path, monkeypatch):
    folder, unlink, done = delivered(tmp_path), Path.unlink, []

    def stopping(path, missing_ok=False):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(path.name)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopping)
        with pytest.raises(KeyboardInterrupt):
            delivery.withdraw(folder)
    assert any(folder.iterdir())  # the control: it was cut off
    assert not (folder / "metrics.json").exists()
    delivery.withdraw(folder)
    assert list(folder.iterdir()) == []
