"""Copy a model or a layer."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import layers as L
from keras.src.saving.serialization_lib import ObjectSharingScope

from kpipe.copies.checks import check_built
from kpipe.copies.reference import by_reference
from kpipe.copies.state import bare, freeze_like, own_weights, pairs, take_weights
from kpipe.errors import KpipeError


def copy_model(model: keras.Model) -> keras.Model:
    """Copy a model, so that changing one leaves the other as it is.

    Names of layers and inputs are kept. The copy is not compiled, nor are models inside it. Functions, such as that of
    a `Lambda`, are the very same.

    Args:
        model: A built Keras model; one of a class of its own needs `get_config`.

    Returns:
        A new model of the same class with the same weights, and the same parts of it frozen.

    Raises:
        KpipeError: When it is no built Keras model, or cannot be made from its config.

    Example:
        >>> net = keras.Sequential([keras.Input((2,), name="point"), keras.layers.Dense(1)])
        >>> twin = copy_model(net)
        >>> twin.inputs[0].name, bool((twin.get_weights()[0] == net.get_weights()[0]).all()), twin is net
        ('point', True, False)
    """
    twin = make_like(model)
    with naming(model):
        take_weights(twin, model)
    return twin


def make_like(
    model: keras.Model, edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
) -> keras.Model:
    """Make a model of the same class and architecture, with the same parts of it frozen; its weights are new.

    Args:
        model: A built Keras model; one of a class of its own needs `get_config`.
        edit: Config -> the config to make the model from.

    Raises:
        KpipeError: When it is no built Keras model, or cannot be made from its config.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="old")])
        >>> make_like(net, lambda config: {**config, "name": "twin"}).name
        'twin'
    """
    check_built(model)
    with naming(model), by_reference(model), ObjectSharingScope():
        twin = remake(model, edit(model.get_config()))
        for new, old in pairs(twin, model):
            _build_inside(new, old, old)
        _check_parted(twin, model)
        freeze_like(twin, model)
    return twin


def copy_layer(
    layer: keras.Layer, called: keras.Layer | None = None, without: type[L.Wrapper] | None = None
) -> keras.Layer:
    """Make a layer of the same class and configuration with the same weights, built if the given one is.

    Args:
        layer: Any layer, built or not.
        called: The layer that stands in a graph for it, such as a wrapper, where it does not stand there itself.
        without: A class of wrappers, registered with Keras, that are left out: the layers in them take their places.

    Raises:
        KpipeError: When it cannot be made from its configuration.

    Example:
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> twin = copy_layer(layer)
        >>> bool((twin.kernel.numpy() == layer.kernel.numpy()).all()), twin.kernel is layer.kernel
        (True, False)
    """
    called = called or layer
    if without is not None and isinstance(layer, without):
        return copy_layer(layer.layer, called, without)
    with naming(layer), by_reference(layer), _lazily():
        config = layer.get_config()
        twin: Any = type(layer).from_config(config if without is None else _unwrapped(config, _registered(without)))
        if without is not None and any(isinstance(one, without) for one in twin._flatten_layers()):
            raise KpipeError(
                f"The layer {layer.name!r} ({type(layer).__name__}) makes a {without.__name__} in its own __init__, so "
                "that every copy has it again: let it take the layer that it wraps as an argument."
            )
        _build(twin, layer, called, without)
        _check_parted(twin, layer)
        take_weights(twin, layer, without)
        freeze_like(twin, layer, without)
    return twin


def copy_operation(operation: keras.Operation, name: str) -> keras.Operation:
    """Copy an operation that is no layer, with another name: it stands in no graph yet.

    Example:
        >>> x = keras.Input((2,))
        >>> add = (x + 1.0)._keras_history.operation
        >>> twin = copy_operation(add, "plus")
        >>> twin.name, len(twin._inbound_nodes), len(add._inbound_nodes)
        ('plus', 0, 1)
    """
    twin = copy.copy(operation)
    twin.name, twin._inbound_nodes, twin._outbound_nodes = name, [], []
    return twin


def remake(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Make a model of the same class from a config, and build it; its weights are new.

    The functions and classes that its layers hold are there in person, so they need not be registered with Keras. Take
    the config within `by_reference(model)` too, lest it hold the code of lambdas.

    Example:
        >>> class Twice(keras.layers.Layer):
        ...     "Double."
        ...     def call(self, x):
        ...         return 2 * x
        >>> net = keras.Sequential([keras.Input((2,)), Twice()])
        >>> type(remake(net, net.get_config()).layers[0]) is Twice
        True
    """
    with by_reference(model), _lazily():
        twin: Any = type(model).from_config(config)
        if not twin.built:
            twin.build_from_config(model.get_build_config() or {})
    return twin


def _registered(kind: type) -> str:
    return keras.saving.get_registered_name(kind)


def _unwrapped(config: Any, name: str) -> Any:
    """Put in the place of each wrapper in a configuration what it holds.

    Example:
        >>> _unwrapped({"layer": {"registered_name": "kpipe>W", "config": {"layer": {"units": 2}}}}, "kpipe>W")
        {'layer': {'units': 2}}
    """
    if isinstance(config, list | tuple):
        return type(config)(_unwrapped(item, name) for item in config)
    if not isinstance(config, dict):
        return config
    if config.get("registered_name") == name:
        return _unwrapped(config["config"]["layer"], name)
    return {key: _unwrapped(item, name) for key, item in config.items()}


def _build(twin: keras.Layer, layer: keras.Layer, called: keras.Layer, without: type[L.Wrapper] | None) -> None:
    """Build a layer as another is built."""
    if layer.built and not twin.built:
        twin.build_from_config(layer.get_build_config() or {})
        twin.built = True
    _build_inside(twin, layer, called, without)


def _build_inside(
    twin: keras.Layer, layer: keras.Layer, called: keras.Layer, without: type[L.Wrapper] | None = None
) -> None:
    """Build what is inside a layer by a call where Keras has left that to a call, though it calls the layer built."""
    has, wanted = (sum(len(own_weights(one)) for one in ones) for ones in (bare(twin), bare(layer, without)))
    if has < wanted and called._inbound_nodes:
        arguments = called._inbound_nodes[0].arguments
        with twin._open_name_scope():
            keras.Operation.compute_output_spec(twin, *arguments.args, **arguments.kwargs)


def _check_parted(twin: keras.Layer, layer: keras.Layer) -> None:
    """Refuse a copy that holds layers or weights of what it was made from."""
    old = {id(one) for one in (*layer._flatten_layers(), *layer.weights)}
    if shared := [one.name for one in (*twin._flatten_layers(), *twin.weights) if id(one) in old]:
        raise ValueError(
            f"Its get_config gives {', '.join(shared)} in person: use keras.saving.serialize_keras_object there, and "
            "deserialize_keras_object in from_config."
        )


@contextmanager
def naming(layer: keras.Layer) -> Iterator[None]:
    """Say of which layer or model it is that Keras cannot make it anew.

    Example:
        >>> with naming(keras.layers.Dense(2, name="logits")):
        ...     raise TypeError("units is missing.")
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The layer 'logits' (Dense) cannot be copied: units is missing. It is made anew from its
        configuration: its class needs a get_config that gives all the arguments of its __init__.
    """
    try:
        yield
    except KpipeError:
        raise
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        model = isinstance(layer, keras.Model)
        said = " ".join(str(error).partition("Example:")[0].split())  # Keras adds a class for example, over many lines
        way = "Or make a Functional model of it: keras.Model(inputs, model.call(inputs))." if model else ""
        raise KpipeError(
            f"The {'model' if model else 'layer'} {layer.name!r} ({type(layer).__name__}) cannot be copied: {said} It "
            "is made anew from its configuration: its class needs a get_config that gives all the arguments of its "
            f"__init__. {way}".rstrip()
        ) from error


@contextmanager
def _lazily() -> Iterator[None]:
    """Let layers be built that build what is inside them when they are called, which comes after."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`build\(\)` was called on layer", UserWarning)
        yield
