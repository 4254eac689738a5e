"""Rules of operations that multiply and sum: products of matrices, einsum, attention."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kpipe.layers.axes import varying
from kpipe.layers.channel_ids import ChannelIds, Compressed, Ids
from kpipe.layers.operations.operands import Operand, classes, frozen, operands
from kpipe.layers.rule import Kept, Rule, rule

Term = list[str]
"""A name for each axis of an argument, as in the subscripts of an einsum: axes of one name run together."""

Mask = tuple[int | str, int, int, Ids]
"""Place of an argument, an axis, the rank, and the channel ids along the axis."""


def contract(operation: Any, ids: ChannelIds, inputs: Sequence[Ids], terms: Sequence[Term], out: Term) -> Rule:
    """Follow channels through a product of tensors and constants.

    Axes of one name are tied. A name that is not in the output is summed over: with channels gone, the sum runs over
    those that are kept. A constant loses the entries of the channels that go.

    Args:
        operation: The operation.
        ids: Of the call.
        inputs: Channel ids of its tensors.
        terms: For each argument the names of its axes.
        out: The names of the axes of the output; the first is the batch.
    """
    pairs = list(zip(operands(ids, inputs), terms, strict=False))
    sizes: dict[str, int | None] = {}
    for one, term in pairs:
        for name, size in zip(term, _full_shape(one), strict=True):
            sizes[name] = size if sizes.get(name, 1) == 1 else sizes[name]
    sizes.pop(out[0], None)
    if reason := _not_followed(pairs, out):
        return replace(frozen(ids, inputs, reason), products=(tuple(sizes.values()),))
    held = {name: found for name in sizes if (found := _channels(ids, pairs, name)) is not None}
    lost = [name for name in out if name in held][:-1]
    for name in lost:
        ids.freeze(held[name], f"{ids.path!r} multiplies all of them with all other channels")
    passed = next((name for name in reversed(out) if name in held), None)
    result = ids.constant(f"{ids.path!r} sums over the channels") if passed is None else held[passed]
    return Rule(
        result if passed is None else ids.spread(result, out.index(passed) - 1),
        arguments=_constants(pairs, held),
        products=(tuple(held.get(name, size) for name, size in sizes.items()),),
        reference=_summing_kept(operation, _masks(pairs, held, out)),
    )


def _full_shape(one: Operand) -> tuple[int | None, ...]:
    return one.shape if one.port is None else (None, *one.shape)


def _not_followed(pairs: Sequence[tuple[Operand, Term]], out: Term) -> str | None:
    """Say why channels cannot be followed through a product; None when they can."""
    for one, term in pairs:
        if len(set(term)) < len(term):
            return "takes a diagonal"
        if one.port is not None and term[:1] != out[:1]:
            return "multiplies samples with one another"
        if one.port is None and out[0] in term and one.shape[term.index(out[0])] != 1:
            return "holds a constant for each sample"
    return None


def _channels(ids: ChannelIds, pairs: Sequence[tuple[Operand, Term]], name: str) -> Ids | None:
    """Tie the channel ids that lie along the axes of one name, and give them; None where none do."""
    holders = [
        (one, axis)
        for one, term in pairs
        if one.port is not None and name in term and one.shape[axis := term.index(name) - 1] != 1
    ]
    found = [ids.along(one.value, axis, one.port or 0) for one, axis in holders if varying(one.value) == axis]
    if not found:
        return None
    for one, axis in holders:
        if varying(one.value) is None:
            ids.tie(found[0], one.value.reshape(-1))
        elif varying(one.value) != axis:
            ids.freeze(found[0], f"{ids.path!r} multiplies them with something that has its channels elsewhere")
    for other in found[1:]:
        ids.tie(other, found[0])
    return found[0]


def _constants(pairs: Sequence[tuple[Operand, Term]], held: dict[str, Ids]) -> dict[int | str, Compressed]:
    """Let the constants lose the entries of channels that go."""
    result = {}
    for one, term in pairs:
        axes = {axis: held[name] for axis, name in enumerate(term) if name in held and one.shape[axis - 1] != 1}
        if one.port is None and axes:
            result[one.place] = Compressed(one.value, axes)
    return result


def _masks(pairs: Sequence[tuple[Operand, Term]], held: dict[str, Ids], out: Term) -> list[Mask]:
    """Say which channels are summed over, each once: at the first tensor that has them."""
    masks: list[Mask] = []
    for name in held.keys() - set(out):
        one, term = next((one, term) for one, term in pairs if one.port is not None and name in term)
        masks.append((one.place, term.index(name), len(term), held[name]))
    return masks


def _summing_kept(operation: Any, masks: Sequence[Mask]) -> Callable[[Kept], Callable[..., Any]] | None:
    """Compute a product with zeros where channels go that it sums over; None where it sums over none."""
    if not masks:
        return None

    def reference(kept: Kept) -> Callable[..., Any]:
        def masked(*args: Any, **kwargs: Any) -> Any:
            values = dict(enumerate(args)) | kwargs
            for place, axis, rank, channels in masks:
                shape = [-1 if i == axis else 1 for i in range(rank)]
                values[place] = values[place] * keras.ops.cast(kept(channels).reshape(shape), values[place].dtype)
            return operation(*(values[i] for i in range(len(args))), **{name: values[name] for name in kwargs})

        return masked

    return reference


def matmul_terms(first: int, second: int) -> tuple[Term, Term, Term]:
    """Name the axes of a matrix product, from the ranks of its arguments.

    Example:
        >>> matmul_terms(3, 2)
        (['-3', 'row', 'inner'], ['inner', 'column'], ['-3', 'row', 'column'])
    """
    left = [str(axis) for axis in range(-first, -2)] + ["row", "inner"][-first:]
    right = [str(axis) for axis in range(-second, -2)] + (["inner", "column"] if second > 1 else ["inner"])
    leading = max(left[:-2], right[:-2], key=len)
    return left, right, leading + ["row"] * (first > 1) + ["column"] * (second > 1)


@rule(*classes("numpy", "Matmul"))
def matmul(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Multiply matrices: the inner axis is summed over, the outer ones pass."""
    left, right, out = matmul_terms(*(len(_full_shape(one)) for one in operands(ids, inputs)))
    return contract(operation, ids, inputs, [left, right], out)


@rule(*classes("numpy", "Dot"))
def dot(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Sum over the last axis of the first argument and the last but one of the second."""
    first, second = (len(_full_shape(one)) for one in operands(ids, inputs))
    if not first or not second:
        return frozen(ids, inputs, "multiplies with a scalar; use multiply")
    return _summed_pairs(operation, ids, inputs, [first - 1], [max(second - 2, 0)])


@rule(*classes("numpy", "Tensordot"))
def tensordot(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Sum over pairs of axes."""
    first, second = (len(_full_shape(one)) for one in operands(ids, inputs))
    axes = operation.axes
    if isinstance(axes, int):
        axes = list(range(first - axes, first)), list(range(axes))
    left, right = (
        [one % rank for one in np.atleast_1d(several)] for several, rank in zip(axes, (first, second), strict=True)
    )
    return _summed_pairs(operation, ids, inputs, left, right)


def _summed_pairs(operation: Any, ids: ChannelIds, inputs: Sequence[Ids], left: list[int], right: list[int]) -> Rule:
    """Follow channels through a sum over pairs of axes of two arguments."""
    ranks = [len(_full_shape(one)) for one in operands(ids, inputs)]
    terms = [[f"{side}{axis}" for axis in range(rank)] for side, rank in zip("ab", ranks, strict=True)]
    for one, other in zip(left, right, strict=True):  # they may count from the end
        terms[1][other] = terms[0][one]
    out = [name for name in terms[0] + terms[1] if (name in terms[0]) != (name in terms[1])]
    return contract(operation, ids, inputs, terms, out)


@rule(*classes("numpy", "Einsum"))
def einsum(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Multiply and sum as the subscripts say."""
    given, arrow, out = operation.subscripts.replace(" ", "").partition("->")
    if not arrow:
        return frozen(ids, inputs, "does not say what comes out; add -> and the output's subscripts")
    ranks = [len(_full_shape(one)) for one in operands(ids, inputs)]
    terms = [_spelled_out(term, rank) for term, rank in zip(given.split(","), ranks, strict=False)]
    return contract(operation, ids, inputs, terms, _spelled_out(out, len(ids.output_shapes[0]) + 1))


def _spelled_out(term: str, rank: int) -> Term:
    """Name each axis of a term of an einsum; those that an ellipsis stands for by their place from the right.

    Example:
        >>> _spelled_out("...td", 4), _spelled_out("b...", 3)
        (['...2', '...1', 't', 'd'], ['b', '...2', '...1'])
    """
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{place}" for place in range(hidden, 0, -1)), *after]


@rule(*classes("nn", "DotProductAttention"))
def dot_product_attention(operation: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Query and key (length, heads, size) are summed over their size; the channels of the value pass.

    The scale follows from the size of the query unless it is given: then the size stays.
    """
    arguments = {one.place: one for one in operands(ids, inputs)}
    query, key, value = (arguments[place] for place in range(3))
    (targets, heads, size), (steps, _, width) = query.shape, value.shape
    others = [one for one in arguments.values() if one.port is not None and one.place not in (0, 1, 2)]
    elsewhere = [one for one in (query, key, value) if varying(one.value) not in (None, 2)]
    if elsewhere or any(varying(one.value) is not None for one in others):
        found = frozen(ids, inputs, "mixes places or heads")
        return replace(found, products=[(heads, targets, steps, size), (heads, targets, steps, width)])
    scale = arguments["scale"].value if "scale" in arguments else None
    channels = _sizes_of_heads(ids, query, key, scale is not None and np.ndim(scale) == 0)
    reference = None if channels is None else _summing_kept(operation, [(0, 3, 4, channels)])
    passes = varying(value.value) is not None
    out = value.value if passes else ids.constant(f"{ids.path!r} mixes places")
    first = (heads, targets, steps, size if channels is None else channels)
    second = (heads, targets, steps, out.reshape(-1) if passes else width)
    return Rule(out, products=[first, second], reference=reference)


def _sizes_of_heads(ids: ChannelIds, query: Operand, key: Operand, scaled: bool) -> Ids | None:
    """Tie the channels of query and key, which are summed over; None where they stay."""
    if varying(query.value) is None and varying(key.value) is None:
        return None
    ids.tie(query.value, key.value)
    if not scaled or varying(query.value) is None:
        ids.freeze(query.value, f"{ids.path!r} takes its scale from their number")
        return None
    return ids.along(query.value, 2, query.port or 0)
