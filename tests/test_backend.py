"""A backend other than TensorFlow is refused at import."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_another_backend_is_refused_with_the_way_to_set_it(backend):
    run = subprocess.run(
        [sys.executable, "-c", "import kpipe"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"ImportError: kpipe needs the TensorFlow backend of Keras; Keras is set to '{backend}'" in run.stderr
    assert "KERAS_BACKEND=tensorflow" in run.stderr
