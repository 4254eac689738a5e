"""Bytes of the int8 file that a model would be exported as."""

import warnings
from contextlib import nullcontext

import keras
import numpy as np

from kpipe.copies import in_float32
from kpipe.errors import KpipeError
from kpipe.export.litert import convert as litert
from kpipe.export.metadata import as_json, describe, found_of
from kpipe.export.signature import check_exportable, output_names
from kpipe.fake_quant import bake
from kpipe.graph import Trace
from kpipe.layers import KERNEL_ROLES
from kpipe.quantize import quantize
from kpipe.structured import counts
from kpipe.structured.targets import TARGETS, Estimate, Measure, Target

PER_CHANNEL = 28
"""Bytes that an output channel of a kernel takes beside its entries: its bias (4), the scale and the zero point of its
entries (4 + 8), and those of its bias (4 + 8)."""


MARGIN = 32
"""Bytes by which the ranges of the activations may change the size: where numbers are equal, they are stored once."""


def int8_bytes(model: keras.Model) -> int:
    """Give the size of the int8 LiteRT file of a model, by writing it.

    The ranges of the activations come from random samples; those of other samples change the size by `MARGIN` at most.
    What the runtimes compute in float is written in float, and named in a warning, as `kpipe.quantize` does; so is
    half precision, which no such file has. What the
    file says of itself is counted; what `metadata=` of `kpipe.export` or a recipe's delivery adds to that comes on top.

    Args:
        model: A built Functional or Sequential float model.

    Returns:
        Bytes.

    Raises:
        KpipeError: When the model cannot be quantized or exported; it says why.

    Example:
        >>> int8_bytes(keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])) // 1024
        6
    """
    check_exportable(model)
    model = in_float32(model, "The int8 file")
    rng = np.random.default_rng(0)
    inputs = [_sample(tensor, rng) for tensor in model.inputs]
    try:
        quantized = quantize(model, calibration=inputs if len(inputs) > 1 else inputs[0])
    except KpipeError as fault:
        raise KpipeError(
            f"target={{'bytes': ...}} means those of the int8 file, and there can be none: {fault}"
        ) from fault
    content = litert.convert(bake(quantized), "int8", output_names(quantized))
    facts = describe(quantized, found_of(quantized, "tflite", "int8", batch=1))
    return len(litert.embed(content, as_json(facts)))


def _sample(tensor: keras.KerasTensor, rng: np.random.Generator) -> np.ndarray:
    """Draw normal values, or zeros where whole numbers are taken, which may be places in a table."""
    shape = 2, *tensor.shape[1:]
    return rng.normal(size=shape).astype("float32") if "float" in tensor.dtype else np.zeros(shape, tensor.dtype)


def measure_int8_bytes(original: keras.Model) -> Measure:
    """Give the function that measures candidates; what is computed in float is named for the original alone."""

    def measure(model: keras.Model) -> float:
        with nullcontext() if model is original else warnings.catch_warnings():
            if model is not original:
                for said in ("computes in float in", "computes in float32, and"):
                    warnings.filterwarnings("ignore", f".* {said} ", UserWarning)
            return int8_bytes(model)

    return measure


def estimate_int8_bytes(model: keras.Model, trace: Trace) -> Estimate:
    """Count the bytes of kernels and of what each of their channels takes beside; a constant rest is left out.

    Kernels count as whole numbers, also where the runtimes compute in float: the search measures what it chooses.
    """
    products = []
    for layer in trace.layers:
        kernels = [weight for weight in layer.weights if weight.role in KERNEL_ROLES]
        products += [counts.entries(weight) for weight in kernels]
        products += [(PER_CHANNEL, ids.reshape(-1)) for ids in layer.out if kernels]
    return counts.total(trace, products)


TARGETS("bytes")(Target("either", estimate_int8_bytes, measure_int8_bytes, "bytes of the exported int8 file", MARGIN))
