"""Quantized models, which are trained and evaluated by the names that their outputs had."""

from collections.abc import Sequence
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.fake_quant.bias import ROUNDING, maker_of


@keras.saving.register_keras_serializable(package="kpipe")
class QuantizedModel(keras.Model):
    """A Functional model whose outputs bear the names that they had before they were rounded.

    Keras names an output after the layer that makes it, here one that rounds. Losses, metrics and targets that are
    given by name, as `{"classes": ..., "boxes": ...}`, are meant for the layers before.

    Args:
        inputs: What a Functional model takes.
        outputs: Likewise.
        name: Of the model.
        output_names: One for each output. None, as in `keras.models.clone_model`: those of the layers whose values are
            rounded there, which may lie within a model that was written out.
        **kwargs: What a Keras model takes.

    Raises:
        KpipeError: When there are not as many names as outputs.

    Example:
        >>> from kpipe.fake_quant import FakeQuant
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
        names = names_behind(self.outputs) if output_names is None else [*output_names]
        if len(names) != len(self.outputs):
            raise KpipeError(f"output_names are {names}; expected {len(self.outputs)}, one for each output.")
        self.output_names = names

    def get_config(self) -> dict[str, Any]:
        """Carry the names beside the graph."""
        return {**super().get_config(), "output_names": [*self.output_names]}


def names_behind(outputs: Sequence[Any]) -> list[str]:
    """Name for each output the layer that makes it; one that only rounds what another has made is not meant.

    Example:
        >>> from kpipe.fake_quant import FakeQuant
        >>> y = keras.layers.Dense(2, name="classes")(keras.Input((4,)))
        >>> names_behind([y, FakeQuant(name="classes_range")(y)])
        ['classes', 'classes']
    """
    return [_maker(tensor).name for tensor in outputs]


def _maker(tensor: Any) -> Any:
    operation, inputs = maker_of(tensor)
    if isinstance(operation, ROUNDING):
        return _maker(inputs[0])
    return operation
