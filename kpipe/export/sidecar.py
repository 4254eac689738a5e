"""The JSON beside a file: what the file says of itself, and what was found when it was written."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from kpipe.export.file import File


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
