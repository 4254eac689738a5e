"""Make a Keras 3 layer of a Keras 2 one, and give it its weights."""

import builtins
import dis
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.legacy.keras2.refusal import shortened
from kpipe.legacy.translate import layer_class, plain_name, translate, translated_value

STATE = "rnn_state"
"""The name under which Keras 3 keeps states of stateful layers among the weights; Keras 2 does not."""


def make_layer(entry: Mapping[str, Any], config: dict[str, Any], classes: Mapping[str, type]) -> keras.Layer:
    """Make a layer, without weights.

    Args:
        entry: What is known of it: name, class, registered name.
        config: Its configuration in Keras 2.
        classes: Classes to take instead of Keras 3's own, by their name in Keras 2.

    Returns:
        The layer of Keras 3.

    Raises:
        KpipeError: When there is no such class, or it does not take the configuration.
    """
    given = _given_class(entry)
    try:
        if given is not None:
            config.pop("batch_input_shape", None)
            return given.from_config({key: translated_value(key, value) for key, value in config.items()})
        if entry["own"]:
            raise KpipeError(
                f"Layer {entry['name']!r} is of the class {entry['class']!r}: pass the same written for Keras 3, "
                f"custom_objects={{{entry['class']!r}: YourClass}}."
            )
        if entry["class"] == "Lambda":
            return _lambda_layer(entry, config)
        kind, config = translate(entry["class"], config)
        made: Any = classes.get(entry["class"]) or layer_class(kind, entry["name"])
        if isinstance(config.get("layer"), keras.Model):  # a wrapper round a model: the model has been made already
            return made(**config)
        return made.from_config(config)
    except KpipeError:
        raise
    except Exception as error:  # Keras and the user's classes raise many kinds for what they do not take
        raise KpipeError(
            f"Layer {entry['name']!r} ({entry['class']}) cannot be made in Keras 3: {shortened(error)}."
        ) from error


def _lambda_layer(entry: Mapping[str, Any], config: dict[str, Any]) -> keras.Layer:
    """Make a Lambda of the function given for the layer's name, or of the code in the file.

    tf_keras has read such code only if that was asked for, and no mask. The shape of the output is left to Keras, which
    finds it by calling the function.
    """
    plain = {key: translated_value(key, config[key]) for key in ("arguments", "dtype")}
    plain["name"] = plain_name(entry["name"])
    function = keras.saving.get_registered_object(entry["name"])
    if function is None and isinstance(config["function"], str):
        function = keras.saving.get_registered_object(config["function"])
    if function is not None:
        return keras.layers.Lambda(function, **plain)
    advice = f"pass the function: custom_objects={{{entry['name']!r}: function}}."
    if isinstance(config["function"], str):
        raise KpipeError(f"Layer {entry['name']!r} is a Lambda of {config['function']!r}, which is not known; {advice}")
    code, defaults, closure = config["function"]
    stored = {"class_name": "__lambda__", "config": {"code": code, "defaults": defaults, "closure": closure}}
    layer: Any = keras.layers.Lambda.from_config({**plain, "function": stored}, safe_mode=False)
    missing = _names_in(layer.function.__code__) - vars(builtins).keys() - layer.function.__globals__.keys()
    if missing:
        raise KpipeError(
            f"Layer {entry['name']!r} is a Lambda, whose code calls for {', '.join(sorted(missing))} of the module it "
            f"was written in, which no file keeps; {advice}"
        )
    return layer


def _names_in(code: CodeType) -> set[str]:
    """Name the globals that code uses, with those of the functions in it."""
    found = {str(one.argval) for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    return found.union(*(_names_in(one) for one in code.co_consts if isinstance(one, CodeType)))


def _given_class(entry: Mapping[str, Any]) -> Any:
    for name in (entry["registered"], entry["class"]):
        found = keras.saving.get_registered_object(name)
        if found is not None:
            return found
    return None


def variables(layer: Any, apart: set[int]) -> Iterator[keras.Variable]:
    """Give a layer's own weights, then those of the layers in it, without the layers that are set apart."""
    yield from (one for one in layer._trainable_variables if one.name != STATE)
    yield from (one for one in layer._non_trainable_variables if one.name != STATE)
    for inner in layer._layers:
        if id(inner) not in apart:
            yield from variables(inner, apart)


def order_of(names: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """Find each name among others, by its last part or its last two; None where that does not tell.

    Example:
        >>> order_of(["bn/gamma", "bn/beta"], ["norm/beta", "norm/gamma"])
        [1, 0]
        >>> order_of(["mha/key/bias", "mha/query/bias"], ["mha/query/bias", "mha/key/bias"])
        [1, 0]
        >>> order_of(["conv/kernel"], ["conv/depthwise_kernel"]) is None
        True
    """
    for parts in (1, 2):
        ends, other_ends = ([tuple(name.split("/")[-parts:]) for name in some] for some in (names, others))
        if len(set(ends)) == len(ends) == len(other_ends) and set(ends) == set(other_ends):
            return [other_ends.index(end) for end in ends]
    return None


def set_weights(
    layer: keras.Layer, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], apart: set[int]
) -> None:
    """Give a layer its weights: by their names where these tell them apart and are the same in both, else in order.

    Args:
        layer: The layer, built.
        entry: What is known of it; `weights` are pairs of a name and a key of `arrays`.
        arrays: The values.
        apart: Ids of nested models, whose layers get their own.

    Raises:
        KpipeError: When number or shapes of the weights differ.
    """
    own = list({id(one): one for one in variables(layer, apart)}.values())
    given = [(name, arrays[key]) for name, key in entry["weights"]]
    order = order_of([one.path for one in own], [name for name, _ in given])
    given = given if order is None else [given[index] for index in order]
    shapes = [(one.path, tuple(one.shape)) for one in own]
    stored = [(name, array.shape) for name, array in given]
    if [shape for _, shape in shapes] != [shape for _, shape in stored]:
        raise KpipeError(
            f"Layer {entry['name']!r} ({entry['class']}) has the weights {shapes} in Keras 3, {stored} in Keras 2."
        )
    for variable, (_, array) in zip(own, given, strict=True):
        variable.assign(array)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # it computes with values derived from its weights
