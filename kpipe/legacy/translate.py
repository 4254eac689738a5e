"""A layer's configuration in Keras 2, written as Keras 3 takes it.

Most configurations pass unchanged. `TRANSLATIONS` has an entry for each layer whose configuration differs; keys that
Keras 3 does not take are dropped where `HARMLESS` says that they change nothing, else the layer is refused.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.legacy.activations import keras2_hard_sigmoid
from kpipe.registry import Registry, nearest

Config = dict[str, Any]
TRANSLATIONS: Registry[Callable[[Config], tuple[str, Config]]] = Registry("Keras 2 layer")
"""Class in Keras 2 -> from its configuration to the class and the configuration in Keras 3."""
ANY = object()
HARMLESS: Mapping[str, Any] = {
    "adjustment": None,
    "batch_input_shape": ANY,
    "dynamic": False,
    "fused": ANY,
    "groups": 1,
    "implementation": ANY,
    "input_length": ANY,
    "key_shape": ANY,
    "noise_shape": None,
    "num_constants": None,
    "query_shape": ANY,
    "renorm": False,
    "rng_type": ANY,
    "softmax_robust_masking": False,
    "time_major": False,
    "trainable": ANY,
    "value_shape": ANY,
    "virtual_batch_size": None,
    "vocabulary_size": ANY,
}
"""Keys that Keras 3 does not take -> the value with which nothing is lost when they go; ANY for all."""
PARTS = {
    "keras.constraints": keras.constraints,
    "keras.initializers": keras.initializers,
    "keras.regularizers": keras.regularizers,
}
"""Where Keras keeps what layers are configured with."""


def layer_class(name: str, layer: str) -> type[keras.Layer]:
    """Find Keras 3's layer class of a name.

    Raises:
        KpipeError: When there is none.
    """
    found = getattr(keras.layers, name, None)
    if isinstance(found, type) and issubclass(found, keras.Layer):
        return found
    raise KpipeError(
        f"Layer {layer!r} is of the class {name!r}, which Keras 3 does not have.{nearest(name, dir(keras.layers))} "
        f"Write one that does the same and pass it: custom_objects={{{name!r}: YourClass}}."
    )


def translate(kind: str, config: Config) -> tuple[str, Config]:
    """Translate the configuration of a layer of Keras itself.

    Args:
        kind: The class in Keras 2.
        config: Its configuration there.

    Returns:
        The class in Keras 3 and the configuration there.

    Raises:
        KpipeError: When a key that Keras 3 does not take would change the result, with the layer's name.

    Example:
        >>> kind, config = translate("LeakyReLU", {"name": "leaky", "alpha": 0.5, "dtype": "float32"})
        >>> kind, config["negative_slope"]
        ('LeakyReLU', 0.5)
    """
    name = str(config.get("name", kind))
    if kind in TRANSLATIONS:
        kind, config = TRANSLATIONS[kind](dict(config))
    taken = parameters(layer_class(kind, name))
    kept = {key: translated_value(key, value) for key, value in config.items() if _kept(name, key, value, taken)}
    return kind, {**kept, "name": plain_name(name)}


def plain_name(name: str) -> str:
    """Write a name without the slash that Keras 3 does not take.

    Example:
        >>> plain_name("conv1/bn")
        'conv1_bn'
    """
    return name.replace("/", "_")


def _kept(layer: str, key: str, value: Any, taken: set[str]) -> bool:
    if key in taken:
        return True
    if key in HARMLESS and (HARMLESS[key] is ANY or value == HARMLESS[key]):
        return False
    expected = f"; only {HARMLESS[key]!r} can be left out" if key in HARMLESS else ""
    raise KpipeError(f"Layer {layer!r} is configured with {key}={value!r}, which Keras 3 does not take{expected}.")


def parameters(kind: type) -> set[str]:
    """Name what a class takes: the parameters of its `__init__`, and of its parents' where it passes the rest on.

    Example:
        >>> sorted(parameters(keras.layers.Flatten) & {"data_format", "name", "groups"})
        ['data_format', 'name']
    """
    found: set[str] = set()
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        given = inspect.signature(parent.__init__).parameters.values()
        found |= {one.name for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if all(one.kind != one.VAR_KEYWORD for one in given):
            break
    return found - {"self"}


def translated_value(key: str, value: Any) -> Any:
    """Translate one value of a configuration, and what is in it.

    Example:
        >>> translated_value("dtype", {"class_name": "Policy", "config": {"name": "mixed_float16"}})
        'mixed_float16'
        >>> translated_value("activation", "relu")
        'relu'
    """
    if isinstance(value, str) and key.endswith("activation"):
        return _activation(value)
    if isinstance(value, list):
        return [translated_value("", one) for one in value]
    if not isinstance(value, dict):
        return value
    if not {"class_name", "config"} <= value.keys():
        return {inner: translated_value(inner, one) for inner, one in value.items()}
    return _translated_object(value)


def _activation(name: str) -> Any:
    if name == "hard_sigmoid":
        return keras.saving.serialize_keras_object(keras2_hard_sigmoid)
    if callable(getattr(keras.activations, name, None)):
        return name
    return {"module": None, "class_name": "function", "config": name, "registered_name": name}


def _translated_object(value: Config) -> Any:
    kind, module, config = value["class_name"], value.get("module"), value["config"]
    if kind in ("Policy", "PolicyV1"):
        return config["name"]
    if kind == "function" or not isinstance(config, dict):
        return value
    if module in PARTS and not isinstance(getattr(PARTS[module], kind, None), type):
        raise KpipeError(
            f"{module}.{kind} is not in Keras 3; pass an equal one: custom_objects={{{kind!r}: YourClass}}."
        )
    is_layer = module in (None, "keras.layers") and (kind in TRANSLATIONS or kind in dir(keras.layers))
    if is_layer and not value.get("registered_name"):
        kind, config = translate(kind, config)
        return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
    return {**value, "config": {inner: translated_value(inner, one) for inner, one in config.items()}}


@TRANSLATIONS("LeakyReLU")
def _leaky_relu(config: Config) -> tuple[str, Config]:
    return "LeakyReLU", {"negative_slope": config.pop("alpha"), **config}


@TRANSLATIONS("ThresholdedReLU")
def _thresholded_relu(config: Config) -> tuple[str, Config]:
    """Both are x where x > theta, else 0."""
    return "ReLU", {"threshold": config.pop("theta"), **config}


@TRANSLATIONS("BatchNormalization")
def _batch_normalization(config: Config) -> tuple[str, Config]:
    axis = config["axis"]
    if isinstance(axis, list) and len(axis) != 1:
        raise KpipeError(f"Layer {config['name']!r} normalizes over the axes {axis}; Keras 3 knows one axis.")
    return "BatchNormalization", {**config, "axis": axis[0] if isinstance(axis, list) else axis}


@TRANSLATIONS("SyncBatchNormalization")
def _sync_batch_normalization(config: Config) -> tuple[str, Config]:
    return _batch_normalization({**config, "synchronized": True})


@TRANSLATIONS("SeparableConv1D")
def _separable_1d(config: Config) -> tuple[str, Config]:
    return "SeparableConv1D", _without_kernel(config)


@TRANSLATIONS("SeparableConv2D")
def _separable_2d(config: Config) -> tuple[str, Config]:
    return "SeparableConv2D", _without_kernel(config)


def _without_kernel(config: Config) -> Config:
    """Drop what Keras 2 wrote of a kernel that the layer does not have; the two that it has are told apart."""
    return {key: value for key, value in config.items() if not key.startswith("kernel_") or key == "kernel_size"}
