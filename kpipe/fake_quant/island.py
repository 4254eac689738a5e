"""Layers of a quantized model that compute in float although all around them is rounded."""

from typing import Any

import keras

from kpipe.fake_quant.masking import without_masks


@keras.saving.register_keras_serializable(package="kpipe")
class Island(keras.layers.Wrapper):
    """Call a layer in float, perhaps between negations.

    A negation has no integer kernel. Where a file is written, one behind a layer keeps LiteRT's converter from rounding
    it for the sole reason that rounded values go in and come out; one before it, from computing its means on the grid
    of what goes in.

    Args:
        layer: The layer.
        negate_input: Give it -x.
        negate_output: Give -y.
        activation: What is applied at last, behind the negation; None for nothing.
        **kwargs: What a Keras layer takes.

    Example:
        >>> relu = keras.layers.ReLU()
        >>> Island(relu, negate_input=True, negate_output=True)(keras.ops.array([[1.0, -2.0]])).numpy().tolist()
        [[-0.0, -2.0]]
    """

    def __init__(
        self,
        layer: keras.Layer,
        negate_input: bool = False,
        negate_output: bool = False,
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.negate_input, self.negate_output = negate_input, negate_output
        self.activation = keras.activations.get(activation)
        self.supports_masking = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Call the layer on `x`, or on what is negated."""
        told = {"training": training} if self.layer._call_has_training_arg else {}
        with without_masks(*([] if self.layer.supports_masking else [x])):
            y = self.layer(-x if self.negate_input else x, **told)
        return self.activation(-y if self.negate_output else y)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Hand a mask on where the layer does."""
        return previous_mask if self.layer.supports_masking else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Give the layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        activation = keras.activations.serialize(self.activation)
        negated = {"negate_input": self.negate_input, "negate_output": self.negate_output}
        return {**super().get_config(), **negated, "activation": activation}


FLOOR = -1e9
"""What stands for a masked score: its exponential is 0."""


@keras.saving.register_keras_serializable(package="kpipe")
class MaskedSoftmax(keras.layers.Layer):
    """Compute softmax over the last axis where a mask is true, between negations.

    LiteRT's converter would round a masked score to the least value on the grid of the others, and count it in the sum;
    a negation, which has no integer kernel, keeps it from that.

    Args:
        zeros: What a row that is masked all over gives: zeros, or the same share for each entry.
        **kwargs: What a Keras layer takes.

    Example:
        >>> x, mask = keras.ops.array([[0.0, 1.0, 9.0]]), keras.ops.array([[True, True, False]])
        >>> [round(float(share), 3) for share in MaskedSoftmax()(x, mask)[0]]
        [0.269, 0.731, 0.0]
    """

    def __init__(self, zeros: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zeros, self.supports_masking = zeros, True

    def call(self, x: Any, mask: Any) -> Any:
        """Give the softmax of `x`, (..., n), where the mask, broadcast to it, is true or above 0.5."""
        kept = mask if mask.dtype == "bool" else keras.ops.greater(mask, 0.5)
        negated = -keras.ops.softmax(-keras.ops.where(kept, -x, -FLOOR))
        return -(keras.ops.where(kept, negated, 0.0) if self.zeros else negated)

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        """Give the shape of what goes in."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        return {**super().get_config(), "zeros": self.zeros}
