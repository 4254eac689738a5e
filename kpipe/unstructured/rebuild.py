"""Build a Sequential or Functional model anew, each layer replaced by another."""

import warnings
from collections.abc import Callable, Iterator

import keras
from keras.src.models.functional import Functional, functional_like_constructor

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

    Raises:
        KpipeError: When two layers hold the same weight, which two new ones would not.

    Example:
        >>> net = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)], name="net")
        >>> from kpipe.copies import copy_layer
        >>> twin = rebuild(net, copy_layer)
        >>> twin.name, twin.inputs[0].name, twin.layers[0] is net.layers[0]
        ('net', 'x', False)
    """
    _check_untied(model)
    made: dict[int, keras.Layer] = {}

    def convert(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):
            return layer  # an operation such as an addition holds nothing
        if id(layer) not in made:
            made[id(layer)] = _rebuilt(layer, convert) if is_graph(layer) else replace(layer)
        return made[id(layer)]

    return _rebuilt(model, convert)


def _check_untied(model: keras.Model) -> None:
    owners: dict[int, keras.Layer] = {}
    for layer in _leaves(model):
        for weight in layer.weights:
            if (owner := owners.setdefault(id(weight), layer)) is not layer:
                several = " and ".join(f"{one.name!r} ({type(one).__name__})" for one in (owner, layer))
                raise KpipeError(
                    f"The layers {several} of {model.name!r} hold the same weight {weight.path!r}; their copies would "
                    "not. Prune the model as it is, by kpipe.callbacks.WeightPruning."
                )


def _leaves(model: keras.Layer) -> Iterator[keras.Layer]:
    """Give the layers that are no graphs of layers, inside nested models too."""
    for layer in model._layers:
        yield from _leaves(layer) if is_graph(layer) else [layer]


def _rebuilt(model: keras.Model, convert: Replace) -> keras.Model:
    # As keras.models.clone_model does, which would compile the new model.
    kind: type[keras.Model] = keras.Sequential
    if isinstance(model, keras.Sequential):
        first = [_input_like(layer) for layer in model._layers[:1] if isinstance(layer, keras.layers.InputLayer)]
        twin = kind([*first, *(convert(layer) for layer in model.layers)], name=model.name)
    else:
        made = {id(tensor): _input_like(tensor._keras_history[0]).output for tensor in model.inputs}
        inputs = keras.tree.map_structure(lambda tensor: made[id(tensor)], model._inputs_struct)
        outputs = model._run_through_graph(inputs, operation_fn=convert)
        kind = type(model) if functional_like_constructor(type(model)) else Functional
        twin = kind(inputs, outputs, name=model.name)
    if not issubclass(kind, type(model)):
        text = f"{model.name!r} is a {type(model).__name__}; its copy is a {kind.__name__}, without methods of its own."
        warnings.warn(text, UserWarning, stacklevel=4)
    twin._trainable = model._trainable  # of itself alone: its layers bring their own
    return twin


def _input_like(layer: keras.layers.InputLayer) -> keras.layers.InputLayer:
    return keras.layers.InputLayer(
        batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name, optional=layer.optional
    )
