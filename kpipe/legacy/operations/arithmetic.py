"""TensorFlow operations that compute values, written with `keras.ops`."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kpipe.legacy.operations.table import OPERATIONS

OF_ONE = {
    **{
        f"math.{name}": name
        for name in (
            "abs ceil cos cosh erf exp expm1 floor log log1p logical_not negative reciprocal round rsqrt sigmoid sign "
            "sin sinh softplus sqrt square tan tanh"
        ).split()
    },
    **{f"nn.{name}": name for name in "elu relu relu6 selu sigmoid silu softplus softsign tanh".split()},
    **{f"math.{name}": f"arc{name[1:]}" for name in ("acos", "acosh", "asin", "asinh", "atan", "atanh")},
    "math.is_finite": "isfinite",
    "math.is_inf": "isinf",
    "math.is_nan": "isnan",
    "ones_like": "ones_like",
    "stop_gradient": "stop_gradient",
    "zeros_like": "zeros_like",
}
"""Operations of one tensor -> their name in `keras.ops`."""
OF_TWO = {
    **{
        f"math.{name}": name
        for name in (
            "add divide equal greater greater_equal less less_equal logical_and logical_or logical_xor maximum minimum "
            "mod multiply not_equal subtract"
        ).split()
    },
    "__operators__.add": "add",
    "__operators__.eq": "equal",
    "__operators__.ne": "not_equal",
    "compat.v1.div": "divide",
    "compat.v1.floor_div": "floor_divide",
    "math.atan2": "arctan2",
    "math.floordiv": "floor_divide",
    "math.floormod": "mod",
    "math.pow": "power",
    "math.truediv": "divide",
}
"""Operations of two tensors, entry by entry -> their name in `keras.ops`."""
REDUCING = {
    **{f"math.reduce_{name}": name for name in ("all", "any", "logsumexp", "max", "mean", "min", "prod", "std", "sum")},
    "math.reduce_variance": "var",
}
"""Operations along axes -> their name in `keras.ops`."""


def _of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*args: Any, **named: Any) -> Any:
        (value,) = (*args, *named.values())
        return function(value)

    return apply


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*args: Any, **named: Any) -> Any:
        first, second = (*args, *named.values())
        return function(constant(first, second), constant(second, first))

    return apply


def constant(value: Any, other: Any) -> Any:
    """Give a list of numbers, which Keras 2 makes of a constant tensor, the type of the tensor beside it."""
    return ops.convert_to_tensor(value, dtype=other.dtype) if isinstance(value, list) else value


def _reducing(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return function(input_tensor, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)

    return apply


for _table, _turn in ((OF_ONE, _of_one), (OF_TWO, _of_two), (REDUCING, _reducing)):
    for _symbol, _name in _table.items():
        OPERATIONS(_symbol)(_turn(getattr(ops, _name)))

# --- activations -----------------------------------------------------------------------------------------------------


@OPERATIONS("nn.softmax")
def softmax(logits: Any, axis: int = -1) -> Any:
    """Give e^x over its sum along an axis."""
    return ops.softmax(logits, axis=axis)


@OPERATIONS("nn.log_softmax")
def log_softmax(logits: Any, axis: int = -1) -> Any:
    """Give the logarithm of the softmax along an axis."""
    return ops.log_softmax(logits, axis=axis)


@OPERATIONS("nn.leaky_relu")
def leaky_relu(features: Any, alpha: float = 0.2) -> Any:
    """Keep what is above 0; the rest times `alpha`."""
    return ops.leaky_relu(features, negative_slope=alpha)


@OPERATIONS("nn.gelu")
def gelu(features: Any, approximate: bool = False) -> Any:
    """Weigh values by the normal distribution below them, exactly or by a tanh."""
    return ops.gelu(features, approximate=approximate)


@OPERATIONS("nn.swish")
def swish(features: Any, beta: float = 1.0) -> Any:
    """Give x · sigmoid(beta · x)."""
    return features * ops.sigmoid(beta * features)


@OPERATIONS("clip_by_value")
def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    """Bring values into a range."""
    return ops.clip(t, clip_value_min, clip_value_max)


# --- arithmetic ------------------------------------------------------------------------------------------------------


@OPERATIONS("math.add_n")
def add_n(inputs: Sequence[Any]) -> Any:
    """Add up several tensors."""
    total = inputs[0]
    for one in inputs[1:]:
        total = ops.add(total, one)
    return total


@OPERATIONS("math.squared_difference")
def squared_difference(x: Any, y: Any) -> Any:
    """Give (x - y)²."""
    return ops.square(ops.subtract(x, y))


@OPERATIONS("math.divide_no_nan")
def divide_no_nan(x: Any, y: Any) -> Any:
    """Give x / y, and 0 where y is 0."""
    safe = ops.where(ops.equal(y, 0), ops.ones_like(y), y)
    return ops.where(ops.equal(y, 0), ops.zeros_like(x), ops.divide(x, safe))


@OPERATIONS("math.l2_normalize")
def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    """Divide by the root of the sum of squares, which counts as `epsilon` where it is less."""
    total = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(total, epsilon))


@OPERATIONS("norm")
def norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: bool = False) -> Any:
    """Give the root of the sum of squares; other orders are refused."""
    if ord not in ("euclidean", 2):
        raise TypeError(f"a norm of the order {ord!r}")
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis, keepdims=keepdims))


@OPERATIONS("math.cumsum")
def cumsum(x: Any, axis: int = 0) -> Any:
    """Add up along an axis, step by step."""
    return ops.cumsum(x, axis=axis)


@OPERATIONS("math.argmax")
def argmax(input: Any, axis: int = 0, output_type: Any = None) -> Any:
    """Give the place of the greatest value along an axis."""
    return ops.argmax(input, axis=axis)


@OPERATIONS("math.argmin")
def argmin(input: Any, axis: int = 0, output_type: Any = None) -> Any:
    """Give the place of the least value along an axis."""
    return ops.argmin(input, axis=axis)


@OPERATIONS("math.top_k")
def top_k(input: Any, k: int = 1, sorted: bool = True) -> Any:
    """Give the `k` greatest values of the last axis, and their places."""
    return ops.top_k(input, k, sorted=sorted)


@OPERATIONS("linalg.matmul")
def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, **flags: Any) -> Any:
    """Multiply matrices, turned where asked; flags for sparse ones are refused."""
    if any(flags.values()):
        raise TypeError(f"flags {flags}")
    a, b = constant(a, b), constant(b, a)
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


@OPERATIONS("nn.bias_add")
def bias_add(value: Any, bias: Any, data_format: str | None = None) -> Any:
    """Add a number to each channel, the last axis or, of NC formats, the second."""
    bias = constant(bias, value)
    if data_format is not None and data_format.startswith("NC"):
        bias = ops.reshape(bias, (-1, *[1] * (len(value.shape) - 2)))  # (channels, 1..)
    return ops.add(value, bias)
