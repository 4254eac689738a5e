"""Multi-head attention that treats masks as Keras 2 does."""

from typing import Any

import keras
from keras import ops

HIDDEN = {"float16": -32752.0}
"""What Keras 2 adds to the score of a key that a query may not see, by type; -1e9 for the others."""


@keras.saving.register_keras_serializable(package="kpipe")
class Keras2MultiHeadAttention(keras.layers.MultiHeadAttention):
    """Attend as Keras 3 does, but treat masks as Keras 2 does.

    A query that may see no key attends to all alike, where Keras 3 lets it attend to none; and inputs keep their masks,
    which Keras 3 takes off them, so that layers further on, such as the sum round the attention, no longer see them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer and give its inputs their masks back."""
        masks = [(one, getattr(one, "_keras_mask", None)) for one in keras.tree.flatten((args, kwargs))]
        outputs = super().__call__(*args, **kwargs)
        for tensor, mask in masks:
            if mask is not None:
                tensor._keras_mask = mask
        return outputs

    def _masked_softmax(self, attention_scores: Any, attention_mask: Any = None) -> Any:
        if attention_mask is None:
            return super()._masked_softmax(attention_scores)
        attended: Any = self._attention_axes
        axis = -2 * len(attended) - 1
        for _ in range(len(attention_scores.shape) - len(attention_mask.shape)):
            attention_mask = ops.expand_dims(attention_mask, axis)  # (batch, 1, queries, keys)
        dtype = keras.backend.standardize_dtype(attention_scores.dtype)
        seen: Any = ops.cast(attention_mask, dtype)
        return self._softmax(attention_scores + (1.0 - seen) * HIDDEN.get(dtype, -1e9))
