"""The precision of a file: what a model can be written in, the model that it is written from, and how it is stored."""

from collections import Counter
from collections.abc import Iterable

import keras
import numpy as np

from kpipe.errors import ExportError
from kpipe.export.formats import CONVERTER, FLOAT, FORMATS, METHODS, OWN, Format
from kpipe.fake_quant import (
    SCHEMES,
    QuantizedWeights,
    activation_bits,
    is_quantized,
    precisions,
    scheme_of,
)
from kpipe.fake_quant.affine import channel_axes, channel_scales, to_levels
from kpipe.fake_quant.schemes import STORAGE
from kpipe.layers import Weight
from kpipe.quantize import quantize
from kpipe.registry import nearest


def settled(model: keras.Model, precision: str | None, name: str, form: Format, method: str = OWN) -> str:
    """Settle the precision of a file.

    Args:
        model: The model, float or quantized.
        precision: The one that was asked for. None: the model's own.
        name: The format's name.
        form: The format.
        method: One of `METHODS`.

    Returns:
        "float32" or a name of `precisions()`.

    Raises:
        ExportError: When it is unknown, the method gives the format no such files, or the model cannot be written so.
    """
    own, known = scheme_of(model) or FLOAT, (FLOAT, *precisions())
    if method not in METHODS:
        raise ExportError(f"Unknown method {method!r}. Known: {', '.join(METHODS)}.{nearest(str(method), METHODS)}")
    if precision is not None and precision not in known:
        hint = nearest(str(precision), known)
        raise ExportError(f"Unknown precision {precision!r}. Known: {', '.join(known)}.{hint}")
    if method == OWN and precision is None:
        precision = own
    if fault := unwritten(precision, name, method):
        raise ExportError(f"{fault}.")
    precision = str(precision)
    if method == CONVERTER and own != FLOAT:
        raise ExportError(
            f"Model {model.name!r} is quantized: its file is {own}, and method='converter' rounds float models. Leave "
            "method out, or export the float model."
        )
    if method == CONVERTER or own == precision or (own == FLOAT and SCHEMES[precision].activations is None):
        return precision
    if own == FLOAT:
        raise ExportError(
            f"Model {model.name!r} is not quantized. Call kpipe.quantize(model, {precision!r}, calibration=...) first "
            f"and export what it gives{alternative(precision, form)}."
        )
    raise ExportError(f"Model {model.name!r} is quantized: its file is {own}. Export the float model as {precision}.")


def unwritten(precision: str | None, name: str, method: str) -> str:
    """Say why no file of a format is written in a precision by a method; nothing where one is.

    Args:
        precision: "float32" or a name of `precisions()`; None where none was asked for.
        name: The format's name.
        method: One of `METHODS`.

    Example:
        >>> unwritten("int16x8", "onnx", "kpipe")
        "int16x8 is written by method='converter' alone, from a float model into a .tflite file"
        >>> unwritten("int16x8", "tflite", "converter"), unwritten("int8", "onnx", "kpipe")
        ('', '')
    """
    written = FORMATS[name].precisions_by(method)
    if precision in written or (precision is None and method == OWN):
        return ""
    able = [each for each in FORMATS if precision in FORMATS[each].precisions_by(CONVERTER)]
    if method == CONVERTER and not written:
        others = ", ".join(FORMATS[each].suffix for each in FORMATS if FORMATS[each].converter is not None)
        return f"method='converter' writes {others} files; for {name} files call kpipe.quantize, and leave method out"
    if method == CONVERTER:
        return f"method='converter' writes {' or '.join(written)}; received the precision {precision!r}"
    if able:
        into = ", ".join(FORMATS[each].suffix for each in able)
        return f"{precision} is written by method='converter' alone, from a float model into a {into} file"
    return f"{name} files are written as {' or '.join(written)}, not {precision}"


def alternative(precision: str, form: Format) -> str:
    """Say that a format's converter can round to a precision too, where it can."""
    if precision not in form.precisions_by(CONVERTER):
        return ""
    return "; or let TensorFlow's converter round it: method='converter', calibration=..."


def settled_io(io: str | None, precision: str, name: str, form: Format) -> str:
    """Settle the type of a file's inputs and outputs.

    Args:
        io: The one that was asked for, "float32" or that of the activations; None for the format's usual one.
        precision: As `settled` gives it.
        name: The format's name.
        form: The format.

    Raises:
        ExportError: When it is unknown, or no such files of the format have it.
    """
    bits = activation_bits(precision)
    whole = f"int{bits}"
    possible = (whole, FLOAT) if bits and form.whole_ends else (FLOAT,)
    if io is None or io in possible:
        return io or possible[0]
    if whole in possible:
        raise ExportError(f"io is {io!r}; expected 'float32' or {whole!r}.")
    if io not in (FLOAT, *(f"int{one.activations}" for one in precisions().values() if one.activations)):
        raise ExportError(f"io is {io!r}; expected 'float32'.")
    of = f"{name} files" if bits else f"Files in {precision}"
    raise ExportError(f"{of} take and give {FLOAT}, whatever they compute in. Leave io out.")


def rounded_for(model: keras.Model, precision: str) -> keras.Model:
    """Give the model that a file of some precision computes as: a float one with its weights rounded by the scheme.

    Float models as they are where the file is float32, or float16: halves of floats need no levels.

    Args:
        model: The model, float or quantized.
        precision: As `settled` gives it.
    """
    if is_quantized(model) or precision in (FLOAT, "float16"):
        return model
    return quantize(model, precision)


def wrongly_stored(model: keras.Model, stored: Iterable[tuple[str, int]]) -> list[str]:
    """Name the kernels of a quantized model that a file does not hold as whole numbers of their bits.

    Files do not bear the names of kernels: they are told by their type and the number of their entries, and counted.
    Kernels of greatest entries and zeros alone are as exact in 8 bits as in 4, and may be stored so.

    Args:
        model: The quantized model.
        stored: Type and number of entries of what the file stores, as `Inspection.stored` has it.
    """
    left, seen = Counter(stored), set()
    faults = []
    for layer in model._flatten_layers():
        for kernel in layer.kernels() if isinstance(layer, QuantizedWeights) else ():
            value = np.asarray(kernel.variable)
            wanted = STORAGE[layer.bits]
            if (wanted, value.tobytes()) in seen:
                continue  # files hold once what is equal
            seen.add((wanted, value.tobytes()))
            types = [wanted, "int8"] if wanted == "int4" and _extremes(kernel, value) else [wanted]
            held = next(((dtype, value.size) for dtype in types if left[dtype, value.size] > 0), None)
            if held is None:
                faults.append(f"the weights of {layer.name!r} are not stored as {wanted}")
            else:
                left[held] -= 1
    return faults


def _extremes(kernel: Weight, value: np.ndarray) -> bool:
    """Say whether a kernel has no level but the greatest, the least and zero."""
    axes = channel_axes(kernel.layout, value.ndim)
    return bool(np.isin(to_levels(value, channel_scales(value, axes, 4), 4), (-7, 0, 7)).all())
