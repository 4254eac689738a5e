"""What is known of dense layers that are written as an einsum."""

import math
import string
from typing import Any

import numpy as np
from keras import layers as L

from kpipe.layers.activation import activate
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import Layout
from kpipe.layers.rule import Quantization, Rule, register_weights, rule


def einsum_layout(equation: str) -> Layout:
    """Say which axes of an einsum's second operand are summed over and which it brings into the output.

    An axis that stands in both operands and in the output, such as that of heads which each have a matrix of their
    own, is a position.

    Example:
        >>> einsum_layout("...d,dhk->...hk"), einsum_layout("bhd,hde->bhe")
        (Layout(inputs=(0,), outputs=(1, 2)), Layout(inputs=(1,), outputs=(2,)))
    """
    operands, output = equation.split("->")
    given, kernel = operands.split(",")
    return Layout(
        inputs=tuple(axis for axis, letter in enumerate(kernel) if letter not in output),
        outputs=tuple(axis for axis, letter in enumerate(kernel) if letter not in given),
    )


register_weights(
    L.EinsumDense,
    roles={"kernel": "kernel", "bias": "bias"},
    layouts=lambda layer: {"kernel": einsum_layout(layer.equation)},
)


def written_out(equation: str, rank: int) -> tuple[str, str, str]:
    """Write letters for the ellipsis of an `EinsumDense`, and leave the batch axis out.

    Args:
        equation: Of the layer.
        rank: Of its input, batch axis left out.

    Returns:
        The letters of the input, the kernel and the output.

    Example:
        >>> written_out("...d,dhk->...hk", 3), written_out("abc,cd->abd", 2), written_out("ab...,bc->ac...", 3)
        (('BCd', 'dhk', 'BChk'), ('bc', 'cd', 'bd'), ('bAB', 'bc', 'cAB'))
    """
    operands, output = equation.replace(" ", "").split("->")
    given, kernel = operands.split(",")
    missing = rank + 1 - len(given.replace("...", ""))
    spare = [letter for letter in string.ascii_uppercase + string.ascii_lowercase if letter not in equation]
    letters = "".join(spare[: missing if "..." in given else 0])
    return given.replace("...", letters)[1:], kernel, output.replace("...", letters)[1:]


def _quantization(layer: L.EinsumDense) -> Quantization:
    """A matrix for each head or place has no integer kernel with a step for each channel."""
    layout = einsum_layout(layer.equation)
    kernel = layer.equation.split("->")[0].split(",")[1]
    return "weights" if len(layout.inputs) + len(layout.outputs) == len(kernel.strip()) else "float"


@rule(L.EinsumDense, quantization=_quantization)
def einsum_dense(layer: L.EinsumDense, ids: ChannelIds, x: Ids) -> Rule:
    """Kernel with one axis for each of its letters.

    Channels lie along one axis of the input and one of the output. Where the input's channels are summed over, the
    output's are the last of the axes that the kernel brings, as the size of each head in (heads, size). Where the
    input's channels stand in the output too, they pass, and the kernel brings none. All other axes stay whole.
    """
    given, kernel, output = written_out(layer.equation, x.ndim)
    sizes = dict(zip(given + output, [*ids.input_shapes[0], *ids.output_shapes[0]], strict=True))
    source = next((letter for letter, size in zip(given, x.shape, strict=True) if size > 1), None)
    brought = [letter for letter in output if letter not in given]
    target = source if source is not None and source in output else brought[-1] if brought else None
    along = {} if source is None else {source: x.reshape(-1)}
    if source is not None and source not in kernel + output:
        ids.freeze(x, f"{ids.path!r} sums over them without a kernel")
    if target is not None and target != source:
        along[target] = ids.fresh(sizes[target])
    held: Any = layer.kernel
    for letter, size in zip(kernel, held.shape, strict=True):
        if letter not in along:
            shared = x.reshape(-1) if source is None and letter in given else _whole(ids, letter)
            along[letter] = np.broadcast_to(shared, (size,))
    if target is None:
        out = ids.constant(f"the kernel of {ids.path!r} brings no channels")
    else:
        activate(ids, along[target], layer.activation)
        out = ids.spread(along[target], output.index(target))
    free: list[Any] = [along.get(letter, sizes[letter]) for letter in given if letter not in kernel]
    passing = source is not None and source not in kernel
    reuse = 0 if passing else None if None in free else math.prod(free)
    products = [(*free, *(along[letter] for letter in kernel))] if passing else []
    return Rule(out, _axes(layer, kernel, along), _config(layer, along), reuse, products=products)


def _whole(ids: ChannelIds, letter: str) -> Ids:
    """Mint a frozen id for an axis of the kernel that loses nothing."""
    stays = ids.fresh(1, f"axis {letter}")
    ids.freeze(stays, f"of several axes of {ids.path!r} only one of the input and one of the output can lose channels")
    return stays


def _axes(layer: L.EinsumDense, kernel: str, along: dict[str, Ids]) -> dict[str, dict[int, Ids]]:
    """Lay the ids of the letters along the axes of the kernel, and of the bias, which starts at its first letter."""
    axes = {"kernel": {axis: along[letter] for axis, letter in enumerate(kernel)}}
    if layer.bias_axes is not None:
        output = _output_letters(layer)
        added = output[min(output.index(letter) for letter in layer.bias_axes) :]
        axes["bias"] = {added.index(letter): along[letter] for letter in layer.bias_axes if letter in along}
    return axes


def _config(layer: L.EinsumDense, along: dict[str, Ids]) -> dict[str, tuple]:
    shape = layer.partial_output_shape
    letters = _output_letters(layer)[-len(shape) :]
    return {
        "output_shape": tuple(
            None if size is None else along.get(letter, size) for letter, size in zip(letters, shape, strict=True)
        )
    }


def _output_letters(layer: L.EinsumDense) -> str:
    return layer.equation.replace(" ", "").replace("...", "").split("->")[1]
