"""What is written beside a file: what it says of itself as JSON, and its array for microcontrollers."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from kpipe.errors import ExportError
from kpipe.export.file import File
from kpipe.export.micro import CArray, array_content, array_paths, c_array
from kpipe.export.micro.operators import WIDE
from kpipe.fake_quant import activation_bits

Text = Callable[[File, bytes], str]
"""From a file and its bytes to the text beside it."""


def companions(path: Path, format: str, precision: str, json_too: bool, array_too: bool) -> dict[Path, Text]:
    """Say what is to be written beside a file.

    Args:
        path: The file.
        format: Its format.
        precision: Its precision.
        json_too: Whether its metadata are written as JSON.
        array_too: Whether it is written as an array.

    Returns:
        Path -> what gives the text, in the order in which they are written.

    Raises:
        ExportError: When an array is asked for a format that TFLite Micro does not read, or for activations of 16 bits.

    Example:
        >>> [place.name for place in companions(Path("net.tflite"), "tflite", "int8", True, True)]
        ['net.tflite.json', 'net.cc', 'net.h']
    """
    found: dict[Path, Text] = {json_path(path): sidecar} if json_too else {}
    if not array_too:
        return found
    if format != "tflite":
        raise ExportError(f"c_array=True is for .tflite files, which TFLite Micro runs; {path} is of {format}.")
    if activation_bits(precision) == 16:
        raise ExportError(f"c_array=True is not for {precision}: {WIDE}.")
    source, header = array_paths(path)

    def array(content: bytes) -> CArray:
        made = c_array(content, path.stem)
        if array_content(made.source) != content:
            raise ExportError(f"The array {source} does not hold the bytes of {path}.")
        return made

    return {
        **found,
        source: lambda _, content: array(content).source,
        header: lambda _, content: array(content).header,
    }


def json_path(path: Path) -> Path:
    """Give the place of the JSON beside a file.

    Example:
        >>> json_path(Path("exported/digits.tflite")).name
        'digits.tflite.json'
    """
    return path.with_name(f"{path.name}.json")


def sidecar(file: File, content: bytes) -> str:
    """Write the metadata of a file as JSON, with its sizes, its agreement, and the SHA-256 that ties it to the file.

    Args:
        file: The file.
        content: Its bytes.

    Returns:
        The text.
    """
    facts = {
        **file.metadata,
        "file": {
            "name": file.path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": file.bytes,
            "gzip_bytes": file.gzip_bytes,
            "zstd_bytes": file.zstd_bytes,
        },
        "agreement": None if file.agreement is None else asdict(file.agreement),
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
