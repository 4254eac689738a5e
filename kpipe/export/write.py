"""A model written as a file: compared, inspected, and only then moved into place."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kpipe.atomic import replace_together
from kpipe.copies import float32_policy, in_float32
from kpipe.data import CALIBRATION_SAMPLES, samples
from kpipe.errors import ExportError
from kpipe.export.file import Agreement, File
from kpipe.export.formats import CONVERTER, FORMATS, OWN, as_path, format_of
from kpipe.export.metadata import Given, as_json, describe, found_of
from kpipe.export.precision import rounded_for, settled, settled_io, wrongly_stored
from kpipe.export.recurrent import unrolled
from kpipe.export.sidecar import companions
from kpipe.export.signature import check_exportable, checked_batch, output_names
from kpipe.export.sizes import gzip_size, zstd_size
from kpipe.export.tolerance import check
from kpipe.export.trial import trust
from kpipe.export.verify import DATA_SAMPLES, check_batches, compare
from kpipe.fake_quant import bake, float_layers, is_quantized, rounded_layers


def export(
    model: keras.Model,
    path: str | Path,
    precision: str | None = None,
    data: Any = None,
    metadata: Given | None = None,
    c_array: bool = False,
    batch: int | Literal["own"] | None = "own",
    unroll: bool = False,
    io: str | None = None,
    method: str = OWN,
    calibration: Any = None,
) -> File:
    """Write a model as a LiteRT or ONNX file and prove it.

    The file is written under another name beside its place, loaded in its runtime, compared with the Keras model, and
    looked into; only then it takes its place, and what is written beside it with it. When anything fails, nothing is
    left behind and what was there before stays.

    The file says what it is: version, model, format, precision, scheme, and the scaling of inputs that its first layers
    do. `read_metadata` reads it. No runtime does: with and without, the outputs are the same bit for bit.

    Of a model that computes in half precision (mixed_float16, ...) the file computes in float32, and a warning says so:
    it is written from, and compared with, the copy that `kpipe.to_float32` makes.

    Args:
        model: A built Keras model with fixed inputs; for a file that computes in whole numbers, such as int8, one made
            by `kpipe.quantize`, or a float one that the converter is to round. It is not changed.
        path: Where to write; the suffix says the format, .tflite or .onnx. Missing folders are made.
        precision: "float32" or a scheme of `kpipe.quantize`. None: that by which the model is quantized, else float32.
            A float model is rounded here where its weights alone are: "float16", "int8_dynamic". Or, by
            method="converter", "int8" or "int16x8".
        data: Samples to compare on, anything that `model.fit` takes. None: those of the calibration, where it takes
            one, else seeded random ones.
        metadata: What else the file is to say: "labels" (a name for each class; with several outputs, output name ->
            names), "normalisation" ({"scale", "offset"} by which the caller turns what is measured into what goes in),
            and whatever else is plain data; or a function that gives these for the path of the written file. All of it
            then stands beside the file too, in `<name>.json`.
        c_array: Whether to write the file as a C++ array too, for TFLite Micro: `<stem>.cc` and `<stem>.h` beside a
            .tflite file, with its operators and an estimate of the arena.
        batch: How many samples the file takes at once; None for any number. "own" is the format's: one for LiteRT, any
            for ONNX.
        unroll: Whether to write recurrent layers out step by step, and no loop. For LiteRT that is faster on short
            sequences, takes more room, and serves an open batch, which a loop does not. ONNX has operators of its own
            for LSTM layers in batches of any size, which are smaller and faster than either.
        io: Whether a LiteRT file in whole numbers takes and gives these ("int8", or "int16" where it is int16x8) or
            "float32"; None for whole numbers. Where it is float32 the first operation rounds, with the scale that whole
            inputs would have. All other files, and those of ONNX, have float32 inputs and outputs.
        method: Who rounds. "kpipe": the model computes as the file will. "converter": TensorFlow's converter rounds a
            float model as it writes it (post-training quantization; LiteRT alone), which serves layers that
            `kpipe.quantize` refuses or leaves in float, and "int16x8": activations of 16 bits for weights of 8, slow
            where the runtime has only reference kernels. What it leaves in float is named in a warning. No model
            computes as such a file does, so that it is held against the float model, as `verify` tells.
        calibration: Inputs like those the model will see, on which the converter finds its ranges; anything that
            `model.fit` takes, of which at most 512 samples are used.

    Returns:
        The file with its sizes and how it agrees with the model.

    Raises:
        ExportError: When the suffix or precision is unknown, the folder cannot be written, the converter refuses the
            model, weights of the model are not finite, a file in whole numbers would hold a float operation, inputs
            and outputs cannot be as asked, the metadata do not fit, TFLite Micro lacks an operator of an array, the
            method does not go with the model, precision, format or calibration, or the file does not agree (see
            `verify`).
        KpipeError: When the model computes in half precision and cannot be copied in float32.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export(model, Path(folder) / "small.onnx")
        >>> file.format, file.precision, file.agreement.samples
        ('onnx', 'float32', 64)
    """
    path = as_path(path)
    name, form = format_of(path)
    check_exportable(model)
    names = output_names(model)
    precision = settled(model, precision, name, form, method)
    io = settled_io(io, precision, name, form)
    beside = companions(path, name, precision, metadata is not None, c_array)
    for place in (path, *beside):
        check_folder(place)
    model = in_float32(model, "The file")
    ranges_from = calibration_of(model, calibration, method)
    if data is not None:  # read once, before any work: it may be a generator, and it may be wrong
        data = packed(samples(data, model, limit=DATA_SAMPLES, what="verification"))
    elif method == CONVERTER:
        data = packed(ranges_from)
    batch = form.batch if batch == "own" else checked_batch(batch)
    with float32_policy():
        if method == OWN:
            model = rounded_for(model, precision)
        stepped = unrolled(model) if unroll else model
        baked = bake(stepped) if is_quantized(model) else stepped
    found = found_of(model, name, precision, batch, unroll, method)
    facts = describe(model, found, None if callable(metadata) else metadata)
    if method == CONVERTER and form.converter is not None:
        content = form.converter.convert(baked, precision, names, batch, io, ranges_from)
    else:
        content = form.convert(baked, precision, names, batch, io)
    with in_place(path, *beside) as (temporary, *others):

        def settle() -> Agreement:
            written = form.embed(content, as_json(facts))
            temporary.write_bytes(written)
            trust(written)
            return prove(temporary, name, precision, model, data, method)

        agreement = settle()
        if callable(metadata):  # it may measure the file, which was proved; what it says goes in, and is proved again
            facts = describe(model, found, metadata(temporary))
            agreement = settle()
        written = temporary.read_bytes()
        sizes = {"bytes": len(written), "gzip_bytes": gzip_size(written), "zstd_bytes": zstd_size(written)}
        file = File(path, name, precision, agreement=agreement, metadata=facts, beside=tuple(beside), **sizes)
        for other, text_of in zip(others, beside.values(), strict=True):
            other.write_text(text_of(file, written), encoding="utf-8")
        if method == CONVERTER and (floats := form.inspect(temporary).floats):
            named = "; ".join(map(str, floats))
            said = f"The {precision} file of {model.name!r} is not all whole numbers: {named}."
            warnings.warn(said, UserWarning, stacklevel=2)
    return file


def calibration_of(model: keras.Model, calibration: Any, method: str) -> list[np.ndarray]:
    """Give the samples on which a converter finds its ranges; none where kpipe rounds."""
    if method == CONVERTER and calibration is None:
        raise ExportError(
            "method='converter' needs calibration data: calibration=..., some hundred inputs like those the model will "
            "see."
        )
    if method != CONVERTER and calibration is not None:
        raise ExportError(
            "calibration is what method='converter' finds ranges on; kpipe.quantize takes that of kpipe's own way. "
            "Leave it out, or give the method."
        )
    return [] if calibration is None else samples(calibration, model, limit=CALIBRATION_SAMPLES, what="calibration")


def packed(inputs: list[np.ndarray]) -> Any:
    """Give the inputs of a model as it takes them: one alone, or a list."""
    return inputs[0] if len(inputs) == 1 else inputs


def prove(path: Path, name: str, precision: str, model: keras.Model, data: Any, method: str = OWN) -> Agreement:
    """Inspect a written file and compare it with its model; raise an `ExportError` at a fault.

    What a converter leaves in float is none: no model says what was to be rounded.
    """
    form, converted = FORMATS[name], method == CONVERTER
    found = form.inspect(path)
    islands, rounded = (float_layers(model), rounded_layers(model)) if found.floats and not converted else ({}, None)
    faults = list(found.faults)
    faults += [str(one) for one in found.floats if not converted and not one.belongs_to(islands, rounded)]
    faults += wrongly_stored(model, found.stored) if is_quantized(model) else []
    if found.precision != precision and (converted or is_quantized(model) or has_kernels(model)):
        faults.append(f"it was to be {precision} but is {found.precision}")
    if faults:
        raise ExportError(
            f"The {precision} file of model {model.name!r} is refused: {'; '.join(faults)}. "
            "Replace the layers that lead to these operations, or exclude them from kpipe.quantize."
        )
    with form.runtime(path) as runtime:
        agreement = compare(runtime, model, data, twin=not converted)
        check_batches(runtime, model)
    check(agreement, precision, f"The {name} file of model {model.name!r}", found.hybrids)
    return agreement


def has_kernels(model: keras.Model) -> bool:
    """Say whether a model has a weight with several axes: only by these a file shows how its weights are stored."""
    return any(len(variable.shape) > 1 for variable in model.weights)


def check_folder(path: Path) -> None:
    """Raise an `ExportError` unless a file can be written at `path`."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder; expected the path of a file.")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise ExportError(f"{path} cannot be written: {folder} is a file, not a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"{path} cannot be written: no permission to write in {folder}. Choose another folder.")


@contextlib.contextmanager
def in_place(path: Path, *beside: Path) -> Iterator[list[Path]]:
    """Give temporary names that take the places of a file and those beside it at the end, all or none of them.

    On failure they are removed, and new folders too.
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_together([path, *beside]) as temporaries:
            yield temporaries
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ExportError(f"{path} cannot be written: {error}.") from error
        raise
