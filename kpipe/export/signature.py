"""The one signature that every file is written with: named inputs, named outputs."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kpipe.errors import ExportError
from kpipe.export.additions import broadcast_additions
from kpipe.fake_quant import QuantizedModel, names_behind
from kpipe.graph import functional


def sanitised(names: list[str]) -> list[str]:
    """Make names that every format takes and that differ: letters, digits and "_", no digit first.

    Example:
        >>> sanitised(["block/fc:0", "logits", "logits", "2nd"])
        ['block_fc_0', 'logits', 'logits_1', '_2nd']
    """
    clean: list[str] = []
    for name in names:
        base = candidate = re.sub(r"^(?=\d)", "_", re.sub(r"\W", "_", name, flags=re.ASCII))
        number = 0
        while candidate in clean:
            number += 1
            candidate = f"{base}_{number}"
        clean.append(candidate)
    return clean


def check_exportable(model: Any) -> None:
    """Raise an `ExportError` when a model has no fixed signature to be exported through."""
    if not isinstance(model, keras.Model):
        raise ExportError(f"Expected a Keras 3 model. Received: {type(model).__module__}.{type(model).__name__}.")
    if not model.built:
        raise ExportError(f"Model {model.name!r} is not built. Call it once on data, or give it a keras.Input first.")
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ExportError(
            f"Model {model.name!r} ({type(model).__name__}) has no fixed inputs and outputs. Make it Functional: "
            "inputs = keras.Input(...); keras.Model(inputs, model.call(inputs))."
        )
    packed = [layer for layer in model._flatten_layers() if layer.quantization_mode is not None]
    if packed:
        raise ExportError(
            f"Keras has quantized layer {packed[0].name!r} to {packed[0].quantization_mode}, which no file holds. Give "
            "the model from before model.quantize(): kpipe.quantize makes one whose files do."
        )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ExportError(
                f"Input {tensor.name!r} has an open size, {tensor.shape}. Rebuild the model with a fixed input shape."
            )


def checked_batch(batch: Any) -> int | None:
    """Give the size of a batch, or raise an `ExportError` unless it is None or a whole number of at least 1."""
    if batch is None or (isinstance(batch, int) and not isinstance(batch, bool) and batch > 0):
        return batch
    raise ExportError(f"Received batch={batch!r}; expected None for any size, or a whole number of at least 1.")


def input_names(model: keras.Model) -> list[str]:
    """Name the inputs of a file, in the order of `model.inputs`: by the keys of a dict of them, else by themselves.

    Example:
        >>> inputs = {name: keras.Input((3,), name=name) for name in ("wide", "deep")}
        >>> model = keras.Model(inputs, {"sum": keras.layers.Add()([inputs["wide"], inputs["deep"]])})
        >>> input_names(model), output_names(model)
        (['deep', 'wide'], ['sum'])
    """
    return sanitised(_keyed(model, "input", [tensor.name for tensor in model.inputs]))


def output_names(model: keras.Model) -> list[str]:
    """Name the outputs of a file, in the order of `model.outputs`: by the keys of a dict, else as the model does."""
    names = model.output_names if isinstance(model, QuantizedModel) else names_behind(model.outputs)
    return sanitised(_keyed(model, "output", names))


def _keyed(model: keras.Model, end: str, otherwise: Sequence[str]) -> list[str]:
    """Name the tensors at one end of a model by their way through dicts, or otherwise where there is none."""
    paths = [path for path, _ in keras.tree.flatten_with_path(getattr(functional(model), f"_{end}s_struct"))]
    keyed = [any(isinstance(step, str) for step in path) for path in paths]
    ways = ("_".join(map(str, path)) for path in paths)
    return [way if known else name for way, known, name in zip(ways, keyed, otherwise, strict=True)]


def serving(
    model: keras.Model, names: list[str] | None = None, batch: int | None = 1
) -> tuple[Callable[..., dict[str, Any]], list[tf.TensorSpec]]:
    """Give the function that a file is written from, and the specification of its arguments.

    Args:
        model: A model that passed `check_exportable`.
        names: Names of the outputs. None: `output_names(model)`.
        batch: Size of the batch axis; None leaves it open.

    Returns:
        A function of one tensor an input to a dict of named outputs, and one TensorSpec an input.
    """
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    outputs = names or output_names(model)

    def serve(*tensors: Any) -> dict[str, Any]:
        packed = keras.tree.pack_sequence_as(structure, list(tensors))
        packed = packed[0] if isinstance(model, keras.Sequential) else packed
        with broadcast_additions():
            return dict(zip(outputs, keras.tree.flatten(model(packed, training=False)), strict=True))

    specs = [
        tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, input_names(model), strict=True)
    ]
    return serve, specs
