"""Rules of layers that prepare inputs; within a graph they treat each channel alone."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.axes import against
from kpipe.layers.channel_ids import ChannelIds, Compressed, Ids
from kpipe.layers.rule import Role, Rule, register_weights, rule

register_weights(L.STFTSpectrogram, roles={"real_kernel": "statistic", "imag_kernel": "statistic"})


@rule(L.Rescaling, quantization="output")
def rescaling(layer: L.Rescaling, ids: ChannelIds, x: Ids) -> Rule:
    """Scale and offset are numbers, or arrays that are broadcast from the right and lose the entries of the channels.

    Where Keras is set to channels-first it lays arrays along another axis: there the channels stay.
    """
    config = {}
    for name, value in (("scale", layer.scale), ("offset", layer.offset)):
        if not np.ndim(value):
            continue
        if np.ndim(value) > x.ndim or keras.config.image_data_format() == "channels_first":
            ids.freeze(x, f"{ids.path!r} has a {name} of shape {np.shape(value)}")
            return Rule(x)
        array = np.asarray(value)
        key = name if isinstance(value, (list, tuple)) else f"{name}.config.value"  # how Keras writes an array
        config[key] = Compressed(array, against(x, array.shape))
    return Rule(x, config=config)


AUGMENTING = tuple(
    vars(L)[name]
    for name in (
        *("AugMix CutMix MixUp RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter".split()),
        *("RandomContrast RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale".split()),
        *("RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation".split()),
        *("RandomSharpness RandomShear RandomTranslation RandomZoom".split()),
    )
    if name in vars(L)  # some are younger than others
)
"""Layers that vary images while a model is trained, and hand them on as they are in inference."""


@rule(*AUGMENTING, quantization="same")
def augmentation(layer: keras.Layer, ids: ChannelIds, *tensors: Ids) -> Rule:
    """Channels stay, for some of these layers mix colors in training; labels and boxes may go in beside the images."""
    for x in tensors:
        ids.freeze(x, f"{ids.path!r} varies images, and may mix their colors")
    first, *others = tensors
    return Rule((first, *others) if others else first)


def scale_and_offset(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write a rescaling or a normalization as x · s + b.

    Returns:
        s and b, numbers or arrays that are broadcast from the right, without axes of size 1 in front.

    Example:
        >>> layer = L.Normalization(mean=[1.0, 2.0], variance=[4.0, 4.0])
        >>> layer.build((None, 2))
        >>> [part.tolist() for part in scale_and_offset(layer)]
        [[0.5, 0.5], [-0.5, -1.0]]
    """
    if isinstance(layer, L.Rescaling):
        return np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    mean, variance = (_without_ones(np.asarray(part, np.float64)) for part in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    return scale.astype(np.float32), offset.astype(np.float32)


def _without_ones(array: np.ndarray) -> np.ndarray:
    while array.ndim > 1 and len(array) == 1:
        array = array[0]
    return array


ADAPTED: dict[str, Role] = {"adapt_mean": "statistic", "adapt_variance": "statistic", "count": "statistic"}


@rule(L.Normalization, roles=ADAPTED, quantization="output")
def normalization(layer: L.Normalization, ids: ChannelIds, x: Ids) -> Rule:
    """Mean and variance along `axis`: weights where they were adapted, else lists in the config."""
    axes = sorted(axis % (x.ndim + 1) for axis in layer.axis)
    if layer.input_mean is None:
        sizes = layer.adapt_mean.shape
        return Rule(x, axes=dict.fromkeys(("adapt_mean", "adapt_variance"), _among(x, axes, sizes)))
    values = {"mean": np.asarray(layer.input_mean), "variance": np.asarray(layer.input_variance)}
    return Rule(
        x,
        config={
            name: Compressed(value, _among(x, axes[len(axes) - value.ndim :], value.shape))
            for name, value in values.items()
            if value.ndim
        },
    )


def _among(x: Ids, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, Ids]:
    """Find the channels of a tensor on an array that has some of its axes, batch axis included.

    Example:
        >>> _among(np.arange(3).reshape(1, 3), [1, 2], (4, 3)), _among(np.arange(3).reshape(1, 3), [1], (4,))
        ({1: array([0, 1, 2])}, {})
    """
    shape: list[Any] = [1] * x.ndim
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis - 1] = size
    return {axes.index(axis + 1): on for axis, on in against(x, shape).items()}
