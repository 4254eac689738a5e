"""Load a file with tf_keras."""

import importlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .graph import is_graph
from .mend import mend
from .refusal import Refusal, shortened
from .wrappers import wrappers
from .zeros import find_zeros


def read(file: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Load a model as tf_keras saved it, wrappers included.

    Args:
        file: The job: where it is, what kind it is, which classes it needs.

    Returns:
        A Functional or Sequential model of tf_keras, and what the user is to know of it.

    Raises:
        Refusal: When it is no graph of layers that are known here.
    """
    objects = {name: found(name, place) for name, place in file["objects"].items()}
    import tf_keras

    mend(file, objects)
    unlisted = {"SpectralNormalization": tf_keras.layers.SpectralNormalization}  # tf_keras does not know it by name
    scope = {**unlisted, **(wrappers() if file["tfmot"] else {}), **objects}
    with tf_keras.saving.custom_object_scope(scope):
        model = _loaded(file)
        check(model)
    return model, find_zeros(model) if file["tfmot"] else []


def _loaded(file: Mapping[str, Any]) -> Any:
    from tf_keras.models import load_model

    try:
        return load_model(_named_as_it_is(file), compile=False, safe_mode=file["safe_mode"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if not file["tfmot"]:
            raise
        raise Refusal(
            f"{shortened(error)}. TFMOT 0.8.1 cannot load all that it saves; where the model still is, strip it with "
            "TFMOT (strip_pruning, strip_clustering, strip_clustering_cqat) and save that"
        ) from error


def check(model: Any) -> None:
    """Refuse what is no graph of layers, and layers that were revived without their class.

    Raises:
        Refusal: With the layer's name.
    """
    from tf_keras.src.saving.legacy.saved_model.load import RevivedInputLayer, RevivedLayer, RevivedNetwork

    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (RevivedLayer, RevivedInputLayer, RevivedNetwork)):
            raise Refusal(_why_revived(layer))
    if not is_graph(model):
        raise Refusal(
            f"the model {model.name!r} is of the class {type(model).__name__!r}, whose call is code; only models made "
            "of a graph of layers (Functional, or Sequential with a known input shape) can be converted. Under "
            "tf_keras, make one with keras.Model(inputs, model.call(inputs)) and save that"
        )


def _why_revived(layer: Any) -> str:
    """Say why a SavedModel's layer was not made of its class."""
    from tf_keras import layers

    kind = type(layer).__name__
    known = getattr(layers, kind, None)
    if known is None:
        return f"layer {layer.name!r} is of the class {kind!r}, which tf_keras does not know; pass it in custom_objects"
    try:
        known.from_config(dict(layer.get_config()))
        reason = "its class takes it, but then cannot be built"
    except Exception as error:  # what tf_keras passed over
        reason = shortened(error)
    return f"layer {layer.name!r} ({kind}) cannot be made of its configuration: {reason}"


def found(name: str, place: str) -> Any:
    """Import an object by "module:qualified name", as code written for Keras 2 sees it.

    Raises:
        Refusal: When it cannot be imported.
    """
    module, _, path = place.partition(":")
    try:
        with keras_is_tf_keras():
            value: Any = importlib.import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except Exception as error:  # an import runs the user's code
        raise Refusal(
            f"{name!r} cannot be imported from {place!r} where Keras is tf_keras ({shortened(error)}). Pass what can "
            f"be: originals={{{name!r}: 'module:name'}}"
        ) from error
    return value


@contextmanager
def keras_is_tf_keras() -> Iterator[None]:
    """Let `import keras` mean tf_keras, as it did when the file was written."""
    import tf_keras

    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "keras"}
    sys.modules["keras"] = tf_keras
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "keras"]:
            del sys.modules[name]
        sys.modules.update(kept)


def _named_as_it_is(file: Mapping[str, Any]) -> str:
    """Give a path that ends as tf_keras expects it: it tells a `.keras` file by its name."""
    if file["kind"] != "keras" or file["path"].endswith(".keras"):
        return file["path"]
    return str(shutil.copyfile(file["path"], Path(file["folder"]) / "model.keras"))
