"""Models loaded from `.keras` files that may be broken, or come from somebody else."""

import zipfile
from pathlib import Path
from typing import cast

import keras

from kpipe.errors import KpipeError

MOST_BYTES = 16 * 2**30
"""What the parts of a file may come to unpacked: more than any model that a file of Keras holds sensibly."""
MOST_RATIO, FREE_BYTES = 1100, 64 * 2**20
"""How many times its packed size a part may come to, which zeros do at most; small parts are not asked."""
CODE = "__lambda__"
"""How Keras names a function in a file that is stored as code."""


def load_model(path: str | Path, safe_mode: bool = True) -> keras.Model:
    """Load a `.keras` file as it was saved, not compiled.

    Every part of the file is first compared with its checksum, so that a damaged one never gives a model with other
    weights. Classes are looked for among Keras's own and those that are registered; nothing is imported by a name in
    the file.

    Args:
        path: The file.
        safe_mode: Whether functions that are stored as code, as those of Lambda layers are, are refused; else the code
            is run.

    Returns:
        The model.

    Raises:
        KpipeError: When there is no such file, it is broken or no Keras model, would unpack to an absurd size, or holds
            code.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "m.keras"
        ...     keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")]).save(path)
        ...     load_model(path).layers[0].name
        'out'
    """
    path = Path(path)
    if not path.is_file():
        raise KpipeError(f"There is no file {path} (looked in {path.resolve().parent}).")
    config = check_archive(path)
    if safe_mode and CODE in config:
        raise KpipeError(
            f"{path} holds functions as code, as Lambda layers do; it would run when the model is loaded, and whoever "
            "wrote the file could make it do anything. If you trust the file, say so: kpipe show --unsafe, safe_mode: "
            "false under model in a recipe, or safe_mode=False in Python."
        )
    try:
        return cast(keras.Model, keras.models.load_model(path, compile=False, safe_mode=safe_mode))
    except Exception as error:  # Keras raises many kinds for a file that is no model
        raise KpipeError(f"{path} is not a Keras model file that can be loaded: {first_lines(error)}") from error


def holds_code(model: keras.Model) -> bool:
    """Tell whether a model would be saved with functions as code.

    Example:
        >>> layers = [keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]
        >>> holds_code(keras.Sequential(layers)), holds_code(keras.Sequential(layers[:1]))
        (True, False)
    """
    try:
        return CODE in model.to_json()
    except Exception:  # what cannot be written down is told of when it is saved
        return False


def check_archive(path: Path) -> str:
    """Compare every part of a `.keras` file with its checksum and give the text of its configuration.

    Raises:
        KpipeError: When it is no archive of Keras, or broken, or its parts would unpack to an absurd size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            broken = archive.testzip()
            if broken is not None:
                raise KpipeError(f"{path} is damaged: its part {broken!r} does not fit its checksum. Fetch it again.")
            return archive.read("config.json").decode("utf-8")
    except KpipeError:
        raise
    except Exception as error:  # zipfile, zlib and the decoder each raise their own
        raise KpipeError(
            f"{path} is no Keras model file, or a broken one: {first_lines(error)}. Expected a .keras file, as "
            "model.save(path) writes it."
        ) from error


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse parts that say they unpack to what no model holds, before anything is unpacked."""
    parts = archive.infolist()
    total = sum(part.file_size for part in parts)
    absurd = [part for part in parts if part.file_size > FREE_BYTES + MOST_RATIO * part.compress_size]
    if total > MOST_BYTES or absurd:
        raise KpipeError(
            f"{path} is refused: it takes {path.stat().st_size:,} bytes and would unpack to {total:,}, which no model "
            "file does."
        )


def first_lines(error: Exception) -> str:
    """Give the kind of an error and the beginning of what it says; of Keras's, what it met behind all the rest.

    Example:
        >>> first_lines(KeyError("name"))
        "KeyError: 'name'"
        >>> first_lines(TypeError("Could not make x={...}. Exception encountered: no such layer"))
        'TypeError: no such layer'
    """
    text = str(error).rpartition("Exception encountered:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"
