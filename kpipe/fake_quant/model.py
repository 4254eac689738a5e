"""Quantized models, which are trained and evaluated by the names that their outputs had."""

from collections.abc import Sequence
from typing import Any

import keras

from kpipe.fake_quant.layers import FakeQuant


@keras.saving.register_keras_serializable(package="kpipe")
class QuantizedModel(keras.Model):
    """A Functional model whose outputs bear the names that they had before they were rounded.

    Keras names an output after the layer that makes it, here one that rounds. Losses, metrics and targets that are
    given by name, as `{"classes": ..., "boxes": ...}`, are meant for the layers before.

    Args:
        inputs: What a Functional model takes.
        outputs: Likewise.
        name: Of the model.
        output_names: One for each output. None: those of the layers whose values are rounded there.
        **kwargs: What a Keras model takes.

    Example:
        >>> x = keras.Input((4,))
        >>> y = FakeQuant(name="classes_range")(keras.layers.Dense(2, name="classes")(x))
        >>> QuantizedModel(x, y).output_names, keras.Model(x, y).output_names
        (['classes'], ['classes_range'])
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        output_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.output_names = [*(output_names or (_maker(tensor).name for tensor in self.outputs))]

    def get_config(self) -> dict[str, Any]:
        """Carry the names beside the graph."""
        return {**super().get_config(), "output_names": [*self.output_names]}


def _maker(tensor: Any) -> Any:
    """Give the layer behind a tensor; one that only rounds what another has made is not meant."""
    operation, node_index, _ = tensor._keras_history
    if isinstance(operation, FakeQuant):
        return _maker(operation._inbound_nodes[node_index].input_tensors[0])
    return operation
