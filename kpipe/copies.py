"""Copy a model: same architecture, same weights, nothing shared."""

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
        twin = type(model).from_config(model.get_config())
        if not twin.built:
            twin.build_from_config(model.get_build_config() or {})
        twin.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise KpipeError(
            f"The model {model.name!r} ({type(model).__name__}) cannot be copied: {error} Give its class a get_config, "
            "or make a Functional model of it: keras.Model(inputs, model.call(inputs))."
        ) from error
    for layer, original in zip(_layers(twin), _layers(model), strict=True):
        layer.trainable = original.trainable
    return twin


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


def _layers(model: keras.Model) -> list[keras.Layer]:
    """List all layers from the outside in, for a model's `trainable` sets that of what it holds."""
    return list(model._flatten_layers())
