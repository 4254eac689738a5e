"""Layers of a quantized model that compute in float although all around them is rounded."""

from typing import Any

import keras


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
        self.supports_masking = layer.supports_masking

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Call the layer on `x`, or on what is negated."""
        told = {"training": training} if self.layer._call_has_training_arg else {}
        y = self.layer(-x if self.negate_input else x, **told)
        return self.activation(-y if self.negate_output else y)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Give the layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        activation = keras.activations.serialize(self.activation)
        negated = {"negate_input": self.negate_input, "negate_output": self.negate_output}
        return {**super().get_config(), **negated, "activation": activation}
