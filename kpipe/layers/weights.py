"""The weights of a layer with their roles, and the layers of a model."""

from dataclasses import dataclass

import keras

from kpipe.layers.layout import DEPTHWISE, NATURAL, Layout
from kpipe.layers.rule import facts_of


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
    """Say whether a rule is registered for the layer's class or for one above it."""
    return facts_of(layer) is not None


def weights(layer: keras.Layer) -> tuple[Weight, ...]:
    """List a layer's own weights that have a role; an unknown layer has none.

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> [(w.name, w.role) for w in weights(layer)]
        [('kernel', 'kernel'), ('bias', 'bias')]
    """
    facts = facts_of(layer)
    if facts is None or not layer.built:
        return ()
    own = {id(variable) for variable in layer.variables}
    found = ((name, role, getattr(layer, name, None)) for name, role in facts.roles.items())
    # Low-rank adapters and quantized layers answer with a computed tensor, not with one of their variables.
    return tuple(
        Weight(layer, name, role, value, DEPTHWISE if role == "depthwise_kernel" else NATURAL)
        for name, role, value in found
        if id(value) in own
    )


def leaves(model: keras.Model) -> list[keras.Layer]:
    """List all the layers of a model, those inside nested models and inside other layers too, models left out."""
    return [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]
