"""LiteRT (.tflite): written by TensorFlow's converter, run by ai-edge-litert."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ExportError
from kpipe.export.formats import FLOAT, FORMATS, Converter, Format
from kpipe.export.litert.flatbuffer import read, write
from kpipe.export.litert.inspect import inspect
from kpipe.export.litert.metadata import embed, extract
from kpipe.export.litert.pooling import without_volumes
from kpipe.export.litert.runtime import load
from kpipe.export.litert.signatures import join
from kpipe.export.litert.text import first_lines, operator_names, text
from kpipe.export.litert.weights import narrow_weights, store_weights
from kpipe.export.quiet import quiet
from kpipe.export.recurrent import is_recurrent
from kpipe.export.runtime import batches_of
from kpipe.export.signature import input_names, serving
from kpipe.fake_quant import CONVERTED, SCHEMES, activation_bits
from kpipe.fake_quant.affine import HALF

KERNELS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}
"""Precision -> the converter's name for the kernels that compute in it."""
BRANCHES = ("WHILE", "IF", "CALL_ONCE")
"""Operations whose graphs the converter's calibration does not survive: it ends the process."""
BIASED = {**dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (0, 1, 2)), "TRANSPOSE_CONV": (2, 1, 3)}
"""Operation that adds a bias to products -> the places of what comes in, the weight, and the bias among its inputs."""
SAME_GRID = 1e-3
"""How far the step of a bias may be from that of the products, relatively."""


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
    whole_numbers = activation_bits(precision) is not None
    with converter_of(model, names, batch) as converter:
        if whole_numbers or precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if whole_numbers and io != FLOAT:
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
        content = converter.convert()
    if precision in SCHEMES and SCHEMES[precision].weights < HALF:
        if not whole_numbers:
            content = store_weights(content)
        elif SCHEMES[precision].weights < 8:
            content = narrow_weights(content)
    return in_order(content, input_names(model), names)


def convert_calibrated(
    model: keras.Model, precision: str, names: list[str], batch: int | None, io: str, inputs: Sequence[np.ndarray]
) -> bytes:
    """Let TensorFlow's converter round a float model as it writes it, with the ranges that it finds on samples.

    What has no kernel of whole numbers it leaves in float, between operations that turn one into the other.

    Args:
        model: A float model.
        precision: A name of `CONVERTED`.
        names: Names of the outputs, in the order of `model.outputs`.
        batch: The size; None leaves it open.
        io: "float32", or the type of the activations, of inputs and outputs.
        inputs: Samples that the ranges are found on, one array an input.

    Returns:
        The file's content; its inputs and outputs are in the Keras order.

    Raises:
        ExportError: When the converter refuses the model, its calibration would not survive it, or a bias is on a wrong
            grid.
    """
    keys = input_names(model)
    with converter_of(model, names, batch) as converter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning)
        branches = sorted(set(BRANCHES) & set(operator_names(read(converter.convert()))))
        if branches:
            raise ExportError(
                f"method='converter' cannot calibrate model {model.name!r}: its file has {', '.join(branches)}, as of "
                "loops over steps, which end the calibration of TensorFlow's converter. Write recurrent layers out by "
                "unroll=True, or round by kpipe.quantize, which leaves them in float."
            )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [KERNELS[precision], tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.representative_dataset = lambda: (
            dict(zip(keys, arrays, strict=True)) for arrays, _ in batches_of(inputs, batch or 1)
        )
        if io != FLOAT:
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
        content = converter.convert()
    if wrong := misplaced_biases(content):
        raise ExportError(
            f"The converter gave {', '.join(wrong)} of model {model.name!r} a bias on the grid of another input, as it "
            "does in int16x8 with layers whose biases are equal, or one called on several inputs; this file is "
            f"{precision}. Call such layers once, train the biases apart, take int8, or round by kpipe.quantize."
        )
    return in_order(content, keys, names)


@contextlib.contextmanager
def converter_of(model: keras.Model, names: list[str], batch: int | None) -> Iterator[Any]:
    """Give TensorFlow's converter of a model; what it raises becomes an `ExportError`."""
    model = without_volumes(model)
    serve, specs = serving(model, names, batch)
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            archive = keras.export.ExportArchive()
            archive.track(model)
            archive.add_endpoint("serve", serve, input_signature=specs)
            archive.write_out(folder, verbose=False)
            yield tf.lite.TFLiteConverter.from_saved_model(folder)
        except ExportError:
            raise
        except Exception as error:
            how = "" if batch else " with an open batch"
            loops = not batch and any(map(is_recurrent, model._flatten_layers()))
            hint = " A loop of a recurrent layer needs a batch of one size; unroll=True writes it out." if loops else ""
            raise ExportError(
                f"LiteRT's converter refuses model {model.name!r}{how}: {first_lines(error)}{hint}"
            ) from error


def misplaced_biases(content: bytes) -> list[str]:
    """Name the operations whose bias lies on another grid than their products: step of input · step of weight.

    A bias of zeros is right on any grid.
    """
    model = read(content)
    kinds, wrong = operator_names(model), []
    for graph in model.subgraphs:
        for operator in graph.operators:
            places = BIASED.get(kinds[operator.opcodeIndex], ())
            found = [int(operator.inputs[place]) for place in places if place < len(operator.inputs)]
            if len(found) < 3 or min(found) < 0:
                continue
            tensors = [graph.tensors[each] for each in found]
            levels = model.buffers[tensors[-1].buffer].data
            steps = [None if each.quantization is None else each.quantization.scale for each in tensors]
            if any(each is None for each in steps) or (levels is not None and not np.any(levels)):
                continue
            taken, weight, bias = (np.asarray(each) for each in steps)
            if not np.allclose(bias, taken * weight, rtol=SAME_GRID, atol=0):
                wrong.append(text(graph.tensors[operator.outputs[0]].name).split(";")[0])
    return wrong


def in_order(content: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Put a file's inputs and outputs into the given order; the converter sorts them by name."""
    if len(inputs) == len(outputs) == 1:
        return content
    model = read(content)
    signature = model.signatureDefs[0]
    graph = model.subgraphs[signature.subgraphIndex]
    for names, maps, end in ((inputs, signature.inputs, "inputs"), (outputs, signature.outputs, "outputs")):
        tensors = {text(entry.name): entry.tensorIndex for entry in maps}
        setattr(graph, end, np.asarray([tensors[name] for name in names], np.int32))
    return write(model)


FORMATS("tflite")(
    Format(
        suffix=".tflite",
        precisions=(FLOAT, *SCHEMES),
        convert=convert,
        runtime=load,
        inspect=inspect,
        embed=embed,
        extract=extract,
        batch=1,
        whole_ends=True,
        converter=Converter(tuple(CONVERTED), convert_calibrated),
        join=join,
    )
)
