"""What a scan has measured so far, kept in a file, so that one that was broken off goes on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.atomic import replace_atomically
from kpipe.data import weighted_batches
from kpipe.errors import KpipeError
from kpipe.graph import Trace
from kpipe.structured.fingerprint import told

KIND = "kpipe sensitivity"
"""What such a file says of itself."""


@dataclass
class ScanRecord:
    """Keep the figures of a scan, in a file if there is one.

    Args:
        path: The file, written anew and whole after each figure; None: keep them in memory.
        scan: What was scanned and how.
        values: Name of the group -> number of channels that went, as text -> the figure.
    """

    path: Path | None
    scan: Mapping[str, str]
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, scan: Mapping[str, str]) -> "ScanRecord":
        """Go on with the file of the same scan, or begin one.

        Raises:
            KpipeError: When there is a file that cannot be read, or one of another scan.
        """
        path = Path(path)
        if not path.exists():
            return cls(path, scan)
        try:
            found = json.loads(path.read_text())
            known = {name: {n: float(v) for n, v in one.items()} for name, one in found["values"].items()}
            before = found[KIND]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise KpipeError(
                f"{str(path)!r} holds no scan that sensitivity wrote ({type(fault).__name__}: {fault}). Give another "
                "path, or remove the file."
            ) from fault
        other = [name for name in scan if before.get(name) != scan[name]]
        if other:
            differ = ", ".join(f"{name} {before.get(name)!r} and not {scan[name]!r}" for name in other)
            raise KpipeError(
                f"{str(path)!r} is of another scan: it has {differ}. Give another path, or remove the file. Data that "
                "are shuffled come in another order each time, and count as other data."
            )
        return cls(path, scan, known)

    def get(self, group: str, removed: int) -> float | None:
        """Give the figure of a group without so many channels, None when it is not known."""
        return self.values.get(group, {}).get(str(removed))

    def put(self, group: str, removed: int, value: float) -> None:
        """Keep a figure.

        Raises:
            KpipeError: When the file cannot be written.
        """
        self.values.setdefault(group, {})[str(removed)] = value
        if self.path is None:
            return
        try:
            with replace_atomically(self.path) as partial:
                partial.write_text(json.dumps({KIND: dict(self.scan), "values": self.values}, indent=1) + "\n")
        except OSError as fault:
            raise KpipeError(f"Cannot write the scan to {str(self.path)!r}: {fault}.") from fault


def identity(model: keras.Model, traced: Trace, data: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """Say what is scanned and how: digests of the model and of the data, and the settings as text.

    Args:
        model: The model: what its layers are, their settings and their weights count.
        traced: Its trace.
        data: The data, in their order.
        settings: Name -> value; see `kpipe.structured.fingerprint`.

    Raises:
        KpipeError: When a setting is an object that cannot be told from others.

    Example:
        >>> from kpipe.graph import trace
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> found = identity(net, trace(net), np.zeros((3, 2)), {"seed": 0, "metric": max})
        >>> sorted(found), found["metric"], len(found["model"])
        (['data', 'metric', 'model', 'seed'], 'builtins.max', 64)
    """
    parts = {"model": _of_model(model, traced), "data": _of_data(data)}
    digests = {name: hashlib.sha256() for name in parts}
    for name, pieces in parts.items():
        for piece in pieces:
            digests[name].update(piece)
    return {name: one.hexdigest() for name, one in digests.items()} | {
        name: value if isinstance(value, str) else told(value) for name, value in settings.items()
    }


def _of_model(model: keras.Model, traced: Trace) -> Iterator[bytes]:
    for layer in traced.layers:
        settings = layer.layer.get_config() if isinstance(layer.layer, keras.Layer) else {}
        yield f"{layer.path} {told(type(layer.layer))} {told(settings)}".encode()
    for variable in model.variables:
        yield np.asarray(variable).tobytes()


def _of_data(data: Any) -> Iterator[bytes]:
    for batch in weighted_batches(data):
        for leaf in keras.tree.flatten(batch):
            array = np.asarray(leaf)
            yield f"{array.shape} {array.dtype}".encode()
            yield repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
