"""What clustering left of each weight, and in how few bits that could be written: data, and a table when printed."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kpipe.cluster.codebooks import Clusters
from kpipe.targets import Skipped, Target


@dataclass(frozen=True)
class Row:
    """Tell of one weight what it would take to write it as indices; or why it was skipped.

    Args:
        path: The weight.
        shape: Its shape.
        clusters: Distinct values; of a weight with a codebook for each channel, the most that a channel has.
        zeros: How many entries are exactly zero.
        bits: Of an index: the least whole number in which that many clusters can be told apart.
        entropy: Bits an index takes on average at the very least, by how often each comes.
        packed_bytes: Of all indices at `bits` each.
        huffman_bytes: Of all indices in Huffman's code for them.
        codebook_bytes: Of the codebooks.
        dense_bytes: Of the weight as it is.
        reason: Why it was skipped.
    """

    path: str
    shape: tuple[int, ...]
    clusters: int = 0
    zeros: int = 0
    bits: int = 0
    entropy: float = 0.0
    packed_bytes: int = 0
    huffman_bytes: int = 0
    codebook_bytes: int = 0
    dense_bytes: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """Hold one row a weight; printed, it is a table.

    Example:
        >>> row = Row("d/kernel", (4, 2), clusters=2, bits=1, entropy=0.81, huffman_bytes=1, dense_bytes=32)
        >>> report = Report((row, Row("d/bias", (2,), reason="its role is 'bias'")))
        >>> print(report)
        weight    shape  clusters  bits  entropy  Huffman  now
        d/kernel    4x2         2     1     0.81      1 B  32 B
        d/bias        2         -     -        -        -     -  skipped: its role is 'bias'
        >>> report.ratio, [row.path for row in report.skipped]
        (32.0, ['d/bias'])
    """

    rows: tuple[Row, ...]

    @property
    def clustered(self) -> tuple[Row, ...]:
        """List the rows of the weights that are clustered."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """List the rows of the weights that are not, each with its reason."""
        return tuple(row for row in self.rows if row.reason is not None)

    @property
    def ratio(self) -> float:
        """How many times smaller the clustered weights could be written: by Huffman's code, codebooks counted."""
        small = sum(row.huffman_bytes + row.codebook_bytes for row in self.clustered)
        return sum(row.dense_bytes for row in self.clustered) / small if small else 1.0

    def to_list(self) -> list[dict[str, Any]]:
        """Give the rows as plain data."""
        return [{**asdict(row), "shape": list(row.shape)} for row in self.rows]

    def __str__(self) -> str:
        lines = [["weight", "shape", "clusters", "bits", "entropy", "Huffman", "now", ""]]
        for row in self.rows:
            cells = ["-"] * 5
            if row.reason is None:
                small = row.huffman_bytes + row.codebook_bytes
                cells = [
                    str(row.clusters),
                    str(row.bits),
                    f"{row.entropy:.2f}",
                    f"{small:,} B",
                    f"{row.dense_bytes:,} B",
                ]
            why = "" if row.reason is None else f"skipped: {row.reason}"
            lines.append([row.path, "x".join(map(str, row.shape)), *cells, why])
        wide = [max(len(line[column]) for line in lines) for column in range(7)]
        return "\n".join(
            "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:7], wide[1:]), line[7]]).rstrip()
            for line in lines
        )


def make_report(found: Iterable[tuple[Target, Clusters]], skipped: Iterable[Skipped] = ()) -> Report:
    """Count what the clusters of some weights take."""
    rows = [_row(target.path, clusters) for target, clusters in found]
    return Report((*rows, *(Row(row.path, row.shape, reason=row.reason) for row in skipped)))


def _row(path: str, clusters: Clusters) -> Row:
    most = max(len(codebook) for codebook in clusters.codebooks)
    counts = np.bincount(clusters.indices.ravel(), minlength=most)
    entries, bits = clusters.indices.size, math.ceil(math.log2(most))
    return Row(
        path=path,
        shape=clusters.indices.shape,
        clusters=most,
        zeros=entries - int(np.count_nonzero(clusters.weight())),
        bits=bits,
        entropy=entropy(counts),
        packed_bytes=math.ceil(entries * bits / 8),
        huffman_bytes=math.ceil(huffman_bits(counts) / 8),
        codebook_bytes=sum(codebook.nbytes for codebook in clusters.codebooks),
        dense_bytes=entries * clusters.codebooks[0].itemsize,
    )


def entropy(counts: np.ndarray) -> float:
    """Give the entropy of how often each of some symbols comes, in bits a symbol: -Σ p log₂ p.

    Example:
        >>> entropy(np.array([2, 1, 1, 0]))
        1.5
    """
    shares = np.asarray(counts)[np.asarray(counts) > 0] / np.sum(counts)
    return float(-np.sum(shares * np.log2(shares))) + 0.0


def huffman_bits(counts: Sequence[int] | np.ndarray) -> int:
    """Give the bits of a message in the shortest code that has a word for each symbol: the sum of all merged counts.

    A message of one symbol alone takes none.

    Args:
        counts: How often each symbol comes.

    Example:
        >>> huffman_bits([45, 13, 12, 16, 9, 5])
        224

    References:
        Huffman, A method for the construction of minimum-redundancy codes (1952); the example is of Cormen et al.,
        Introduction to algorithms.
    """
    waiting = [int(count) for count in counts if count]
    heapq.heapify(waiting)
    total = 0
    while len(waiting) > 1:
        merged = heapq.heappop(waiting) + heapq.heappop(waiting)
        heapq.heappush(waiting, merged)
        total += merged
    return total
