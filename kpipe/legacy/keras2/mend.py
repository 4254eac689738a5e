"""Mend tf_keras and TFMOT, in this process alone, where they cannot load what they have saved, or should not."""

from collections.abc import Callable, Mapping
from typing import Any

from .refusal import Refusal

_UNMENDED: dict[str, Callable[..., Any]] = {}
"""What was there before."""


def mend(file: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Do all that a file needs.

    Args:
        file: The job.
        objects: What the user gave, by its name in the file.
    """
    guard_lambda(objects, file["safe_mode"])
    mend_functions()
    if file["tfmot"]:
        mend_wrapped_attention()
    if file["tfmot"] and file["kind"] == "keras":
        mend_quantize_wrappers()


def guard_lambda(objects: Mapping[str, Any], safe_mode: bool) -> None:
    """Let no Lambda layer run code out of a file, whatever the format, unless that has been asked for.

    Args:
        objects: Functions by the name of the layer that they are for.
        safe_mode: Whether code is refused.
    """
    from tf_keras.layers import Lambda

    unguarded = _UNMENDED.setdefault("lambda", Lambda.from_config.__func__)

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


def mend_functions() -> None:
    """Let an `.h5` file have functions of the user's own as activations: tf_keras 2.21 misreads how it writes them."""
    from tf_keras.src.saving.legacy.saved_model import json_utils

    unmended = _UNMENDED.setdefault("decode", json_utils.decode)
    json_utils.decode = lambda text: by_name(unmended(text))


def by_name(value: Any) -> Any:
    """Write functions in a configuration as their names alone.

    Example:
        >>> by_name({"activation": {"class_name": "function", "config": "squash"}, "units": 2})
        {'activation': 'squash', 'units': 2}
    """
    if isinstance(value, dict):
        if value.get("class_name") == "function" and isinstance(value.get("config"), str):
            return value["config"]
        return {name: by_name(one) for name, one in value.items()}
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
