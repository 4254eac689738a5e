"""What a file holds: its operations in their order, with the constants that each of them brings."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.assembly import READERS, Node, assemble
from kpipe.export.benchmark import readable
from kpipe.export.file import File, FloatOperation, Port
from kpipe.export.formats import format_of
from kpipe.export.layout import aligned, port_line, shortened
from kpipe.export.sizes import sizes_at_once


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        path: The file.
        format: The name of its format.
        precision: How it computes or stores its weights, as `inspect` says.
        inputs: What goes in.
        outputs: What comes out.
        nodes: Its operations, in the order in which they run.
        floats: Of a file that computes in whole numbers, what it computes in float.
        faults: Why no runtime without an extension computes it.
        bytes: Its size.
        gzip_bytes: Its size when compressed with gzip.
        zstd_bytes: Its size when compressed with Zstandard; None above 4 MB, where that takes long.
    """

    path: Path
    format: str
    precision: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    floats: tuple[FloatOperation, ...]
    faults: tuple[str, ...]
    bytes: int
    gzip_bytes: int
    zstd_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data, the path as text."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        sizes = ((self.bytes, ""), (self.gzip_bytes, " with gzip"), (self.zstd_bytes, " with zstd"))
        weighed = [f"{size / 1000:,.1f} KB{how}" for size, how in sizes if size is not None]
        lines = [
            f"{self.path}: {self.format}, {self.precision}, {len(self.nodes)} operations",
            ", ".join(weighed),
            "",
            *(port_line("input", port) for port in self.inputs),
            *(port_line("output", port) for port in self.outputs),
            "",
            *_table(self.nodes),
        ]
        for title, found in (("computed in float:", self.floats), ("needs an extension:", self.faults)):
            lines += ["", title, *(f"  {one}" for one in found)] if found else []
        return "\n".join(lines)


def _table(nodes: Sequence[Node]) -> list[str]:
    head = ("", "operation", "name", "types", "gives", "constants KB", "weight", "zeros", "values")
    rows = []
    for n, node in enumerate(nodes, start=1):
        weight = node.weight
        types = f"{_counted(node.inputs)} → {_counted(node.outputs)}"
        shape = "×".join("?" if size is None else str(size) for size in node.shape)
        size = f"{node.bytes / 1000:,.2f}" if node.bytes else ""
        facts = ("", "", "")
        if weight is not None:
            kernel = "×".join(map(str, weight.shape))
            facts = (kernel, "" if weight.zeros is None else f"{weight.zeros:.1%}", f"{weight.values:,}")
        rows.append((str(n), node.name, shortened(node.scope), types, shape, size, *facts))
    total = sum(node.bytes for node in nodes)
    rows.append(("", "", "", "", "in all", f"{total / 1000:,.2f}", "", "", ""))
    return aligned([head, *rows], right=(0, 5, 7, 8))


def _counted(types: Sequence[str]) -> str:
    """Write types in a row, like neighbours counted.

    Example:
        >>> _counted(["float32", "float32", "int32"])
        'float32 ×2, int32'
    """
    runs = [(name, len(list(group))) for name, group in itertools.groupby(types)]
    return ", ".join(name if count == 1 else f"{name} ×{count}" for name, count in runs)


def dissect(file: File | str | Path) -> Contents:
    """Read what a file holds: each operation with its types, the bytes, zeros and values of its constants, and sizes.

    Weights that are stored rounded and unpacked by operations of their own belong to the operation that takes them.

    Args:
        file: A .tflite or .onnx file.

    Returns:
        The contents; printed, they are tables.

    Raises:
        ExportError: When the file is missing, of an unknown format, or broken.

    Example:
        >>> import keras, tempfile
        >>> from kpipe.export.write import export
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     contents = dissect(export(model, Path(folder) / "small.tflite"))
        >>> contents.nodes[0].name, contents.nodes[0].weight.shape
        ('FULLY_CONNECTED', (2, 4))
    """
    path = readable(file)
    name, form = format_of(path)
    found = form.inspect(path)
    try:
        reading = READERS[name](path)
        nodes = assemble(reading)
    except Exception as error:  # what is broken inside fails anywhere
        raise ExportError(f"{path} cannot be looked into: {type(error).__name__}: {error}") from error
    content = path.read_bytes()
    ends = (reading.inputs, reading.outputs)
    return Contents(path, name, found.precision, *ends, nodes, found.floats, found.faults, *sizes_at_once(content))
