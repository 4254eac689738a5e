"""Pooling of volumes, for which LiteRT has no kernel, by its kernels for images."""

from typing import Any

import keras
from keras import layers as L
from keras import ops

from kpipe.graph import has_graph, replay

FLAT = {L.MaxPooling3D: L.MaxPooling2D, L.AveragePooling3D: L.AveragePooling2D}


def without_volumes(model: keras.Model) -> keras.Model:
    """Write poolings of volumes as poolings of images; any other model is given back as it is.

    Those of an open size, and of channels that come first, stay.

    Args:
        model: It is not changed.

    Returns:
        A model that computes the same.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 4, 1)), L.MaxPooling3D(2)])
        >>> flat, x = without_volumes(model), ops.reshape(ops.arange(64.0), (1, 4, 4, 4, 1))
        >>> bool((flat(x) == model(x)).numpy().all()), [type(layer).__name__ for layer in flat.layers]
        (True, ['InputLayer', 'VolumePooling'])
    """
    if not (has_graph(model) and any(type(layer) in FLAT for layer in model._flatten_layers())):
        return model

    def call(site: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        layer, shape = site.operation, site.input_shapes[0]
        if type(layer) in FLAT and None not in shape[1:] and layer.data_format == "channels_last":
            return VolumePooling(layer, name=layer.name)(x)
        return layer(x, *args, **kwargs)

    return replay(model, call)


class VolumePooling(L.Layer):
    """Pool volumes, (batch, d, h, w, c), over height and width first and over depth then.

    The greatest of the greatest is the greatest of all; and as padding is left out of means, and takes as much of each
    depth, the mean of the means is that of all.

    Args:
        pooling: A layer of `FLAT`.
        **kwargs: What a Keras layer takes.
    """

    def __init__(self, pooling: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        (d, *places), (step, *steps) = pooling.pool_size, pooling.strides
        cls = FLAT[type(pooling)]
        self.over_places = cls(tuple(places), tuple(steps), pooling.padding)
        self.over_depth = cls((d, 1), (step, 1), pooling.padding)

    def call(self, x: Any) -> Any:
        """Give (batch, d', h', w', c)."""
        d, h, w, c = x.shape[1:]
        images = self.over_places(ops.reshape(x, (-1, h, w, c)))  # (batch · d, h', w', c)
        h, w = images.shape[1:3]
        columns = self.over_depth(ops.reshape(images, (-1, d, h * w, c)))  # (batch, d', h' · w', c)
        return ops.reshape(columns, (-1, columns.shape[1], h, w, c))
