"""Rules of operations that treat each value alone, broadcast where they take several tensors."""

from typing import Any

import numpy as np

from kpipe.layers.axes import against, varying
from kpipe.layers.channel_ids import ChannelIds, Compressed, Ids
from kpipe.layers.operations.operands import Operand, classes, frozen, operands
from kpipe.layers.rule import Rule, rule

ONE_TENSOR = (
    classes(
        "numpy",
        "Absolute Abs Fabs Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctanh BitwiseInvert BitwiseNot Cbrt Ceil "
        "Conjugate Conj Copy Cos Cosh Deg2rad Rad2deg EmptyLike Exp Exp2 Expm1 Floor I0 Imag Isfinite Isinf Isnan "
        "Isneginf Isposinf Isreal Log Log10 Log1p Log2 LogicalNot NanToNum Negative OnesLike Real Reciprocal Round "
        "Sign Signbit Sin Sinc Sinh Sqrt Square Tan Tanh Trunc ZerosLike",
    )
    + classes("core", "Cast SaturateCast ConvertToTensor StopGradient")
    + classes("math", "Erf Erfc Erfinv Rsqrt")
    + classes(
        "nn",
        "Celu Elu Gelu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid Relu Relu6 Selu Sigmoid Silu "
        "SoftShrink Softplus Softsign SparsePlus SparseSigmoid Squareplus TanhShrink Threshold",
    )
)
"""Operations of one tensor that give each value what follows from it alone."""

SEVERAL_TENSORS = classes(
    "numpy",
    "Add Arctan2 BitwiseAnd BitwiseLeftShift BitwiseOr BitwiseRightShift BitwiseXor Divide DivideNoNan Equal "
    "FloorDivide Fmax Fmin Fmod FullLike Gcd Greater GreaterEqual Heaviside Hypot Isclose Lcm Ldexp LeftShift Less "
    "LessEqual LogicalAnd LogicalOr LogicalXor Logaddexp Logaddexp2 Maximum Minimum Mod Multiply Nextafter NotEqual "
    "Power RightShift Subtract TrueDivide Where",
) + classes("nn", "Polar")
"""Operations that broadcast their arguments against each other and give each value what follows from its place."""


@rule(*ONE_TENSOR)
def one_tensor(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Every value is treated alone: the ids pass unchanged."""
    return Rule(x)


@rule(*classes("numpy", "Clip"))
def clip(operation: Any, ids: ChannelIds, x: Ids) -> Rule:
    """Pass the ids, unless each channel has bounds of its own."""
    if np.ndim(operation.x_min) or np.ndim(operation.x_max):
        return frozen(ids, [x], "has bounds for each channel")
    return Rule(x)


@rule(*SEVERAL_TENSORS)
def broadcast(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Tie the tensors' channels, aligned at their last axes; an axis of size 1 is broadcast and ties nothing.

    A constant array that has an entry for each channel loses those of the channels that go.
    """
    rank = len(ids.output_shapes[0])
    arguments = operands(ids, inputs)
    tensors = [_aligned(one, rank) for one in arguments if one.port is not None]
    axes = {axis for x, _, _ in tensors if (axis := varying(x)) is not None}
    if not axes:
        for x, _, _ in tensors:
            ids.tie(x, tensors[0][0])
        return Rule(tensors[0][0])
    axis = axes.pop()
    if axes or any(axis <= batch for _, _, batch in tensors):
        return frozen(ids, inputs, "takes tensors whose channels lie on different axes")
    full = [x for x, shape, _ in tensors if shape[axis] != 1]
    for x in full:
        ids.tie(x, full[0])
    out = next(x for x in full if varying(x) is not None)
    constants = {one.place: (one.value, against(out, np.shape(one.value))) for one in arguments if one.port is None}
    return Rule(out, arguments={place: Compressed(value, axes) for place, (value, axes) in constants.items() if axes})


def _aligned(tensor: Operand, rank: int) -> tuple[Ids, tuple[int | None, ...], int]:
    """Lay ids and shape of a tensor out to a rank, at their last axes; say where its batch axis comes to lie."""
    missing = rank - tensor.value.ndim
    return tensor.value.reshape((1,) * missing + tensor.value.shape), (1,) * missing + tensor.shape, missing - 1
