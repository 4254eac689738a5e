"""Models made anew in another precision: the same weights, computed with in full, or in double."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
from keras.src.models.functional import Functional

from kpipe.copies.checks import check_built
from kpipe.copies.copy import make_like, naming
from kpipe.copies.state import bare, own_weights, take_weights
from kpipe.errors import KpipeError

FLOAT = "float32"
DOUBLE = "float64"
HALVES = ("float16", "bfloat16")
"""Types of half the size."""

HALF_POLICIES = (*HALVES, *(f"mixed_{half}" for half in HALVES))
"""Names of the policies that compute in them."""


def to_float32(model: keras.Model) -> keras.Model:
    """Copy a model of half precision so that it computes in float32.

    Every layer of the policies mixed_float16, mixed_bfloat16, float16 or bfloat16 gets float32, those inside models,
    wrappers and layers too, and those named in a `DTypePolicyMap`; so do inputs, casts and constants of the graph.
    Other layers keep their types. Weights of float32 are equal bit for bit, those of half precision exact in float32.

    Args:
        model: A built Keras model, with half precision or without; one of a class of its own needs `get_config`. It is
            left untouched.

    Returns:
        A new model of the same class, with the same weights and the same parts of it frozen, not compiled.

    Raises:
        KpipeError: When it is no built Keras model, cannot be made from its config, or a layer takes half precision
            whatever its config says.

    Example:
        >>> half = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")])
        >>> full = to_float32(half)
        >>> half.layers[0].compute_dtype, full.layers[0].compute_dtype
        ('float16', 'float32')
        >>> bool((half.get_weights()[0] == full.get_weights()[0]).all())
        True
    """
    check_built(model)
    return _retyped(model, FLOAT, HALF_POLICIES)


def to_float64(model: keras.Model) -> keras.Model:
    """Copy a model so that it computes in float64: 53 bits of each number are exact instead of 24.

    Args:
        model: As of `to_float32`; of any precision.

    Returns:
        A new model of the same class, with the same weights, not compiled.

    Raises:
        KpipeError: As of `to_float32`.

    Example:
        >>> double = to_float64(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> double.layers[0].compute_dtype, double(keras.ops.ones((1, 4))).dtype.name
        ('float64', 'float64')
    """
    check_built(model)
    return _retyped(model, DOUBLE, (FLOAT, *HALF_POLICIES))


def _retyped(model: keras.Model, wanted: str, others: Collection[str]) -> keras.Model:
    """Copy a model with a type in the place of others."""
    with _policy(wanted):
        twin = make_like(model, lambda config: _retype(config, wanted, others))
        _check_full(twin, wanted)
        with naming(model):
            take_weights(twin, model)
            for new, old in zip(_states(twin), _states(model), strict=True):
                new.assign(old)
    return twin


def half_policies(model: keras.Model) -> tuple[str, ...]:
    """Name the policies of half precision that layers of a model compute by, in order.

    Example:
        >>> half_policies(keras.Sequential([keras.layers.Dense(2, dtype="mixed_float16"), keras.layers.ReLU()]))
        ('mixed_float16',)
    """
    return tuple(sorted({_half_of(layer) for layer in bare(model)} - {""}))


def in_float32(model: Any, what: str, told: bool = True, stacklevel: int = 3) -> Any:
    """Give a model of half precision in float32, and warn of it; any other as it is.

    Args:
        model: What may be such a model.
        what: What is computed in float32, to begin the warning: "The file".
        told: Whether to warn.
        stacklevel: As of `warnings.warn`.

    Returns:
        A copy that computes in float32, or what was given.

    Raises:
        KpipeError: When the copy cannot be made; it says why.
    """
    policies = half_policies(model) if isinstance(model, keras.Model) else ()
    if not policies:
        return model
    names = " and ".join(policies)
    try:
        full = to_float32(model)
    except KpipeError as error:
        start, rest = what[:1].lower(), what[1:]
        raise KpipeError(f"{model.name!r} computes in {names}, and {start}{rest} in float32. {error}") from error
    if told:
        warnings.warn(
            f"{what} computes in float32, and {model.name!r} in {names}: it is made of, and compared with, a copy of "
            "the model in float32 with the same weights, as kpipe.to_float32 gives it.",
            UserWarning,
            stacklevel=stacklevel,
        )
    return full


def float32_policy() -> AbstractContextManager[None]:
    """Let layers that are made within it, and told no type, compute in float32, whatever policy is set.

    Example:
        >>> with float32_policy():
        ...     keras.config.dtype_policy().name
        'float32'
    """
    return _policy(FLOAT)


@contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _half_of(layer: Any) -> str:
    """Name the policy of half precision that a layer computes by; nothing where it has none.

    What policy a graph of layers was made under plays no part, nor does that of its inputs beside their own type.
    """
    if isinstance(layer, Functional | keras.Sequential):
        return ""
    if isinstance(layer, keras.layers.InputLayer):
        return layer.dtype if layer.dtype in HALVES else ""
    if layer.compute_dtype in HALVES:
        return layer.compute_dtype if layer.variable_dtype in HALVES else f"mixed_{layer.compute_dtype}"
    return next((variable.dtype for variable in own_weights(layer) if variable.dtype in HALVES), "")


def _retype(config: Any, wanted: str, others: Collection[str]) -> Any:
    """Write a configuration with a type in the place of others and their policies, wherever a type stands in it.

    Example:
        >>> policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
        >>> config = {"name": "float16", "dtype": policy, "cells": [{"dtype": "bfloat16"}, {"dtype": "int32"}]}
        >>> _retype(config, "float32", HALF_POLICIES)
        {'name': 'float16', 'dtype': {'class_name': 'DTypePolicy', 'config': {'name': 'float32'}}, 'cells': [{'dtype':
        'float32'}, {'dtype': 'int32'}]}
    """
    if isinstance(config, list | tuple):
        return type(config)(_retype(item, wanted, others) for item in config)
    if isinstance(config, keras.DTypePolicy):
        return keras.DTypePolicy(wanted) if config.name in others else config
    if not isinstance(config, dict):
        return config
    kind, inside = config.get("class_name"), config.get("config")
    named = {"DTypePolicy": "name", "FloatDTypePolicy": "name", "DTypePolicyMap": "default_policy"}.get(str(kind))
    if named is not None and isinstance(inside, dict):
        told = inside.get(named)  # None: the policy that is set when it is read
        name = wanted if told is None or told in others else _retype(told, wanted, others)
        return {**config, "config": {**_retype(inside, wanted, others), named: name}}
    return {key: _entry(key, value, wanted, others) for key, value in config.items()}


def _entry(key: Any, value: Any, wanted: str, others: Collection[str]) -> Any:
    """Write an entry of a configuration: a name of a type or policy, or what may hold some."""
    if isinstance(value, str):
        return wanted if "dtype" in str(key) and value in others else value
    return _retype(value, wanted, others)


def _check_full(twin: keras.Model, wanted: str) -> None:
    """Refuse a copy in which something still computes in half precision."""
    for layer in bare(twin):
        if half := _half_of(layer):
            raise KpipeError(
                f"The layer {layer.name!r} ({type(layer).__name__}) of {twin.name!r} cannot be made to compute in "
                f"{wanted}: it takes {half} whatever its configuration says. Let its class, and that of the layer it "
                "is in, take the dtype as an argument and give it in get_config."
            )
    for tensor in getattr(twin, "outputs", None) or ():
        if tensor.dtype in HALVES:
            raise KpipeError(
                f"The output {tensor.name!r} of {twin.name!r} cannot be made {wanted}: a layer or function casts it to "
                f"{tensor.dtype}. Leave the cast out."
            )


def _states(model: keras.Model) -> list[keras.Variable]:
    """List the variables that are no weights: the states of random numbers."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
