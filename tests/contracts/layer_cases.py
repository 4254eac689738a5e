"""A small model round every layer on vectors and maps that has a rule."""

import inspect
from functools import partial

import keras
from keras import layers as L

from kpipe.layers.preprocessing import AUGMENTING


def convolution(rank):
    return [L.Conv1D, L.Conv2D, L.Conv3D][rank - 1]


def around(layer, rank=2, channels=6, size=4):
    """conv -> the layer -> conv -> logits on maps of one rank."""
    image = keras.Input((size,) * rank + (2,), name="image")
    x = convolution(rank)(channels, 3, padding="same", name="before")(image)
    x = convolution(rank)(5, 1, name="after")(layer(x))
    x = L.Flatten(name="flat")(x)
    return keras.Model(image, L.Dense(3, name="logits")(x))


def merged(layer):
    image = keras.Input((4, 4, 2), name="image")
    x = layer([L.Conv2D(6, 3, padding="same", name="left")(image), L.Conv2D(6, 1, name="right")(image)])
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def ending(layer, rank=2):
    """conv -> a layer that ends the map -> logits."""
    image = keras.Input((4,) * rank + (2,), name="image")
    x = layer(convolution(rank)(6, 3, padding="same", name="before")(image))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def varied(cls):
    """An image whose colors or places are varied while the model is trained -> conv -> logits."""
    needed = {"factor": 2 if cls.__name__ == "RandomPosterization" else 0.3, "height_factor": 0.2, "width_factor": 0.2}
    asked = {name: value for name, value in needed.items() if name in inspect.signature(cls).parameters}
    image = keras.Input((4, 4, 3), name="image")
    x = L.Conv2D(6, 3, padding="same", name="before")(cls(**asked, name="layer")(image))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def dotted():
    """Two maps, whose channels are summed over, and a third that is laid beside."""
    image = keras.Input((4, 4, 2), name="image")
    a, b = (L.Reshape((16, 6))(L.Conv2D(6, 3, padding="same", name=name)(image)) for name in ("left", "right"))
    x = L.Conv1D(5, 1, name="after")(L.Dot((2, 2), name="layer")([a, b]))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


def vector(layer):
    """dense -> a layer on vectors -> dense."""
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten()(layer(L.Dense(6, name="before")(x)))))


def masked():
    """Steps that are all zero do not count in the mean."""
    steps = keras.Input((4, 2), name="steps")
    x = L.Dense(6, name="before")(L.Masking(name="layer")(steps))
    x = L.BatchNormalization(name="norm")(L.Add(name="add")([x, L.Dense(6, name="beside")(x)]))
    return keras.Model(steps, L.Dense(3, name="logits")(L.GlobalAveragePooling1D(name="mean")(x)))


def first_of(rank, cls, *args, **kwargs):
    return lambda: around(cls(*args, **kwargs, name="layer"), rank)


CASES = {
    L.InputLayer: lambda: around(L.Identity()),
    L.Dense: first_of(2, L.Dense, 7),
    L.BatchNormalization: first_of(2, L.BatchNormalization),
    L.LayerNormalization: first_of(2, L.LayerNormalization, [1, -1]),
    L.RMSNormalization: first_of(2, L.RMSNormalization),
    L.GroupNormalization: first_of(2, L.GroupNormalization, 2),
    L.UnitNormalization: first_of(2, L.UnitNormalization),
    L.SpectralNormalization: lambda: around(L.SpectralNormalization(L.Conv2D(7, 3), name="layer")),
    L.PReLU: first_of(2, L.PReLU, "normal"),
    L.Masking: masked,
    L.Dropout: first_of(2, L.Dropout, 0.3),
    L.SpatialDropout1D: first_of(1, L.SpatialDropout1D, 0.3),
    L.SpatialDropout2D: first_of(2, L.SpatialDropout2D, 0.3),
    L.SpatialDropout3D: first_of(3, L.SpatialDropout3D, 0.3),
    L.GaussianDropout: first_of(2, L.GaussianDropout, 0.3),
    L.AlphaDropout: first_of(2, L.AlphaDropout, 0.3),
    L.GaussianNoise: first_of(2, L.GaussianNoise, 0.3),
    L.ActivityRegularization: first_of(2, L.ActivityRegularization, 0.01),
    L.Identity: first_of(2, L.Identity),
    L.LeakyReLU: first_of(2, L.LeakyReLU, negative_slope=0.2),
    L.ELU: first_of(2, L.ELU),
    L.ReLU: first_of(2, L.ReLU, 6.0),
    L.Rescaling: first_of(2, L.Rescaling, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0], offset=0.1),
    L.Normalization: first_of(2, L.Normalization, mean=[1.0, 2, 3, 4, 5, 6], variance=[6.0, 5, 4, 3, 2, 1]),
    L.Resizing: first_of(2, L.Resizing, 6, 5),
    L.CenterCrop: first_of(2, L.CenterCrop, 2, 3),
    L.Activation: first_of(2, L.Activation, "sigmoid"),
    L.Softmax: first_of(2, L.Softmax, axis=1),
    L.Conv1D: first_of(1, L.Conv1D, 7, 3),
    L.Conv2D: first_of(2, L.Conv2D, 9, 3, groups=3),
    L.Conv3D: first_of(3, L.Conv3D, 7, 3),
    L.DepthwiseConv1D: first_of(1, L.DepthwiseConv1D, 3, depth_multiplier=2),
    L.DepthwiseConv2D: first_of(2, L.DepthwiseConv2D, 3, depth_multiplier=2),
    L.SeparableConv1D: first_of(1, L.SeparableConv1D, 7, 3, depth_multiplier=2),
    L.SeparableConv2D: first_of(2, L.SeparableConv2D, 7, 3, depth_multiplier=2),
    L.Conv1DTranspose: first_of(1, L.Conv1DTranspose, 7, 3, strides=2),
    L.Conv2DTranspose: first_of(2, L.Conv2DTranspose, 7, 3, strides=2, padding="same"),
    L.Conv3DTranspose: first_of(3, L.Conv3DTranspose, 7, 2),
    L.MaxPooling1D: first_of(1, L.MaxPooling1D, 2),
    L.MaxPooling2D: first_of(2, L.MaxPooling2D, 2),
    L.MaxPooling3D: first_of(3, L.MaxPooling3D, 2),
    L.AveragePooling1D: first_of(1, L.AveragePooling1D, 2),
    L.AveragePooling2D: first_of(2, L.AveragePooling2D, 2),
    L.AveragePooling3D: first_of(3, L.AveragePooling3D, 2),
    L.AdaptiveMaxPooling1D: first_of(1, L.AdaptiveMaxPooling1D, 2),
    L.AdaptiveMaxPooling2D: first_of(2, L.AdaptiveMaxPooling2D, 2),
    L.AdaptiveMaxPooling3D: first_of(3, L.AdaptiveMaxPooling3D, 2),
    L.AdaptiveAveragePooling1D: first_of(1, L.AdaptiveAveragePooling1D, 2),
    L.AdaptiveAveragePooling2D: first_of(2, L.AdaptiveAveragePooling2D, 2),
    L.AdaptiveAveragePooling3D: first_of(3, L.AdaptiveAveragePooling3D, 2),
    L.ZeroPadding1D: first_of(1, L.ZeroPadding1D, 1),
    L.ZeroPadding2D: first_of(2, L.ZeroPadding2D, 1),
    L.ZeroPadding3D: first_of(3, L.ZeroPadding3D, 1),
    L.Cropping1D: first_of(1, L.Cropping1D, 1),
    L.Cropping2D: first_of(2, L.Cropping2D, 1),
    L.Cropping3D: first_of(3, L.Cropping3D, 1),
    L.UpSampling1D: first_of(1, L.UpSampling1D, 2),
    L.UpSampling2D: first_of(2, L.UpSampling2D, 2, interpolation="bilinear"),
    L.UpSampling3D: first_of(3, L.UpSampling3D, 2),
    L.GlobalMaxPooling1D: lambda: ending(L.GlobalMaxPooling1D(), 1),
    L.GlobalMaxPooling2D: lambda: ending(L.GlobalMaxPooling2D(keepdims=True)),
    L.GlobalMaxPooling3D: lambda: ending(L.GlobalMaxPooling3D(), 3),
    L.GlobalAveragePooling1D: lambda: ending(L.GlobalAveragePooling1D(), 1),
    L.GlobalAveragePooling2D: lambda: ending(L.GlobalAveragePooling2D(keepdims=True)),
    L.GlobalAveragePooling3D: lambda: ending(L.GlobalAveragePooling3D(), 3),
    L.Flatten: lambda: ending(L.Flatten()),
    L.Reshape: lambda: ending(L.Reshape((2, 8, 6))),
    L.Permute: lambda: ending(L.Permute((3, 1, 2))),
    L.RepeatVector: lambda: vector(L.RepeatVector(3)),
    L.Add: lambda: merged(L.Add()),
    L.Subtract: lambda: merged(L.Subtract()),
    L.Multiply: lambda: merged(L.Multiply()),
    L.Average: lambda: merged(L.Average()),
    L.Maximum: lambda: merged(L.Maximum()),
    L.Minimum: lambda: merged(L.Minimum()),
    L.Concatenate: lambda: merged(L.Concatenate()),
    L.Dot: dotted,
    **{cls: partial(varied, cls) for cls in AUGMENTING},
}
