"""The weights of a layer with their roles, and the layers of a model."""

import itertools
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import keras

from kpipe.errors import KpipeError
from kpipe.layers.layout import NATURAL, Layout, layout_for
from kpipe.layers.rule import KERNEL_ROLES, Role, facts_of, weight_facts_of


@dataclass(frozen=True)
class Weight:
    """Name one weight of one layer: its attribute `name`, what it does (`role`), the variable, and its axes."""

    layer: keras.Layer
    name: str
    role: str
    variable: keras.Variable
    layout: Layout = NATURAL

    @property
    def path(self) -> str:
        """The Keras variable path."""
        return self.variable.path


def known(layer: keras.Layer) -> bool:
    """Say whether anything is registered for the layer's class or for one above it."""
    return facts_of(layer) is not None


def weights(layer: keras.Layer) -> tuple[Weight, ...]:
    """List a layer's own weights that have a role; an unknown layer has none.

    What the layer's own `get_prunable_weights()` lists is a kernel, also a bias or a depthwise kernel.

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> [(w.name, w.role) for w in weights(layer)]
        [('kernel', 'kernel'), ('bias', 'bias')]
    """
    if not layer.built:
        return ()
    found = {id(weight.variable): weight for weight in _with_roles(layer)}
    for variable in declared(layer) or ():
        natural = Weight(layer, variable.name, "kernel", variable, layout_for("kernel", len(variable.shape)))
        weight = found.get(id(variable), natural)
        dense = weight.role in KERNEL_ROLES and weight.role != "depthwise_kernel"
        found[id(variable)] = weight if dense else replace(weight, role="kernel")
    return tuple(found.values())


def roles_of(layer: keras.Layer) -> Mapping[str, Role]:
    """Give the roles of a layer's weights by attribute name, as they were registered for its class or one above it."""
    roles = weight_facts_of(layer).roles or {}
    roles = roles(layer) if callable(roles) else roles
    wrong = {name: role for name, role in roles.items() if role not in get_args(Role)}
    if wrong:
        raise KpipeError(
            f"Layer {layer.name!r} ({type(layer).__name__}): unknown roles {wrong}; known: {get_args(Role)}."
        )
    return roles


def _with_roles(layer: keras.Layer) -> Iterator[Weight]:
    own = {id(variable) for variable in layer.variables}
    layouts = weight_facts_of(layer).layouts
    layouts = layouts(layer) if callable(layouts) else layouts
    for name, role in roles_of(layer).items():
        value: Any = getattr(layer, name, None)
        several = isinstance(value, list | tuple)
        for i, variable in enumerate(value if several else [value]):
            # Low-rank adapters and quantized layers answer with a computed tensor, not with one of their variables.
            if id(variable) in own:
                layout = layouts.get(name) or layout_for(role, len(variable.shape))
                _check_layout(layer, name, layout, variable.shape)
                yield Weight(layer, f"{name}/{i}" if several else name, role, variable, layout)


def _check_layout(layer: keras.Layer, name: str, layout: Layout, shape: tuple[int, ...]) -> None:
    try:
        layout.turned_shape(shape)
    except KpipeError as error:
        raise KpipeError(f"Weight {name!r} of layer {layer.name!r} ({type(layer).__name__}): {error}") from error


def declared(layer: Any) -> tuple[keras.Variable, ...] | None:
    """Give what a layer's `get_prunable_weights()` lists, TFMOT's protocol; None for a layer without that method.

    Raises:
        KpipeError: When it gives anything but a list of the layer's own variables.

    Example:
        >>> class Gate(keras.layers.Dense):
        ...     "Let kpipe prune its bias too."
        ...     def get_prunable_weights(self):
        ...         return [self.kernel, self.bias]
        >>> gate = Gate(2)
        >>> gate.build((None, 3))
        >>> [variable.name for variable in declared(gate)], declared(keras.layers.Dense(2))
        (['kernel', 'bias'], None)
    """
    method = getattr(layer, "get_prunable_weights", None)
    if not callable(method) or not layer.built:
        return None
    found: Any = method()
    own = {id(variable) for variable in layer.variables}
    if not isinstance(found, list | tuple) or any(id(variable) not in own for variable in found):
        raise KpipeError(
            f"get_prunable_weights() of layer {layer.name!r} ({type(layer).__name__}) gave {found!r}; expected a list "
            "of the layer's own variables, such as [self.kernel]."
        )
    return tuple(found)


def unlisted(layer: keras.Layer) -> dict[int, str]:
    """Map the id of each variable that some layer's `get_prunable_weights()` leaves out to the name of that layer.

    Example:
        >>> class Half(keras.layers.Dense):
        ...     "Let kpipe prune nothing."
        ...     def get_prunable_weights(self):
        ...         return []
        >>> half = Half(2, name="half")
        >>> half.build((None, 3))
        >>> list(unlisted(half).values()), unlisted(keras.layers.Dense(2))
        (['half', 'half'], {})
    """
    found: dict[int, str] = {}
    for inside in layers_within(layer):
        listed = declared(inside)
        if listed is not None:
            others = {id(variable) for variable in inside.weights} - {id(variable) for variable in listed}
            found |= {key: str(inside.name) for key in others}
    return found


def located(layer: keras.Layer) -> dict[str, keras.Layer]:
    """Map the path of each layer inside a layer or model to it, from the outside in and in order; "" is itself.

    The path is made of the names of the layers around it. Keras's own `Layer.path` has the model's name in front or
    not, as the model was made or loaded. A layer that stands at several places is listed at the first.

    Example:
        >>> outer = keras.layers.TimeDistributed(keras.layers.Dense(2, name="inner"), name="outer")
        >>> list(located(outer)), list(located(keras.Sequential([outer])))
        (['', 'inner'], ['', 'outer', 'outer/inner'])
    """
    found: dict[str, keras.Layer] = {}
    seen: set[int] = set()
    waiting = [("", layer)]
    while waiting:
        path, one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            path = unique(path, found)
            found[path] = one
            waiting += [(f"{path}/{inner.name}".lstrip("/"), inner) for inner in reversed(one._layers)]
    return found


def unique(path: str, taken: Container[str]) -> str:
    """Make a path unique by a number.

    Example:
        >>> unique("a", ()), unique("a", {"a", "a#2"})
        ('a', 'a#3')
    """
    names = itertools.chain([path], (f"{path}#{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def layers_within(layer: keras.Layer) -> list[keras.Layer]:
    """List a layer or model and all that is inside it, each once, from the outside in and in order.

    Example:
        >>> outer = keras.layers.TimeDistributed(keras.layers.Dense(2, name="inner"), name="outer")
        >>> [layer.name for layer in layers_within(outer)]
        ['outer', 'inner']
    """
    return list(located(layer).values())


def leaves(model: keras.Layer) -> list[keras.Layer]:
    """List all the layers of a model in order, those inside other layers too.

    Models are left out, the given one too, unless they hold weights of their own.

    Example:
        >>> inner = keras.Sequential([keras.layers.Dense(2, name="b"), keras.layers.Dense(1, name="c")])
        >>> net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="a"), inner])
        >>> [layer.name for layer in leaves(net) if layer.weights]
        ['a', 'b', 'c']
    """
    return [one for one in layers_within(model) if not isinstance(one, keras.Model) or own_variables(one)]


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """List the weights that a layer holds itself, not in a layer inside it.

    Example:
        >>> layer = keras.layers.TimeDistributed(keras.layers.Dense(2))
        >>> layer.build((None, 4, 3))
        >>> len(own_variables(layer)), len(own_variables(layer.layer))
        (0, 2)
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def weights_within(layer: keras.Layer) -> list[Weight]:
    """List every weight that has a role in a layer or model and all that is inside, each variable once.

    Of two layers that share a variable the one speaks for it that calls it a kernel, then the one that holds it itself.

    Example:
        >>> layer = keras.layers.Bidirectional(keras.layers.SimpleRNN(2, use_bias=False))
        >>> layer.build((None, 4, 3))
        >>> [weight.role for weight in weights_within(layer)]
        ['kernel', 'recurrent_kernel', 'kernel', 'recurrent_kernel']
    """
    found: dict[int, tuple[tuple[bool, bool], Weight]] = {}
    for inside in layers_within(layer):
        own = {id(variable) for variable in own_variables(inside)}
        for weight in weights(inside):
            key, rank = id(weight.variable), (weight.role in KERNEL_ROLES, id(weight.variable) in own)
            if key not in found or rank > found[key][0]:
                found[key] = (rank, weight)
    return [weight for _, weight in found.values()]
