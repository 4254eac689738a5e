"""Load a file with tf_keras."""

import importlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .graph import is_graph
from .refusal import Refusal, shortened


def read(file: Mapping[str, Any]) -> Any:
    """Load a model as tf_keras saved it, wrappers included.

    Args:
        file: The job: where it is, what kind it is, which classes it needs.

    Returns:
        A Functional or Sequential model of tf_keras.

    Raises:
        Refusal: When it is no graph of layers that are known here.
    """
    objects = {name: found(name, place) for name, place in file["objects"].items()}
    import tf_keras

    guard_lambda(objects, file["safe_mode"])
    scope = {**(wrappers() if file["tfmot"] else {}), **objects}
    with tf_keras.saving.custom_object_scope(scope):
        model = tf_keras.models.load_model(_named_as_it_is(file), compile=False, safe_mode=file["safe_mode"])
    check(model)
    return model


def guard_lambda(objects: Mapping[str, Any], safe_mode: bool) -> None:
    """Let no Lambda layer run code out of a file, whatever the format, unless that has been asked for.

    Args:
        objects: Functions by the name of the layer that they are for.
        safe_mode: Whether code is refused.
    """
    from tf_keras.layers import Lambda

    unguarded = _UNGUARDED.setdefault("from_config", Lambda.from_config.__func__)

    def from_config(kind: Any, config: dict[str, Any], custom_objects: Any = None) -> Any:
        function = objects.get(config["name"])
        if function is not None:
            plain = {key: config[key] for key in ("name", "trainable", "dtype", "arguments") if key in config}
            return kind(function, **plain)
        if safe_mode and config["function_type"] != "function":
            raise Refusal(
                f"layer {config['name']!r} is a Lambda, whose function is stored as Python code; to run code out of a "
                f"file can do harm. Pass the function, custom_objects={{{config['name']!r}: function}}, or "
                "safe_mode=False if you trust the file"
            )
        return unguarded(kind, config, custom_objects)

    Lambda.from_config = classmethod(from_config)


_UNGUARDED: dict[str, Any] = {}
"""What `Lambda.from_config` was before it was guarded."""


def check(model: Any) -> None:
    """Refuse what is no graph of layers, and layers that were revived without their class.

    Raises:
        Refusal: With the layer's name.
    """
    from tf_keras.src.saving.legacy.saved_model.load import RevivedInputLayer, RevivedLayer, RevivedNetwork

    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (RevivedLayer, RevivedInputLayer, RevivedNetwork)):
            raise Refusal(
                f"layer {layer.name!r} is of the class {type(layer).__name__!r}, which tf_keras does not know; pass "
                "its class in custom_objects"
            )
    if not is_graph(model):
        raise Refusal(
            f"the model {model.name!r} is of the class {type(model).__name__!r}, whose call is code; only models made "
            "of a graph of layers (Functional, or Sequential with a known input shape) can be converted. Under "
            "tf_keras, make one with keras.Model(inputs, model.call(inputs)) and save that"
        )


def wrappers() -> dict[str, Any]:
    """Give the classes by which TFMOT's wrappers are saved."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts import (
        cluster_preserve,
        prune_preserve,
    )

    scopes = (
        tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
    )
    found: dict[str, Any] = {}
    for scope in scopes:
        found.update(scope.custom_objects)
    for registry in (
        prune_preserve.prune_preserve_quantize_registry,
        cluster_preserve.cluster_preserve_quantize_registry,
    ):
        found.update({name: value for name, value in vars(registry).items() if isinstance(value, type)})
    return found


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
