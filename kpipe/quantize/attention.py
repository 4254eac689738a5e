"""Attention with heads written as its projections, products and softmax, each of which is rounded for itself."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

PROJECTIONS = ("query", "value", "key")
Shape = tuple[int | None, ...]


class Attention:
    """Call the parts of an attention layer on query and value: what it computes without masks.

    The query's projection is made smaller by the root of its size, which Keras divides the query by.

    Args:
        layer: A built layer with heads, each of key and value for one of the query or for several, without a gate.
        name: What the names of the parts begin with; the last projection has the name itself.
        shapes: Of query and value, and of the key where it is given, with the batch axis.

    Example:
        >>> layer = L.MultiHeadAttention(2, 3, name="attention")
        >>> x = np.random.default_rng(0).normal(size=(1, 4, 5)).astype("float32")
        >>> expected = layer(x, x)
        >>> bool(np.allclose(Attention(layer, "attention", [x.shape, x.shape])(x, x), expected, atol=1e-5))
        True
    """

    def __init__(self, layer: Any, name: str, shapes: Sequence[Shape]):
        grouped = isinstance(layer, L.GroupQueryAttention)
        size, self.repeats = (layer.head_dim, layer.num_repeats) if grouped else (layer.key_dim, 1)
        given = dict(zip(PROJECTIONS, [*shapes, shapes[-1]], strict=False))
        self.dense = {role: _copy(getattr(layer, f"_{role}_dense"), f"{name}_{role}", given[role]) for role in given}
        heads, depth = self.dense["query"].kernel.shape[1], self.dense["value"].kernel.shape[2]
        self.output = _copy(layer._output_dense, name, (*shapes[0][:2], heads, depth))
        self.softmax = L.Softmax(name=f"{name}_softmax")
        self.dropout = L.Dropout(layer.dropout, name=f"{name}_dropout") if layer.dropout else None
        query = self.dense["query"]
        query.set_weights([value * np.float32(size**-0.5) for value in query.get_weights()])

    @property
    def parts(self) -> list[keras.Layer]:
        """The layers it is made of."""
        return [*self.dense.values(), self.softmax, *([self.dropout] if self.dropout else []), self.output]

    def __call__(self, query: Any, value: Any, key: Any = None, **_: Any) -> Any:
        """Attend, (batch, t, in), (batch, s, in) -> (batch, t, out)."""
        given = (query, value, value if key is None else key)
        # (batch, t, heads, size) -> (batch, heads, t, size)
        turned = (ops.transpose(self.dense[role](x), (0, 2, 1, 3)) for role, x in zip(PROJECTIONS, given, strict=True))
        q, v, k = turned
        if self.repeats > 1:
            v, k = (ops.repeat(x, self.repeats, axis=1) for x in (v, k))
        scores = self.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))))
        scores = self.dropout(scores) if self.dropout else scores
        found = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))  # (batch, heads, t, size) -> (batch, t, heads, size)
        return self.output(found)


def _copy(layer: Any, name: str, shape: Shape) -> Any:
    """Copy a projection, told how many steps come out."""
    config = layer.get_config()
    sizes = {"output_shape": (shape[1], *config["output_shape"][1:])}
    twin = L.EinsumDense.from_config({**config, **sizes, "name": name})
    twin.build(shape)
    twin.set_weights(layer.get_weights())
    return twin
