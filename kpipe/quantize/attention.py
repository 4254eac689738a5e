"""Attention with heads written as its projections, products and softmax, each of which is rounded for itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

from kpipe.fake_quant import MaskedSoftmax, without_masks

PROJECTIONS = ("query", "value", "key")
Shape = tuple[int | None, ...]


class Attention:
    """Call the parts of an attention layer as the layer is called: on query, value and perhaps key, with their masks.

    The query's projection is made smaller by the root of its size, which Keras divides the query by. Masks, given and
    those that the tensors carry, go into the softmax alone. Of a row that is masked all over Keras gives zeros where it
    drops scores out, and the mean of all values elsewhere. Its MultiHeadAttention takes the masks off what it is called
    on, so that what is called on that later knows none; so does this.

    Args:
        layer: A built layer with heads, each of key and value for one of the query or for several, without a gate.
        name: What the names of the parts begin with; the last projection has the name itself.
        shapes: "query", "value", and "key" where it is given -> the shape with the batch axis.

    Example:
        >>> layer = L.MultiHeadAttention(2, 3, name="attention")
        >>> x = np.random.default_rng(0).normal(size=(1, 4, 5)).astype("float32")
        >>> expected = layer(x, x)
        >>> apart = Attention(layer, "attention", {"query": x.shape, "value": x.shape})
        >>> bool(np.allclose(apart(x, x), expected, atol=1e-5))
        True
    """

    def __init__(self, layer: Any, name: str, shapes: Mapping[str, Shape]):
        grouped = isinstance(layer, L.GroupQueryAttention)
        size, self.repeats = (layer.head_dim, layer.num_repeats) if grouped else (layer.key_dim, 1)
        given = {"key": shapes["value"], **shapes}
        self.dense = {role: _copy(getattr(layer, f"_{role}_dense"), f"{name}_{role}", given[role]) for role in given}
        heads, depth = self.dense["query"].kernel.shape[1], self.dense["value"].kernel.shape[2]
        self.output = _copy(layer._output_dense, name, (*given["query"][:2], heads, depth))
        self.softmax = L.Softmax(name=f"{name}_softmax")
        self.masked = MaskedSoftmax(layer.dropout > 0, name=f"{name}_masked_softmax")
        self.dropout = L.Dropout(layer.dropout, name=f"{name}_dropout") if layer.dropout else None
        self.combined: Callable[..., Any] = layer._compute_attention_mask
        self.takes_masks_off = not grouped
        query = self.dense["query"]
        query.set_weights([value * np.float32(size**-0.5) for value in query.get_weights()])

    @property
    def parts(self) -> list[keras.Layer]:
        """The layers it is made of."""
        return [*self.dense.values(), self.softmax, self.masked, *([self.dropout] if self.dropout else []), self.output]

    def __call__(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: Any = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attend, (batch, t, in), (batch, s, in) -> (batch, t, out), in Keras's order of arguments.

        Scores are never given out, and every part is told of itself whether it is trained.
        """
        tensors = (query, value, value if key is None else key)
        with without_masks(*tensors) as carried:
            told = zip(carried[: 2 if key is None else 3], (query_mask, value_mask, key_mask), strict=False)
            masks = [own if mask is None else mask for own, mask in told]
            if self.takes_masks_off:  # it looks at no other mask of the query
                masks[0] = carried[0]
            names = dict(zip(("query_mask", "value_mask", "key_mask"), masks, strict=False))
            given = {"attention_mask": attention_mask, "use_causal_mask": use_causal_mask}
            attended = self._attend(tensors, self.combined(query, value, **names, **given))
        if masks[0] is not None:
            attended._keras_mask = masks[0]
        for tensor, mask in zip(tensors, carried, strict=True):
            if self.takes_masks_off and mask is not None:
                tensor._keras_mask = None
        return attended

    def _attend(self, given: Sequence[Any], mask: Any) -> Any:
        # (batch, t, heads, size) -> (batch, heads, t, size)
        turned = (ops.transpose(self.dense[role](x), (0, 2, 1, 3)) for role, x in zip(PROJECTIONS, given, strict=True))
        q, v, k = turned
        if self.repeats > 1:
            v, k = (ops.repeat(x, self.repeats, axis=1) for x in (v, k))
        weights = self._weights(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), mask)
        weights = self.dropout(weights) if self.dropout else weights
        # (batch, heads, t, size) -> (batch, t, heads, size)
        return self.output(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)))

    def _weights(self, scores: Any, mask: Any) -> Any:
        if mask is None:
            return self.softmax(scores)
        return self.masked(scores, ops.expand_dims(mask, 1) if len(mask.shape) == 3 else mask)  # (batch, 1, t, s)


def _copy(layer: Any, name: str, shape: Shape) -> Any:
    """Copy a projection, told how many steps come out."""
    config = layer.get_config()
    sizes = {"output_shape": (shape[1], *config["output_shape"][1:])}
    twin = L.EinsumDense.from_config({**config, **sizes, "name": name})
    twin.build(shape)
    twin.set_weights(layer.get_weights())
    return twin
