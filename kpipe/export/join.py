"""Several files as one: each of them a named signature."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.benchmark import load_runtime, random_sample, readable
from kpipe.export.file import File
from kpipe.export.formats import Format, format_of
from kpipe.export.metadata import as_json, own_version, read_metadata
from kpipe.export.sizes import gzip_size, zstd_size
from kpipe.export.trial import trust
from kpipe.export.write import check_folder, in_place

SAMPLES = 8
"""Random samples on which a signature is compared with its own file."""
ALIKE = ("precision", "method")
"""What the files of one must have in common: how they are rounded, and by whom."""


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
        path: Where to write, with the suffix .tflite; missing folders are made. It may be one of the files.

    Returns:
        The new file. Its `agreement` is None: that was proved file by file.

    Raises:
        ExportError: When there is no file, a name is no text, a file is missing, broken, of another precision or
            method, or of a format that has no signatures (.onnx), a signature answers otherwise, or `path` cannot be
            written. What was there before then stays.

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
    path = Path(path)
    form, join = _checked(files, path)
    check_folder(path)
    paths = {name: readable(file) for name, file in files.items()}
    facts = _facts(paths)
    proofs = {name: _answers(place) for name, place in paths.items()}
    content = form.embed(join({name: place.read_bytes() for name, place in paths.items()}), as_json(facts))
    with in_place(path) as (temporary,):
        temporary.write_bytes(content)
        trust(content)
        _prove(temporary, form, facts["precision"], proofs)
    sizes = {"bytes": len(content), "gzip_bytes": gzip_size(content), "zstd_bytes": zstd_size(content)}
    return File(path, facts["format"], facts["precision"], metadata=facts, **sizes)


def _checked(files: Any, path: Path) -> tuple[Format, Callable[[Mapping[str, bytes]], bytes]]:
    """Give the one format of all the files and what joins them, or raise an `ExportError`."""
    if not isinstance(files, Mapping) or not files:
        raise ExportError(f"Received {files!r}; expected a mapping, name of a signature -> file, with one or more.")
    name, form = format_of(path)
    if form.join is None:
        raise ExportError(f"Files like {path} have one graph and no signatures. Deliver one file for each model.")
    for key, file in files.items():
        if not isinstance(key, str) or not key.strip():
            raise ExportError(f"Received {key!r} as the name of a signature; expected a text such as 'encode'.")
        place = Path(file.path if isinstance(file, File) else file)
        if format_of(place)[0] != name:
            raise ExportError(f"{place}, for the signature {key!r}, is not of the same format as {path}.")
    return form, form.join


def _facts(paths: Mapping[str, Path]) -> dict[str, Any]:
    """Say what the joined file is to say of itself, or raise an `ExportError` where the files differ too much."""
    found = {}
    for name, path in paths.items():
        said = read_metadata(path)
        found[name] = {**said, "precision": format_of(path)[1].inspect(path).precision}
    first, *others = found
    for key in ALIKE:
        for other in others:
            mine, its = found[first].get(key), found[other].get(key)
            if mine != its:
                raise ExportError(
                    f"The files of the signatures {first!r} and {other!r} have the {key} {mine!r} and {its!r}; a file "
                    "is judged by one. Export both alike, or deliver two files."
                )
    common = {key: found[first].get(key) for key in ALIKE}
    name = format_of(paths[first])[0]
    return {"kpipe": own_version(), "format": name, **common, "signatures": found}


def _answers(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give random samples, and what a file answers to them."""
    with load_runtime(path) as runtime:
        inputs = random_sample(runtime, SAMPLES)
        return inputs, runtime.run(inputs)


def _prove(path: Path, form: Format, precision: str, proofs: Mapping[str, Any]) -> None:
    """Raise an `ExportError` unless each signature of a file answers as the file that it was made of."""
    found = form.inspect(path)
    if found.faults or found.precision != precision:
        raise ExportError(f"The joined file is refused: it is {found.precision}. {'; '.join(found.faults)}")
    for name, (inputs, expected) in proofs.items():
        with form.runtime(path, signature=name if len(proofs) > 1 else None) as runtime:
            answers = runtime.run(inputs)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(answers, expected, strict=True)):
            raise ExportError(f"The signature {name!r} of the joined file answers otherwise than its own file.")
