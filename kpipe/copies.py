"""Copy a model: same architecture, same weights, nothing shared."""

from typing import Any

import keras

from kpipe.errors import KpipeError


def copy_model(model: keras.Model) -> keras.Model:
    """Copy a model, so that changing one leaves the other as it is.

    Names of layers and inputs are kept. The copy is not compiled.

    Args:
        model: A built Keras model; one of a class of its own needs `get_config`.

    Returns:
        A new model of the same class with the same weights.

    Raises:
        KpipeError: When it is no built Keras model, or cannot be made from its config.

    Example:
        >>> net = keras.Sequential([keras.Input((2,), name="point"), keras.layers.Dense(1)])
        >>> twin = copy_model(net)
        >>> twin.inputs[0].name, bool((twin.get_weights()[0] == net.get_weights()[0]).all()), twin is net
        ('point', True, False)
    """
    check_built(model)
    try:
        twin = remake(model, model.get_config())
        take_weights(twin, model)
    except (NotImplementedError, TypeError, ValueError) as error:
        said = " ".join(str(error).partition("Example:")[0].split())  # Keras adds a class for example, over many lines
        raise KpipeError(
            f"The model {model.name!r} ({type(model).__name__}) cannot be copied: {said} "
            "Give its class a get_config, or make a Functional model of it: keras.Model(inputs, model.call(inputs))."
        ) from error
    for layer, original in zip(_layers(twin), _layers(model), strict=True):
        layer.trainable = original.trainable
    return twin


def take_weights(twin: keras.Layer, layer: keras.Layer) -> None:
    """Give a layer or model the weights of another, and let layers work out what follows from them.

    An adapted `Normalization` computes with constants that it made of its weights; to set these does not change those.

    Example:
        >>> layer, twin = keras.layers.Normalization(), keras.layers.Normalization()
        >>> layer.adapt(keras.ops.convert_to_numpy([[1.0], [5.0]]))
        >>> twin.build((None, 1))
        >>> take_weights(twin, layer)
        >>> twin(keras.ops.array([[5.0]])).numpy().tolist()
        [[1.0]]
    """
    for new, old in zip(twin.weights, layer.weights, strict=True):
        new.assign(old)
    for inside in _layers(twin):
        finish = getattr(inside, "finalize_state", None)
        if callable(finish):
            finish()


def remake(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Make a model of the same class from a config, and build it; its weights are new.

    The classes of its layers are there in person, so they need not be registered with Keras.

    Example:
        >>> class Twice(keras.layers.Layer):
        ...     "Double."
        ...     def call(self, x):
        ...         return 2 * x
        >>> net = keras.Sequential([keras.Input((2,)), Twice()])
        >>> type(remake(net, net.get_config()).layers[0]) is Twice
        True
    """
    with keras.saving.custom_object_scope(own_classes(model)):
        twin = type(model).from_config(config)
        if not twin.built:
            twin.build_from_config(model.get_build_config() or {})
    return twin


def own_classes(model: keras.Model) -> dict[str, type]:
    """Give the classes of a model's layers that are not of Keras, by name, for `custom_object_scope`.

    Example:
        >>> own_classes(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        {}
    """
    kinds = [type(layer) for layer in _layers(model)]
    return {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("keras.")}


def check_built(model: keras.Model) -> None:
    """Refuse what is not a Keras model, and a model that has no weights yet.

    Raises:
        KpipeError: When it is one of these.

    Example:
        >>> check_built(keras.Sequential([keras.layers.Dense(1)], name="net"))
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The model 'net' is not built: it has no weights yet. Call it on data or build() it.
    """
    if not isinstance(model, keras.Model):
        raise KpipeError(f"Received {type(model).__name__}; expected a Keras 3 model (keras.Model).")
    if not model.built and not model.weights:
        raise KpipeError(
            f"The model {model.name!r} is not built: it has no weights yet. Call it on data or build() it."
        )


def _layers(model: keras.Layer) -> list[keras.Layer]:
    """List all layers from the outside in, for a model's `trainable` sets that of what it holds."""
    return list(model._flatten_layers())
