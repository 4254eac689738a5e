"""Old files, and what tf_keras says of them."""

import pickle

import pytest

from kpipe.legacy.reading import read_files
from tests.legacy.old_files import ASKED, request_of

collect_ignore = ["tfmot_script.py"]
"""What is imported by a search for doctests must not import TFMOT, which turns `tf.keras` to Keras 2."""


@pytest.fixture(scope="session")
def old(written):
    """Give the folder with the old files."""
    return written("legacy/old_models.py")


@pytest.fixture(scope="session")
def readings(old, once, tmp_path_factory):
    """Give what tf_keras said of each file."""

    def read(folder):
        requests = [request_of(old / name.partition(",")[0], **asked) for name, asked in ASKED.items()]
        found = read_files(requests, tmp_path_factory.mktemp("work"))
        (folder / "readings").write_bytes(pickle.dumps(dict(zip(ASKED, found, strict=True))))

    return pickle.loads((once("old_readings", read) / "readings").read_bytes())
