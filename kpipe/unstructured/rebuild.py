"""Build a Sequential or Functional model anew, each layer replaced by another."""

from collections.abc import Callable

import keras
from keras.src.models.functional import Functional, functional_like_constructor

from kpipe.copies import take_weights
from kpipe.errors import KpipeError

Replace = Callable[[keras.Layer], keras.Layer]
"""From a layer of the model to what stands in its place in the new one."""


def is_graph(model: keras.Layer) -> bool:
    """Say whether a model is Sequential or Functional, so that its graph can be read.

    Example:
        >>> is_graph(keras.Sequential()), is_graph(keras.layers.Dense(2))
        (True, False)
    """
    return isinstance(model, keras.Sequential | Functional)


def rebuild(model: keras.Model, replace: Replace) -> keras.Model:
    """Make a new model of the same graph from other layers; the one inside another likewise.

    Args:
        model: A Sequential or Functional model, built or not.
        replace: Gives the new layer; called once for each layer, also when it is called in several places.

    Returns:
        A model that is not compiled, with the same names of model and inputs.

    Example:
        >>> net = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)], name="net")
        >>> twin = rebuild(net, copy_layer)
        >>> twin.name, twin.inputs[0].name, twin.layers[0] is net.layers[0]
        ('net', 'x', False)
    """
    made: dict[int, keras.Layer] = {}

    def convert(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):
            return layer  # an operation such as an addition holds nothing
        if id(layer) not in made:
            made[id(layer)] = _rebuilt(layer, convert) if is_graph(layer) else replace(layer)
        return made[id(layer)]

    return _rebuilt(model, convert)


def _rebuilt(model: keras.Model, convert: Replace) -> keras.Model:
    # As keras.models.clone_model does, which would compile the new model.
    if isinstance(model, keras.Sequential):
        first = [_input_like(layer) for layer in model._layers[:1] if isinstance(layer, keras.layers.InputLayer)]
        twin = keras.Sequential([*first, *(convert(layer) for layer in model.layers)], name=model.name)
    else:
        made = {id(tensor): _input_like(tensor._keras_history[0]).output for tensor in model.inputs}
        inputs = keras.tree.map_structure(lambda tensor: made[id(tensor)], model._inputs_struct)
        outputs = model._run_through_graph(inputs, operation_fn=convert)
        kind = type(model) if functional_like_constructor(type(model)) else Functional
        twin = kind(inputs, outputs, name=model.name)
    twin._trainable = model._trainable  # of itself alone: its layers bring their own
    return twin


def _input_like(layer: keras.layers.InputLayer) -> keras.layers.InputLayer:
    return keras.layers.InputLayer(
        batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name, optional=layer.optional
    )


def copy_layer(layer: keras.Layer) -> keras.Layer:
    """Make a layer of the same class and configuration with the same weights, built if the given one is.

    Raises:
        KpipeError: When it cannot be made from its configuration.

    Example:
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> twin = copy_layer(layer)
        >>> bool((twin.kernel.numpy() == layer.kernel.numpy()).all()), twin.kernel is layer.kernel
        (True, False)
    """
    try:
        twin = type(layer).from_config(layer.get_config())
        if layer.built and not twin.built:
            twin.build_from_config(layer.get_build_config() or {})
            twin.built = True
        take_weights(twin, layer)
        for old, new in zip(layer._flatten_layers(), twin._flatten_layers(), strict=True):
            new.trainable = old.trainable
    except (NotImplementedError, TypeError, ValueError) as error:
        raise KpipeError(
            f"The layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error} Give its class a get_config."
        ) from error
    return twin
