"""Mend tf_keras and TFMOT, in this process alone, where they cannot load what they have saved, or should not."""

from collections.abc import Callable, Mapping
from typing import Any

from .refusal import Refusal

KNOWN = frozenset({"builtins", "keras", "tensorflow", "tensorflow_model_optimization", "tf_keras"})
"""The packages from which what a file names is imported; all else comes from the user."""
_HARM = "to run code out of a file can do harm"
_UNMENDED: dict[str, Callable[..., Any]] = {}
"""What was there before."""


def mend(file: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Do all that is to be done before a file is loaded.

    Args:
        file: The job.
        objects: What the user gave, by its name in the file.
    """
    guard_code(file["safe_mode"])
    guard_imports()
    mend_lambda(objects, file["safe_mode"])
    mend_names()
    if file["tfmot"]:
        mend_wrapped_attention()
    if file["tfmot"] and file["kind"] == "keras":
        mend_quantize_wrappers()


def guard_code(safe_mode: bool) -> None:
    """Let no code out of a file run, wherever tf_keras would unpack it, unless that has been asked for."""
    from tf_keras.src.utils import generic_utils

    unguarded = _UNMENDED.setdefault("code", generic_utils.func_load)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Refusal(f"a function in it is stored as Python code; {_HARM}. Pass safe_mode=False if you trust the file")

    generic_utils.func_load = refuse if safe_mode else unguarded


def guard_imports() -> None:
    """Let a file name classes and functions of Keras and TFMOT alone; no other module is imported for it.

    A layer whose class is not found is said to be unknown; tf_keras would take the name of its class for the layer.
    """
    from tf_keras.src.saving import serialization_lib

    unguarded = _UNMENDED.setdefault("imports", serialization_lib._retrieve_class_or_fn)
    deserialize = _UNMENDED.setdefault("deserialize", serialization_lib.deserialize_keras_object)

    def retrieve(name: str, registered_name: str, module: str | None, **kwargs: Any) -> Any:
        is_known = module is not None and module.partition(".")[0] in KNOWN
        return unguarded(name, registered_name, module if is_known else None, **kwargs)

    def deserialize_or_refuse(config: Any, *args: Any, **kwargs: Any) -> Any:
        found = deserialize(config, *args, **kwargs)
        if isinstance(config, dict) and isinstance(found, str) and found == config.get("class_name"):
            raise TypeError(f"Could not locate class '{found}'.")
        return found

    serialization_lib._retrieve_class_or_fn = retrieve
    serialization_lib.deserialize_keras_object = deserialize_or_refuse


def mend_lambda(objects: Mapping[str, Any], safe_mode: bool) -> None:
    """Let a Lambda layer have the function that the user gave for its name.

    The shape that it is told to give is left out: both versions of Keras find it by calling the function.

    Args:
        objects: Functions by the name of the layer that they are for.
        safe_mode: Whether code is refused.
    """
    from tf_keras.layers import Lambda

    unmended = _UNMENDED.setdefault("lambda", Lambda.from_config.__func__)

    def from_config(kind: Any, config: dict[str, Any], custom_objects: Any = None) -> Any:
        name, function = config["name"], objects.get(config["name"])
        if config.get("mask") is not None:
            raise Refusal(
                f"layer {name!r} is a Lambda with a mask of its own, which Keras 3 cannot save. Write a layer that does"
                " both under tf_keras, save the model anew, and pass the layer's class as custom_objects"
            )
        config = {key: value for key, value in config.items() if not key.startswith(("mask", "output_shape"))}
        config.update(output_shape=None, output_shape_type="raw")
        if function is not None:
            config.update(function=function, function_type="raw")
        elif safe_mode and config.get("function_type") != "function":
            raise Refusal(
                f"layer {name!r} is a Lambda, whose function is stored as Python code; {_HARM}. Pass the function, "
                f"custom_objects={{{name!r}: function}}, or safe_mode=False if you trust the file"
            )
        return unmended(kind, config, custom_objects)

    Lambda.from_config = classmethod(from_config)


def mend_names() -> None:
    """Let an `.h5` file have functions and parts of the user's own: tf_keras 2.21 misreads how it writes them."""
    from tf_keras.src.saving.legacy.saved_model import json_utils

    unmended = _UNMENDED.setdefault("decode", json_utils.decode)
    json_utils.decode = lambda text: by_name(unmended(text))


def by_name(value: Any) -> Any:
    """Write functions in a configuration as their names alone, and classes by the names they are registered under.

    Example:
        >>> by_name({"activation": {"class_name": "function", "config": "squash"}, "units": 2})
        {'activation': 'squash', 'units': 2}
        >>> by_name({"class_name": "Clip", "config": {}, "registered_name": "My>Clip"})["class_name"]
        'My>Clip'
    """
    if isinstance(value, dict):
        if value.get("class_name") == "function" and isinstance(value.get("config"), str):
            return value["config"]
        found = {name: by_name(one) for name, one in value.items()}
        return {**found, "class_name": value["registered_name"]} if ">" in str(value.get("registered_name")) else found
    return [by_name(one) for one in value] if isinstance(value, list) else value


def mend_wrapped_attention() -> None:
    """Let wrapped attention be loaded: TFMOT 0.8.1 asks for kernels that attention makes when it is called."""
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

    for kind in (ClusterWeights, PruneLowMagnitude):
        kind.build = _after_kernels(_UNMENDED.setdefault(kind.__name__, kind.build))


def _after_kernels(build: Callable[..., Any]) -> Callable[..., Any]:
    def build_after_kernels(wrapper: Any, input_shape: Any) -> None:
        for dense, shape in attention_parts(wrapper.layer):
            if not dense.built:
                dense.build(shape)
        build(wrapper, input_shape)

    return build_after_kernels


def attention_parts(layer: Any) -> list[tuple[Any, Any]]:
    """Give the dense layers in a multi-head attention with the shapes of their inputs; none for other layers."""
    from tf_keras.layers import MultiHeadAttention

    if MultiHeadAttention is not type(layer) or not layer._built_from_signature:
        return []
    queries: Any = layer._query_shape
    attended = [*queries[:-1], layer._num_heads, layer._value_dim]
    return [
        (layer._query_dense, layer._query_shape),
        (layer._key_dense, layer._key_shape),
        (layer._value_dense, layer._value_shape),
        (layer._output_dense, attended),
    ]


def mend_quantize_wrappers() -> None:
    """Let quantize wrappers in a `.keras` file find their weights, which TFMOT 0.8.1 does not.

    Such a file builds its layers before they are called. The wrappers then miss the weights of the layers in them,
    which were built when the file was written, and build their ranges a second time when they are called.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
        QuantizeWrapper,
        QuantizeWrapperV2,
    )

    def build_after_its_layer(wrapper: Any, input_shape: Any) -> None:
        if not wrapper.layer.built:
            wrapper.layer.build(input_shape)
            wrapper.layer.built = True
        unmended(wrapper, input_shape)

    unmended = _UNMENDED.setdefault("build", QuantizeWrapperV2.build)
    QuantizeWrapperV2.build = build_after_its_layer
    for kind in (QuantizeLayer, QuantizeWrapper):
        kind.build_from_config = lambda layer, config: None
