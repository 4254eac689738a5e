"""Several files as one: each of them a named signature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.benchmark import load_runtime, random_sample, readable
from kpipe.export.file import File, Inspection, Port
from kpipe.export.formats import Format, as_path, format_of
from kpipe.export.metadata import as_json, own_version, read_metadata
from kpipe.export.sizes import gzip_size, zstd_size
from kpipe.export.trial import trust
from kpipe.export.write import check_folder, in_place

SAMPLES = 8
"""Random samples on which a signature is compared with its own file."""
ALIKE = ("precision", "method")
"""What the files of one must have in common: how they are rounded, and by whom."""


@dataclass(frozen=True)
class Proof:
    """What a signature is held against: its own file, what is in that, and its answers to samples."""

    path: Path
    found: Inspection
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    samples: list[np.ndarray]
    answers: list[np.ndarray]


def join_signatures(files: Mapping[str, File | str | Path], path: str | Path) -> File:
    """Write several LiteRT files as one, in which each of them is a signature that bears its name.

    A device then loads one file and calls the parts by name, such as "encode" and "decode". What the files store is
    there once where it is the same byte for byte: models that share layers share their weights. With one file, its
    signature gets the name.

    Each signature is run beside its own file on 8 random samples, and must answer as it does, bit for bit; it agrees
    with its model as well as that file does. What the files say of themselves is kept, under "signatures".

    Args:
        files: Name of a signature -> a .tflite file or its path, with one signature, as `export` writes it. The first
            is what a runtime runs that is asked for no signature. They must be of one precision, rounded by the same
            method.
        path: Where to write, with the suffix .tflite; missing folders are made. None of the files.

    Returns:
        The new file. Its `agreement` is None: that was proved file by file.

    Raises:
        ExportError: When there is no file, a name is no text, a file is missing, broken, of another precision or
            method, keeps variables or tables, or is of a format that has no signatures (.onnx), a signature answers
            otherwise, or `path` cannot be written. What was there before then stays.

    Example:
        >>> import keras, tempfile
        >>> from kpipe.export.write import export
        >>> x, code = keras.Input((8,), name="x"), keras.Input((2,), name="code")
        >>> encode, decode = keras.layers.Dense(2, name="code"), keras.layers.Dense(8, name="x")
        >>> models = {"encode": keras.Model(x, encode(x)), "decode": keras.Model(code, decode(code))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = {name: export(model, Path(folder) / f"{name}.tflite") for name, model in models.items()}
        ...     both = join_signatures(files, Path(folder) / "autoencoder.tflite")
        ...     with load_runtime(both, signature="decode") as runtime:
        ...         runtime.run([np.zeros((3, 2), "float32")])[0].shape
        (3, 8)
    """
    path = as_path(path)
    form, join = _checked(files, path)
    check_folder(path)
    paths = {name: readable(file) for name, file in files.items()}
    content = join({name: place.read_bytes() for name, place in paths.items()})
    proofs = {name: _proof(place) for name, place in paths.items()}
    facts = _facts(proofs)
    content = form.embed(content, as_json(facts))
    with in_place(path) as (temporary,):
        temporary.write_bytes(content)
        trust(content)
        for name, proof in proofs.items():
            _prove(temporary, form, name, proof)
    sizes = (len(content), gzip_size(content))
    return File(path, facts["format"], facts["precision"], *sizes, zstd_bytes=zstd_size(content), metadata=facts)


def _checked(files: Any, path: Path) -> tuple[Format, Callable[[Mapping[str, bytes]], bytes]]:
    """Give the one format of all the files and what joins them, or raise an `ExportError`."""
    if not isinstance(files, Mapping) or not files:
        raise ExportError(f"Received {files!r}; expected a mapping, name of a signature -> file, with one or more.")
    name, form = format_of(path)
    if form.join is None:
        raise ExportError(f"Files like {path} have one graph and no signatures. Deliver one file for each model.")
    for key, file in files.items():
        if not isinstance(key, str) or not key.strip() or not key.isprintable():
            raise ExportError(f"Received {key!r} as the name of a signature; expected a text such as 'encode'.")
        if not isinstance(file, (File, str, Path)):
            raise ExportError(f"Received {file!r} for the signature {key!r}; expected a file or its path.")
        place = as_path(file)
        if format_of(place)[0] != name:
            raise ExportError(f"{place}, for the signature {key!r}, is not of the same format as {path}.")
        if place.resolve() == path.resolve():
            raise ExportError(f"{path} is the file for the signature {key!r}. Write the joined one elsewhere.")
    return form, form.join


def _facts(files: Mapping[str, Proof]) -> dict[str, Any]:
    """Say what the joined file is to say of itself, or raise an `ExportError` where the files differ too much."""
    said = {name: {"precision": file.found.precision, **read_metadata(file.path)} for name, file in files.items()}
    (first, *others) = said
    for key in ALIKE:
        for other in others:
            mine, its = said[first].get(key), said[other].get(key)
            if mine != its:
                raise ExportError(
                    f"The files of the signatures {first!r} and {other!r} have the {key} {mine!r} and {its!r}; a file "
                    "is judged by one. Export both alike, or deliver two files."
                )
    common = {key: said[first].get(key) for key in ALIKE}
    name = format_of(files[first].path)[0]
    return {"kpipe": own_version(), "format": name, **common, "signatures": said}


def _proof(path: Path) -> Proof:
    """Look into a file, and ask it for its answers to random samples."""
    with load_runtime(path) as runtime:
        inputs = random_sample(runtime, SAMPLES)
        return Proof(
            path, format_of(path)[1].inspect(path), runtime.inputs, runtime.outputs, inputs, runtime.run(inputs)
        )


def _prove(path: Path, form: Format, name: str, alone: Proof) -> None:
    """Raise an `ExportError` unless a signature of a file is, and answers, as the file that it was made of."""
    found = form.inspect(path, name)
    alike = sorted(map(str, found.operations)) == sorted(map(str, alone.found.operations))
    if not alike or (found.precision, found.faults) != (alone.found.precision, alone.found.faults):
        raise ExportError(f"The signature {name!r} of the joined file has other operations than its own file.")
    try:
        with form.runtime(path, signature=name) as runtime:
            ends, answers = (runtime.inputs, runtime.outputs), runtime.run(alone.samples)
    except ExportError as error:
        raise ExportError(f"The signature {name!r} of the joined file does not run: {error}") from error
    same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(answers, alone.answers, strict=True))
    if not same or ends != (alone.inputs, alone.outputs):
        raise ExportError(f"The signature {name!r} of the joined file answers otherwise than its own file.")
