"""What a scan of roundings found: a table of layers, the worst first."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kpipe.atomic import replace_atomically
from kpipe.errors import KpipeError


@dataclass(frozen=True)
class LayerDamage:
    """Hold what a model is worth with one layer rounded.

    Args:
        layer: Path of the layer.
        bits: Of its weights.
        weights: How many it has.
        value: The metric with this layer alone rounded.
        damage: How much worse that is than the float model; below 0 where it is better.
    """

    layer: str
    bits: int
    weights: int
    value: float
    damage: float


@dataclass(frozen=True)
class QuantizationSensitivity:
    """Hold a scan of roundings; printed, it is a table with the most damaging layer first.

    Args:
        metric: "distance", "accuracy", "loss" or the name of a function.
        scheme: By which layers were rounded.
        baseline: The metric of the float model.
        layers: One entry for each layer, the most damaging first.
    """

    metric: str
    scheme: str
    baseline: float
    layers: tuple[LayerDamage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the scan as plain data."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the scan as JSON.

        Raises:
            KpipeError: When the file cannot be written.
        """
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        rows = [("layer", "bits", "weights", self.metric, "damage")]
        for row in self.layers:
            rows.append((row.layer, str(row.bits), f"{row.weights:,}", f"{row.value:.5g}", f"{row.damage:+.5f}"))
        head = f"{self.metric} in float: {self.baseline:.5g}; each layer alone rounded as in {self.scheme}"
        return "\n".join([head, *table(rows)])


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Write rows of cells in columns, the first to the left, the others to the right.

    Example:
        >>> table([("layer", "bits"), ("a", "4")])
        ['layer  bits', 'a         4']
    """
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]


def write_json(path: str | Path, content: Any) -> None:
    """Write plain data whole or not at all.

    Raises:
        KpipeError: When the file cannot be written.
    """
    try:
        with replace_atomically(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as fault:
        raise KpipeError(f"Cannot write to {str(path)!r}: {fault}.") from fault
