"""A small model round every operation of `keras.ops` that has a rule, and round the layers of `keras.applications`."""

import keras
import numpy as np
from keras import applications, ops
from keras import layers as L

from kpipe.layers.applications import named_layer
from kpipe.layers.operations.elementwise import ONE_TENSOR, SEVERAL_TENSORS
from kpipe.layers.operations.operands import classes

CHANNELS = np.linspace(0.5, 1.5, 6, dtype="float32")


def around(function, *shape):
    """dense -> the operation -> dense -> logits, on tensors (*shape, 6)."""

    def make():
        x = keras.Input((*shape, 2), name="features")
        y = function(L.Dense(6, name="before")(x))
        y = L.Dense(5, name="after")(ops.cast(y, "float32"))
        return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))

    return make


def between(function, *shape):
    """Two dense layers -> the operation of both -> dense -> logits, on tensors (*shape, 6)."""

    def make():
        x = keras.Input((*shape, 2), name="features")
        y = function(L.Dense(6, name="left")(x), L.Dense(6, name="right")(x))
        y = L.Dense(5, name="after")(ops.cast(y, "float32"))
        return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))

    return make


def of_layer(function, name, *args):
    return around(lambda x: named_layer(function, name)(*args, name="layer")(x), 2)


def one_tensor(cls):
    """Call an operation of one tensor by its class, on values where it is defined and tame."""
    arguments = {"Cast": ("float32",), "SaturateCast": ("float32",), "Threshold": (0.1, 0.2)}.get(cls.__name__, ())
    whole = cls.__name__ in ("BitwiseInvert", "BitwiseNot")
    complexes = cls.__name__ in ("Conjugate", "Conj", "Real", "Imag", "Angle")

    def function(x):
        x = ops.sigmoid(x) * 0.5 + (1.25 if cls.__name__ == "Arccosh" else 0.25)
        x = ops.cast(x * 8, "int32") if whole else ops.cast(x, "complex64") if complexes else x
        y = cls(*arguments)(x)
        return ops.real(y) if cls.__name__ in ("Conjugate", "Conj") else y

    return around(function, 2)


def several_tensors(cls):
    """Call an operation that broadcasts on two tensors, one of which has a constant for each channel added."""
    whole = cls.__name__ in (
        "BitwiseAnd BitwiseLeftShift BitwiseOr BitwiseRightShift BitwiseXor Gcd Lcm LeftShift RightShift"
    )

    def function(a, b):
        a, b = ops.sigmoid(a) * CHANNELS + 0.25, ops.sigmoid(b) + 0.25
        if whole:
            a, b = ops.cast(a * 8, "int32"), ops.cast(b * 4, "int32")
        if cls.__name__ == "Ldexp":
            b = ops.cast(b * 4, "int32")
        if cls.__name__ == "FullLike":
            return cls()(a, 0.5) * b
        return cls()(a > b, a, b) if cls.__name__ == "Where" else cls()(a, b)

    return between(function, 2)


def named(module, cases):
    return {classes(module, name)[0]: case for name, case in cases.items()}


def reduced(function):
    """An operation that drops the first of two other axes."""
    return around(function, 3, 4)


KERNEL = np.linspace(-1, 1, 6 * 4, dtype="float32").reshape(6, 4)

CASES = {cls: one_tensor(cls) for cls in ONE_TENSOR} | {cls: several_tensors(cls) for cls in SEVERAL_TENSORS}
CASES |= named(
    "numpy",
    {
        "Clip": around(lambda x: ops.clip(x, -0.5, 0.5), 2),
        "Amax": reduced(lambda x: ops.amax(x, 1)),
        "Amin": reduced(lambda x: ops.amin(x, 1, keepdims=True)),
        "Max": reduced(lambda x: x * ops.max(x, axis=-1, keepdims=True)),
        "Mean": reduced(lambda x: x - ops.mean(x, axis=-1, keepdims=True)),
        "Min": reduced(lambda x: x * ops.min(x, axis=(1, -1), keepdims=True)),
        "Std": reduced(lambda x: x / (ops.std(x, axis=-1, keepdims=True) + 1.0)),
        "Sum": reduced(lambda x: x * ops.expand_dims(ops.sum(x, axis=-1), -1)),
        "Var": reduced(lambda x: ops.var(x, axis=(1, 2))),
        "Prod": reduced(lambda x: ops.prod(x, axis=1)),
        "All": reduced(lambda x: ops.all(x > 0, axis=1)),
        "Any": reduced(lambda x: ops.any(x > 0, axis=1)),
        "Argmax": reduced(lambda x: ops.argmax(x, axis=1)),
        "Argmin": reduced(lambda x: ops.argmin(x, axis=1)),
        "CountNonzero": reduced(lambda x: ops.count_nonzero(ops.relu(x), axis=1)),
        "Median": reduced(lambda x: ops.median(x, axis=1)),
        "Nanargmax": reduced(lambda x: ops.nanargmax(x, axis=1)),
        "Nanargmin": reduced(lambda x: ops.nanargmin(x, axis=1)),
        "Nanmax": reduced(lambda x: ops.nanmax(x, axis=1)),
        "Nanmean": reduced(lambda x: ops.nanmean(x, axis=1)),
        "Nanmedian": reduced(lambda x: ops.nanmedian(x, axis=1)),
        "Nanmin": reduced(lambda x: ops.nanmin(x, axis=1)),
        "Nanprod": reduced(lambda x: ops.nanprod(x, axis=1)),
        "Nanstd": reduced(lambda x: ops.nanstd(x, axis=1)),
        "Nansum": reduced(lambda x: ops.nansum(x, axis=1)),
        "Nanvar": reduced(lambda x: ops.nanvar(x, axis=1)),
        "Ptp": reduced(lambda x: ops.ptp(x, axis=1)),
        "Argsort": reduced(lambda x: ops.argsort(x, axis=1)),
        "Cumprod": reduced(lambda x: ops.cumprod(x, axis=1)),
        "Cumsum": reduced(lambda x: ops.cumsum(x, axis=1)),
        "Nancumprod": reduced(lambda x: ops.nancumprod(x, axis=1)),
        "Nancumsum": reduced(lambda x: ops.nancumsum(x, axis=1)),
        "Roll": reduced(lambda x: ops.roll(x, 1, axis=2)),
        "Sort": reduced(lambda x: ops.sort(x, axis=1)),
        "Reshape": reduced(lambda x: ops.reshape(ops.reshape(x, (-1, 12, 2, 3)), (-1, 3, 4, 6))),
        "Transpose": reduced(lambda x: ops.transpose(ops.transpose(x, (0, 3, 1, 2)), (0, 2, 3, 1))),
        "Swapaxes": reduced(lambda x: ops.reshape(ops.swapaxes(x, -1, 1), (-1, 72))),
        "Moveaxis": reduced(lambda x: ops.reshape(ops.moveaxis(x, -1, 1), (-1, 6 * 3 * 4))),
        "Squeeze": around(lambda x: ops.squeeze(x), 1, 1),
        "ExpandDims": around(lambda x: ops.expand_dims(x, (1, -2)), 2),
        "BroadcastTo": lambda: broadcast(),
        "Flip": around(lambda x: ops.flip(x, axis=-1), 2),
        "Repeat": around(lambda x: ops.repeat(ops.repeat(x, 2, axis=-1), 2, axis=1), 2),
        "Tile": around(lambda x: ops.tile(x, (1, 2, 2)), 2),
        "GetItem": around(lambda x: x[:, None, 1:, -4:], 3),
        "Split": around(lambda x: ops.concatenate(ops.split(x, [2], axis=-1)[::-1], axis=-1), 2),
        "Concatenate": between(lambda a, b: ops.concatenate([a, b, a], axis=-1), 2),
        "Stack": between(lambda a, b: ops.stack([a, b], axis=2), 2),
        "Take": around(lambda x: ops.take(x, np.array([[2, 0], [1, 1]]), axis=1), 3),
        "Pad": around(lambda x: ops.pad(x, [[0, 0], [1, 0], [2, 3]]), 2),
        "Matmul": between(lambda a, b: ops.matmul(ops.matmul(a, ops.swapaxes(b, 1, 2)), b), 4),
        "Dot": around(lambda x: ops.dot(x, KERNEL), 2),
        "Tensordot": around(lambda x: ops.tensordot(x, KERNEL, axes=1), 2),
        "Einsum": between(lambda a, b: ops.einsum("b...sc,b...tc,cd->b...std", a, b, np.eye(6, 5)), 2, 3),
    },
)
CASES |= named("linalg", {"Norm": reduced(lambda x: ops.norm(x, axis=1))})
CASES |= named("math", {"Logsumexp": reduced(lambda x: x - ops.logsumexp(x, axis=-1, keepdims=True))})
CASES |= named("core", {"Unstack": around(lambda x: sum(ops.unstack(x, axis=1)), 3)})
CASES |= named(
    "nn",
    {
        "LogSoftmax": reduced(lambda x: ops.log_softmax(x, axis=1)),
        "Softmax": reduced(lambda x: ops.softmax(x, axis=1)),
        "Sparsemax": reduced(lambda x: ops.sparsemax(x, axis=1)),
        "Moments": reduced(lambda x: moments(x)),
        "Normalize": around(lambda x: ops.normalize(x, axis=-1), 2),
        "Glu": around(lambda x: ops.glu(x, axis=-1), 2),
        "AveragePool": reduced(lambda x: ops.average_pool(x, 2)),
        "MaxPool": reduced(lambda x: ops.max_pool(x, 2)),
        "DepthToSpace": lambda: upscaled(),
        "SpaceToDepth": around(lambda x: ops.nn.space_to_depth(x, 2), 4, 4),
        "DotProductAttention": lambda: attention(),
    },
)
CASES |= named(
    "image",
    {
        "Resize": reduced(lambda x: ops.image.resize(x, (5, 5))),
        "CropImages": reduced(lambda x: ops.image.crop_images(x, 1, 1, 0, 1)),
        "PadImages": reduced(lambda x: ops.image.pad_images(x, 1, 1, 0, 1)),
    },
)
CASES |= {
    named_layer(applications.ConvNeXtTiny, "LayerScale"): of_layer(applications.ConvNeXtTiny, "LayerScale", 0.1, 6),
    named_layer(applications.ConvNeXtTiny, "StochasticDepth"): of_layer(
        applications.ConvNeXtTiny, "StochasticDepth", 0.3
    ),
    named_layer(applications.InceptionResNetV2, "CustomScaleLayer"): between(
        lambda a, b: named_layer(applications.InceptionResNetV2, "CustomScaleLayer")(0.2)([a, b]), 2
    ),
}


def moments(x):
    mean, variance = list(ops.moments(x, axes=[1], keepdims=True) or ())
    return mean - variance


def broadcast():
    x = keras.Input(batch_shape=(2, 1, 2), name="features")
    y = ops.broadcast_to(L.Dense(6, name="before")(x), (2, 3, 6))
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))


def upscaled():
    x = keras.Input((3, 3, 2), name="image")
    y = ops.nn.depth_to_space(L.Dense(24, name="before")(x), 2)
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))


def attention():
    x = keras.Input((4, 2), name="features")
    q, k, v = (ops.reshape(L.Dense(12, name=name)(x), (-1, 4, 2, 6)) for name in "qkv")
    y = ops.reshape(ops.dot_product_attention(q, k, v, scale=0.5), (-1, 4, 12))
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))
