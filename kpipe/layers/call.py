"""The tensors of a call by the names of its arguments."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kpipe.layers.axes import channels_on
from kpipe.layers.channel_ids import ChannelIds, Ids


@dataclass(frozen=True, eq=False)
class Port:
    """One input tensor of a call.

    Args:
        ids: Its channel ids.
        shape: Its shape, batch axis left out.
        number: Which of the call's tensors it is.
    """

    ids: Ids
    shape: tuple
    number: int

    def along(self, ids: ChannelIds, axis: int = -1) -> Ids:
        """Give the ids along one axis, shape (n,); channels that lie along another are frozen."""
        return channels_on(ids, self.ids, axis, self.number)

    def step(self, ids: ChannelIds) -> Ids:
        """Give the ids of each step of a sequence (steps, *step); channels that lie along the steps are frozen."""
        if len(self.ids) > 1:
            ids.freeze(self.ids, f"they are steps of {ids.path!r}")
            ids.tie(self.ids, self.ids[:1])
        return self.ids[0]


def ports(layer: keras.Layer, ids: ChannelIds, inputs: tuple[Ids, ...]) -> dict[str, Any]:
    """Name the arguments of the call at hand; each tensor is given as a `Port`, all else as it is.

    Args:
        layer: That is called.
        ids: They know the call's arguments and shapes.
        inputs: The channel ids of its tensors.

    Returns:
        Name of an argument -> what was given for it; arguments that were not given are left out.

    Example:
        >>> import numpy as np
        >>> layer, (x, state) = keras.layers.GRU(2), np.arange(5).reshape(5, 1)[:2]
        >>> call = ((x,), {"initial_state": [state]})
        >>> ids = ChannelIds().at("gru", [(None, 7, 3), (None, 2)], [(None, 2)], call)
        >>> {name: keras.tree.map_structure(lambda port: port.shape, given)
        ...  for name, given in ports(layer, ids, (x, state)).items()}
        {'sequences': (7, 3), 'initial_state': [(2,)]}
    """
    args, kwargs = ids.arguments
    waiting = list(enumerate(inputs))[::-1]

    def port(value: Any) -> Any:
        if waiting and value is waiting[-1][1]:
            number, x = waiting.pop()
            return Port(x, ids.input_shapes[number], number)
        return value

    places: Any = keras.tree.map_structure(port, (args, kwargs))  # in Keras's own order of the tensors
    args, kwargs = places
    return dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)


def freeze_others(ids: ChannelIds, given: Mapping[str, Any]) -> None:
    """Freeze the ids of those tensors of a call that a rule has not looked at, such as masks."""
    for name, value in given.items():
        for port in keras.tree.flatten(value):
            if isinstance(port, Port):
                ids.freeze(port.ids, f"they are the {name} of {ids.path!r}")
