"""LiteRT (.tflite): written by TensorFlow's converter, run by ai-edge-litert."""

import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ExportError
from kpipe.export.formats import FLOAT, FORMATS, Format
from kpipe.export.litert.inspect import inspect
from kpipe.export.litert.metadata import embed, extract
from kpipe.export.litert.runtime import LiteRTRuntime
from kpipe.export.litert.text import first_lines, text
from kpipe.export.litert.weights import narrow_weights, store_weights
from kpipe.export.quiet import quiet
from kpipe.export.signature import input_names, serving
from kpipe.fake_quant import SCHEMES
from kpipe.fake_quant.affine import HALF


def convert(model: keras.Model, precision: str, names: list[str], batch: int | None = 1, io: str = "int8") -> bytes:
    """Write a model as a LiteRT file for batches of one size.

    Args:
        model: The model; of a scheme's precision one that was baked.
        precision: "float32"; "float16": weights are stored so, computation stays in float32; "int8", "w4a8": computed
            in whole numbers; "int8_dynamic", "int4": weights are stored so, and the kernels of dense layers and
            convolutions round what comes in to 8 bits, and give floats.
        names: Names of the outputs, in the order of `model.outputs`.
        batch: The size; None leaves it open.
        io: "int8" or "float32" inputs and outputs of a file in whole numbers; all others have floats.

    Returns:
        The file's content; its inputs and outputs are in the Keras order.

    Raises:
        ExportError: When the converter refuses the model.
    """
    whole_numbers = precision in SCHEMES and SCHEMES[precision].activations is not None
    serve, specs = serving(model, names, batch)
    with tempfile.TemporaryDirectory() as folder, quiet():
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if whole_numbers or precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if whole_numbers and io == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.int8
        try:
            content = converter.convert()
        except Exception as error:
            how = "" if batch else " with an open batch"
            raise ExportError(f"LiteRT's converter refuses model {model.name!r}{how}: {first_lines(error)}") from error
    if precision in SCHEMES and SCHEMES[precision].weights < HALF:
        if not whole_numbers:
            content = store_weights(content)
        elif SCHEMES[precision].weights < 8:
            content = narrow_weights(content)
    return in_order(content, input_names(model), names)


def in_order(content: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Put a file's inputs and outputs into the given order; the converter sorts them by name."""
    if len(inputs) == len(outputs) == 1:
        return content
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    signature = model.signatureDefs[0]
    graph = model.subgraphs[signature.subgraphIndex]
    for names, maps, end in ((inputs, signature.inputs, "inputs"), (outputs, signature.outputs, "outputs")):
        tensors = {text(entry.name): entry.tensorIndex for entry in maps}
        setattr(graph, end, np.asarray([tensors[name] for name in names], np.int32))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


FORMATS("tflite")(
    Format(".tflite", (FLOAT, *SCHEMES), convert, LiteRTRuntime, inspect, embed, extract, 1, ("int8", FLOAT))
)
