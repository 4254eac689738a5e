"""Load models that Keras 2 or TFMOT saved, as Keras 3 models with equal outputs."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.legacy.attention import Keras2MultiHeadAttention
from kpipe.legacy.compare import check_equal
from kpipe.legacy.reading import Reading, Request, read_files
from kpipe.legacy.rebuild import rebuild
from kpipe.legacy.source import OldFile, look_at
from kpipe.loading import load_model

TOLERANCE = 1e-5
STAND_INS = {"MultiHeadAttention": Keras2MultiHeadAttention}
"""What is taken instead of Keras 3's own layers where these give other outputs."""


def load(
    path: str | Path,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    originals: Mapping[str, str] | None = None,
    samples: np.ndarray | Sequence[np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
    safe_mode: bool = True,
) -> keras.Model:
    """Load a model that Keras 2 saved and convert it to Keras 3.

    It reads `.h5` and `.hdf5` files, SavedModel folders that Keras wrote, and the `.keras` files of tf_keras. TFMOT's
    wrappers are taken off: pruned weights keep their zeros and clustered ones their centroids; the fake quantization of
    a quantization-aware model is taken out and its ranges are dropped, of which a warning tells, while layers that
    TFMOT fused or split stay so. A file that Keras 3 wrote is loaded by Keras 3 as it is.

    tf_keras and TFMOT run in a process of their own, which takes some seconds. There the old model is run on random
    inputs (numbers, indices that its embeddings have, words that its tables have); the new one must give the same, and
    so must each of its layers, or there is an error that names the first layer that differs. The largest difference
    allowed is `tolerance` · max(1, the largest absolute output), ten times that inside the model, and four units in the
    last place of 1 from the first layer on that computes in half precision. Steps that a mask hides are not compared;
    if they differ in the outputs, a warning tells.

    Names of layers stay; a slash in them, which Keras 3 does not take, becomes an underscore. The model is not
    compiled, and the state of its optimizer is dropped. Two things have no equal in Keras 3 and become kpipe's:
    `hard_sigmoid`, and multi-head attention where masks make it differ (a warning tells). To load such a model once it
    is saved, import kpipe first.

    Args:
        path: The file, or the folder of a SavedModel.
        custom_objects: Name in the file -> class or function for Keras 3; also the name of a Lambda layer -> its
            function. Classes and functions that are registered with `keras.saving` under their name in the file are
            found without it.
        originals: Name in the file -> "module:name" of the same for tf_keras. Without it the object's own module is
            imported again where `tensorflow.keras` and `keras` are tf_keras, which serves for modules that are written
            for both.
        samples: Inputs to compare on, an array for each input, where random ones do not do.
        tolerance: The largest difference allowed of outputs up to 1.
        safe_mode: Whether functions that are stored as code, as those of Lambda layers are, are refused; else the code
            is run.

    Returns:
        The Keras 3 model.

    Raises:
        KpipeError: When there is no such file, it is no Keras model, something in it has no equal in Keras 3 (with the
            layer's name), or the outputs differ.
    """
    file = look_at(path)
    with keras.saving.custom_object_scope(dict(custom_objects or {})):
        if file.is_keras_3:
            return _loaded_by_keras_3(file, safe_mode)
        arrays = [samples] if isinstance(samples, np.ndarray) else samples
        request = Request(file, _places(file, custom_objects or {}, originals or {}), arrays, safe_mode)
        with tempfile.TemporaryDirectory(prefix="kpipe-legacy-") as workplace:
            (reading,) = read_files([request], Path(workplace))
        model, notes = converted(reading, tolerance)
    for note in notes:
        warnings.warn(f"{path}: {note}.", UserWarning, stacklevel=2)
    return model


def converted(reading: Reading | KpipeError, tolerance: float = TOLERANCE) -> tuple[keras.Model, list[str]]:
    """Make a Keras 3 model of a reading, and hold it against it.

    Args:
        reading: What tf_keras said of a file, or why it said nothing.
        tolerance: See `load`.

    Returns:
        The model, and what the user is to know of it.

    Raises:
        KpipeError: See `load`.
    """
    if isinstance(reading, KpipeError):
        raise reading
    try:
        model, notes = _converted(reading, tolerance)
    except KpipeError as error:
        raise KpipeError(f"{reading.path} cannot be converted. {error}") from error
    return model, [*reading.notes, *notes]


def _converted(reading: Reading, tolerance: float) -> tuple[keras.Model, list[str]]:
    """Convert with Keras's own layers; where masked attention keeps that from being equal, with kpipe's."""
    model, making = rebuild(reading)
    names = ", ".join(sorted(making.at_inference))
    notes = [_AT_INFERENCE.format(names)] if names else []
    try:
        return model, [*notes, *check_equal(model, making, tolerance)]
    except KpipeError:
        kinds = {entry.get("class") for entry in reading.layers.values()}
        if not kinds & STAND_INS.keys():
            raise
        model, making = rebuild(reading, STAND_INS)
        try:
            return model, [*notes, *check_equal(model, making, tolerance), _ATTENTION]
        except KpipeError:
            pass
        raise


_AT_INFERENCE = (
    "{} is called with training=False, which Keras 3 keeps to in predict and evaluate but not in fit; set "
    "trainable=False where batch normalization is to stay as it is"
)
_ATTENTION = (
    "attention is computed by kpipe's Keras2MultiHeadAttention, as Keras 3's own treats hidden steps otherwise and the "
    "outputs would differ; import kpipe before you load the model once it is saved"
)


def _loaded_by_keras_3(file: OldFile, safe_mode: bool) -> keras.Model:
    try:
        if file.kind == "keras":
            return load_model(file.path, safe_mode)
        model: Any = keras.models.load_model(file.path, compile=False, safe_mode=safe_mode)
    except Exception as error:  # Keras raises many kinds for a file that it does not take
        raise KpipeError(f"{file.path} was written by Keras {file.version} and cannot be loaded: {error}") from error
    return model


def _places(file: OldFile, given: Mapping[str, Any], originals: Mapping[str, str]) -> dict[str, str]:
    """Say for each object that is not Keras's own where tf_keras finds it."""
    registered = {name: value for name, value in keras.saving.get_custom_objects().items() if file.names(name)}
    found = {**registered, **given}
    return {**{name: _place(name, value) for name, value in found.items() if name not in originals}, **originals}


def _place(name: str, value: Any) -> str:
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not path or module == "__main__" or "<" in path:
        raise KpipeError(
            f"{name!r} ({value!r}) cannot be imported by another process: put it into a module of its own, or pass "
            f"where tf_keras finds it: originals={{{name!r}: 'module:name'}}."
        )
    return f"{module}:{path}"
