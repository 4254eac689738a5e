"""What a file says of itself: what it was made of, and how what goes in and comes out of it is to be read."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.errors import ExportError
from kpipe.export.formats import FLOAT, OWN, file_at, format_of
from kpipe.export.normalisation import normalisations
from kpipe.export.recurrent import recurrence
from kpipe.export.signature import input_names, output_names
from kpipe.fake_quant import scheme_of

Given = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Metadata of a caller; or a function that gives them for a file that is written, such as what is measured on it."""

FOUND = ("kpipe", "model", "format", "precision", "scheme", "method", "batch", "recurrent")
"""The keys that are found when a file is written, and cannot be given."""


def own_version() -> str:
    """Give kpipe's version; "0" in a checkout that is not installed."""
    try:
        return importlib.metadata.version("kpipe")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def found_of(
    model: keras.Model, format: str, precision: str, batch: int | None, unroll: bool = False, method: str = OWN
) -> dict[str, Any]:
    """Give what is known of a file when it is written: all the keys that cannot be given but version and model.

    What is float32 nobody has rounded, and its method is None.
    """
    rounded_by = None if precision == FLOAT else method
    found = {"format": format, "precision": precision, "scheme": scheme_of(model), "method": rounded_by}
    return {**found, "batch": batch, "recurrent": recurrence(model, unroll)}


def describe(model: keras.Model, found: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Put together what a file is to say of itself.

    Args:
        model: The model that it is written from.
        found: What else is known when it is written, as `found_of` gives it.
        given: What the caller adds. "labels" are the names of the classes, one for each entry of an output's last axis
            (with several outputs: output name -> names). "normalisation" is {"scale": s, "offset": b}, where the caller
            feeds x · s + b, or such a mapping for each input. Anything else is kept as it is.

    Returns:
        Plain data, as it comes back out of JSON.

    Raises:
        ExportError: When a key is one that is found, labels do not fit the outputs, or a value is no plain data.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")], name="net")
        >>> facts = describe(model, {"format": "onnx", "precision": "float32"}, {"labels": ["cat", "dog"]})
        >>> facts["model"], facts["precision"], facts["labels"]
        ('net', 'float32', ['cat', 'dog'])
    """
    if not isinstance(given, (Mapping, type(None))):
        raise ExportError(f"metadata is {given!r}; expected a mapping, such as {{'labels': ['cat', 'dog']}}.")
    given = dict(given or {})
    taken = [key for key in given if key in FOUND]
    if taken:
        raise ExportError(f"metadata holds {', '.join(taken)}, which kpipe finds itself. Choose other keys.")
    scaled = normalisations(model) + given_normalisation(model, given.pop("normalisation", None))
    if "labels" in given:
        given["labels"] = checked_labels(model, given["labels"])
    facts = {"kpipe": own_version(), "model": model.name, **found, **given}
    if scaled:
        facts["normalisation"] = scaled
    return json.loads(as_json(facts))


def as_json(facts: Mapping[str, Any]) -> str:
    """Write metadata as JSON, NumPy numbers and arrays as lists.

    Raises:
        ExportError: When a value is no plain data, or not finite.
    """
    try:
        return json.dumps(facts, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"The metadata cannot be written as JSON: {error}. Expected text, finite numbers, lists and mappings."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is no plain data")


def given_normalisation(model: keras.Model, given: Any) -> list[dict[str, Any]]:
    """Check a caller's normalisation, and give one entry for each input that it names."""
    if given is None:
        return []
    names = input_names(model)
    by_input = given
    if isinstance(given, Mapping) and set(given) <= {"scale", "offset"}:
        by_input = dict.fromkeys(names, given)
    if not isinstance(by_input, Mapping) or not all(
        name in names
        and isinstance(one, Mapping)
        and one
        and set(one) <= {"scale", "offset"}
        and _numbers(*one.values())
        for name, one in by_input.items()
    ):
        raise ExportError(
            f"metadata holds the normalisation {given!r}; expected {{'scale': ..., 'offset': ...}}, or such a mapping "
            f"for each of the inputs {', '.join(names)}."
        )
    return [
        {"input": name, "by": "caller", "scale": one.get("scale", 1.0), "offset": one.get("offset", 0.0)}
        for name, one in by_input.items()
    ]


def _numbers(*values: Any) -> bool:
    try:
        return all(np.isfinite(np.asarray(value, np.float64)).all() for value in values)
    except (TypeError, ValueError):
        return False


def checked_labels(model: keras.Model, labels: Any) -> Any:
    """Give labels as lists, or raise an `ExportError` where they do not fit the outputs."""
    names = output_names(model)
    sizes = {name: int(tensor.shape[-1]) for name, tensor in zip(names, model.outputs, strict=True) if tensor.shape[1:]}
    several = isinstance(labels, Mapping)
    by_output = dict(labels) if several else {names[0]: labels}
    if not several and len(names) > 1:
        raise ExportError(f"metadata holds labels, and the model has the outputs {', '.join(names)}: name the output.")
    for name, given in by_output.items():
        if name not in sizes:
            raise ExportError(f"metadata holds labels of the output {name!r}; the model has {', '.join(names)}.")
        if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(one, str) for one in given):
            raise ExportError(f"metadata holds the labels {given!r}; expected a list of texts, one for each class.")
        expected = (1, 2) if sizes[name] == 1 else (sizes[name],)
        if len(given) not in expected:
            raise ExportError(
                f"metadata holds {len(given)} labels; the output {name!r} has {sizes[name]} entries. Give one for each."
            )
    return {name: list(given) for name, given in by_output.items()} if several else list(labels)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a file says of itself, without running it.

    Args:
        path: A `.tflite` or `.onnx` file.

    Returns:
        What `kpipe.export` put into it, such as "kpipe", "precision", "labels", "normalisation", "stages"; empty for a
        file from elsewhere.

    Raises:
        ExportError: When the suffix is unknown, there is no such file, or it is broken.

    Example:
        >>> import tempfile
        >>> from kpipe.export.write import export
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export(model, Path(folder) / "small.onnx", metadata={"labels": ["cat", "dog"]})
        ...     read_metadata(file.path)["labels"]
        ['cat', 'dog']
    """
    path = file_at(path)
    _, form = format_of(path)
    try:
        words = form.extract(path.read_bytes())
        facts = {} if words is None else json.loads(words)
    except (ExportError, ValueError) as error:
        raise ExportError(f"The metadata of {path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise ExportError(f"The metadata of {path} are {type(facts).__name__}; expected a mapping.")
    return facts
