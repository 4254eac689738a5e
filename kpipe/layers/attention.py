"""What is known of attention: heads, their sizes and the output's channels, each cut alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras.src.backend import get_keras_mask, set_keras_mask

from kpipe.layers.axes import positions
from kpipe.layers.call import Port, freeze_others, ports
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Kept, Quantization, Rule, register_weights, rule

register_weights(L.MultiHeadAttention, L.GroupQueryAttention, roles={}, whole=True)
register_weights(L.Attention, roles={"scale": "gamma", "concat_score_weight": "gamma"})
register_weights(L.AdditiveAttention, roles={"scale": "gamma"})


@rule(L.Attention, L.AdditiveAttention)
def attention(layer: L.Attention, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Scores sum over the channels of query and key, which are tied; those of the value come out.

    There is no kernel whose rows could be zeroed: the reference zeroes the channels of query and key.
    """
    given = ports(layer, ids, inputs)
    query, value, *others = given.pop("inputs")
    key = others[0] if others else value
    freeze_others(ids, given)
    summed, out = query.along(ids), value.along(ids)
    ids.tie(summed, key.along(ids))
    beside, steps, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    additive = isinstance(layer, L.AdditiveAttention)
    return Rule(
        _with_scores(ids, ids.spread(out, -1), f"they are scores of {ids.path!r}"),
        axes={"scale": {0: summed}} if additive else {},
        summed={"scale": (0,)} if additive else {},
        products=[(*beside, steps, keys, summed), (*beside, steps, keys, out)],
        reference=_over_kept(layer, summed),
    )


def _with_scores(ids: ChannelIds, out: Ids, reason: str) -> Ids | tuple[Ids, Ids]:
    return (out, ids.constant(reason, 1)) if len(ids.output_shapes) > 1 else out


def _over_kept(layer: L.Attention, summed: Ids) -> Callable[[Kept], Callable[..., Any]]:
    """Give the layer on queries and keys whose channels that go are zero: they add nothing to a score."""

    def reference(kept: Kept) -> Callable[..., Any]:
        keep = kept(summed)

        def call(inputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            query, value = inputs[:2]
            key = inputs[2] if len(inputs) > 2 else value
            return layer([_where(query, keep), value, _where(key, keep)], *args, **kwargs)

        return call

    return reference


def _where(x: Any, keep: np.ndarray) -> Any:
    """Zero channels of a tensor; its mask stays with it."""
    masked = x * keras.ops.cast(keep, x.dtype)
    set_keras_mask(masked, get_keras_mask(x))
    return masked


def _quantization(layer: Any) -> Quantization:
    """Of the plain layer the projections and products are rounded, each for itself."""
    config = layer.get_config()
    several = config.get("attention_axes") not in (None, (1,), [1])
    return "float" if several or config.get("use_gate") or config.get("sliding_window") is not None else "split"


@rule(L.MultiHeadAttention, quantization=_quantization)
def multi_head_attention(layer: L.MultiHeadAttention, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Kernels of query and key (in, heads, key_dim), value (in, heads, value_dim), output (heads, value_dim, out).

    Scores are divided by the root of `key_dim`: when it shrinks, the query grows smaller alike. The size of the output
    is written into the config, where it was that of the query.
    """
    query, key, value, mask = _inputs(layer, ids, inputs)
    heads = ids.fresh(layer.num_heads, "heads", math.gcd(layer.key_dim, layer.value_dim))
    keys, values = ids.fresh(layer.key_dim, "key_dim"), ids.fresh(layer.value_dim, "value_dim")
    shape = layer._output_shape or query.shape[-1:]
    out = ids.fresh(shape[-1])
    _tie_mask(ids, mask, heads)
    axes = {
        **_projection("_query_dense", query.along(ids), heads, keys),
        **_projection("_key_dense", key.along(ids), heads, keys),
        **_projection("_value_dense", value.along(ids), heads, values),
        **_projection("_gate_dense", query.along(ids), heads, values),
        "_output_dense.kernel": {0: heads, 1: values, -1: out},
        "_output_dense.bias": {-1: out},
    }
    scores = _scores(layer._attention_axes or (), query.shape, key.shape)
    return Rule(
        _with_heads(ids, ids.spread(out, -1), heads),
        axes=axes,
        config={"num_heads": heads, "key_dim": keys, "value_dim": values, "output_shape": (*shape[:-1], out)},
        reuse=_reuse(query, key, value),
        summed=SUMMED,
        rescale={"_query_dense.kernel": (keys, 0.5), "_query_dense.bias": (keys, 0.5)},
        products=[(*scores, heads, keys), (*scores, heads, values)],
    )


@rule(L.GroupQueryAttention, quantization=_quantization)
def group_query_attention(layer: L.GroupQueryAttention, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Kernels like those of multi-head attention; a head of key and value goes with all its heads of the query.

    All heads have one size. The output has the channels of the query, so what is cut there is cut here; Keras wants as
    many channels of the value.
    """
    query, key, value, mask = _inputs(layer, ids, inputs)
    repeats = layer.num_query_heads // layer.num_key_value_heads
    shared = ids.fresh(layer.num_key_value_heads, "heads", layer.head_dim)
    sizes = ids.fresh(layer.head_dim, "head_dim")
    heads, out = np.repeat(shared, repeats), query.along(ids)
    ids.tie(out, value.along(ids))
    _tie_mask(ids, mask, heads)
    axes = {
        **_projection("_query_dense", out, heads, sizes),
        **_projection("_key_dense", key.along(ids), shared, sizes),
        **_projection("_value_dense", value.along(ids), shared, sizes),
        **_projection("_gate_dense", out, heads, sizes),
        "_output_dense.kernel": {0: heads, 1: sizes, 2: out},
        "_output_dense.bias": {0: out},
    }
    scores = (query.shape[0], key.shape[0])
    return Rule(
        _with_heads(ids, ids.spread(out, -1), heads),
        axes=axes,
        config={"num_query_heads": heads, "num_key_value_heads": shared, "head_dim": sizes},
        reuse=_reuse(query, key, value),
        summed=SUMMED,
        rescale={"_query_dense.kernel": (sizes, 0.5), "_query_dense.bias": (sizes, 0.5)},
        products=[(*scores, heads, sizes), (*scores, heads, sizes)],
    )


SUMMED = {f"_{name}_dense.kernel": (0,) for name in ("query", "key", "value", "gate")} | {
    "_output_dense.kernel": (0, 1)
}
"""The inputs of the projections; heads and their sizes where the output is made of them."""


def _inputs(layer: keras.Layer, ids: ChannelIds, inputs: tuple[Ids, ...]) -> tuple[Port, Port, Port, Any]:
    """Give the query, the key, the value and the mask of a call; other tensors are frozen."""
    given = ports(layer, ids, inputs)
    query, value, mask = given.pop("query"), given.pop("value"), given.pop("attention_mask", None)
    key = given.pop("key", None)
    freeze_others(ids, given)
    return query, value if key is None else key, value, mask


def _tie_mask(ids: ChannelIds, mask: Any, heads: Ids) -> None:
    """Tie heads to a mask that has values for each of them, (heads, query steps, key steps); freeze any other."""
    if not isinstance(mask, Port):
        return
    if len(mask.shape) == 3 and mask.shape[0] not in (None, 1):
        ids.tie(mask.along(ids, 0), heads)
    else:
        ids.freeze(mask.ids, f"they are the attention_mask of {ids.path!r}")


def _projection(name: str, taken: Ids, heads: Ids, sizes: Ids) -> dict[str, dict[int, Ids]]:
    return {f"{name}.kernel": {0: taken, 1: heads, 2: sizes}, f"{name}.bias": {0: heads, 1: sizes}}


def _with_heads(ids: ChannelIds, out: Ids, heads: Ids) -> Ids | tuple[Ids, Ids]:
    """Give the ids of the output, and those of scores (heads, query steps, key steps) where they are returned."""
    if len(ids.output_shapes) == 1:
        return out
    return out, ids.spread(heads, 0, len(ids.output_shapes[1]))


def _reuse(query: Port, key: Port, value: Port) -> dict[str, int | None]:
    """Say how often the entries of the projections are used: at each place of what they take."""
    places = {"query": query, "key": key, "value": value, "gate": query, "output": query}
    return {f"_{name}_dense.kernel": positions(port.shape, -1) for name, port in places.items()}


def _scores(axes: Sequence[int], query: tuple, key: tuple) -> tuple[int | None, ...]:
    """Give the sizes of a head's scores: places beside the attended axes, attended ones of the query and of the key.

    Example:
        >>> _scores((1,), (5, 8), (7, 8)), _scores((2,), (3, 5, 8), (3, 7, 8)), _scores((1, 2), (3, 5, 8), (3, 7, 8))
        ((5, 7), (3, 5, 7), (3, 5, 3, 7))
    """
    attended = {axis - 1 for axis in axes}
    beside = [size for axis, size in enumerate(query[:-1]) if axis not in attended]
    return (*beside, *(query[axis] for axis in sorted(attended)), *(key[axis] for axis in sorted(attended)))
