"""Values put into few clusters, each with one value for all: k-means in one dimension, exact and fast."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpipe.cluster.inits import INITS
from kpipe.cluster.lloyd import lloyd, midpoints
from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout
from kpipe.registry import nearest

RowFunction = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Values -> their codebook in ascending order, and the place of each in it."""

PER = ("layer", "channel")
"""What has a codebook of its own: a whole kernel, or each of its output channels."""


@dataclass(frozen=True)
class Clustering:
    """Say how weights are clustered.

    Args:
        clusters: The most distinct values that are left, at least 2.
        init: Where the centroids begin: a name of `INITS`.
        per: "layer": one codebook for a kernel; "channel": one for each output channel.
        preserve_sparsity: Exact zeros stay exact zeros, as one of the clusters; no other value becomes one.
        iterations: The most rounds of Lloyd's algorithm, which stops by itself when nothing moves any more; 0 leaves
            the centroids where they begin.

    Raises:
        KpipeError: For settings that do not fit.

    Example:
        >>> Clustering(clusters=1)
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: clusters is 1; expected an integer of at least 2, such as 16.
    """

    clusters: int = 16
    init: str = "kmeans++"
    per: str = "layer"
    preserve_sparsity: bool = True
    iterations: int = 300

    def __post_init__(self) -> None:
        for name, least in (("clusters", 2), ("iterations", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                example = type(self).__dataclass_fields__[name].default
                raise KpipeError(f"{name} is {value!r}; expected an integer of at least {least}, such as {example}.")
        if self.per not in PER:
            raise KpipeError(f"per is {self.per!r}; expected one of {', '.join(PER)}.{nearest(str(self.per), PER)}")
        INITS.facts(self.init)  # an unknown name is answered with the known ones


@dataclass(frozen=True)
class Clusters:
    """Hold a weight as codebooks and, for each entry, its place in one.

    Args:
        codebooks: Distinct values in ascending order: one array for the whole weight, or one for each output channel.
        indices: Of the weight's shape: the place of each entry in its codebook, in the smallest unsigned type.
        layout: The axes of the weight.

    Example:
        >>> found = Clusters((np.array([-1.0, 2.0]),), np.array([[0, 1], [1, 1]], "uint8"))
        >>> found.weight().tolist(), found.unique
        ([[-1.0, 2.0], [2.0, 2.0]], 2)
    """

    codebooks: tuple[np.ndarray, ...]
    indices: np.ndarray
    layout: Layout = NATURAL

    def weight(self) -> np.ndarray:
        """Give the weight: each entry's value from its codebook."""
        if len(self.codebooks) == 1:
            return self.codebooks[0][self.indices]
        rows = zip(self.codebooks, rows_of(self.indices, self.layout), strict=True)
        return from_rows(np.stack([codebook[row] for codebook, row in rows]), self.indices.shape, self.layout)

    @property
    def unique(self) -> int:
        """How many distinct values the weight has."""
        return len(np.unique(np.concatenate(self.codebooks)))


def cluster_values(
    weight: np.ndarray,
    clustering: Clustering,
    layout: Layout = NATURAL,
    rng: np.random.Generator | None = None,
) -> Clusters:
    """Put the entries of a weight into clusters, each of which gets the mean of its entries.

    The centroids c and the entries' clusters a minimise the sum of (w - c_a)² as far as Lloyd's algorithm goes from
    where it begins. A weight, or a channel, that has no more distinct values than clusters keeps them all. A cluster
    that loses all its entries begins anew at the entry that is farthest from its own centroid; one that is empty at the
    end is left out.

    With `preserve_sparsity`, exact zeros are a cluster whose centroid stays 0, and the other entries are clustered
    among themselves: so the zeros are the same before and after. A centroid that would be 0 becomes the entry that is
    nearest to 0.

    Args:
        weight: Any shape.
        clustering: How.
        layout: The axes of the weight, for one codebook a channel.
        rng: For what is random; None: seeded by 0.

    Returns:
        The codebooks and indices; codebooks have the weight's type.

    Raises:
        KpipeError: For a weight that is not finite.

    Example:
        >>> found = cluster_values(np.array([0.0, 0.9, 1.1, -2.0, 0.0]), Clustering(clusters=3))
        >>> found.codebooks[0].tolist(), found.indices.tolist()
        ([-2.0, 0.0, 1.0], [1, 2, 2, 0, 1])

    References:
        Lloyd, Least squares quantization in PCM (1982); Han et al., Deep Compression (2015).
    """
    weight = np.asarray(weight)
    if not np.isfinite(weight).all():
        raise KpipeError("The weight holds NaN or infinite values, which have no mean. Train it anew, or leave it out.")
    rng = np.random.default_rng(0) if rng is None else rng
    return _by_rows(weight, clustering.per, layout, lambda row: _cluster_row(row, clustering, rng))


def as_it_is(weight: np.ndarray, per: str = "layer", layout: Layout = NATURAL) -> Clusters:
    """Write a weight as codebooks of all the values that it has.

    Example:
        >>> as_it_is(np.array([[0.5, 1.0], [-1.0, 1.0]]), "channel").codebooks
        (array([-1. ,  0.5]), array([1.]))
    """
    return _by_rows(np.asarray(weight), per, layout, lambda row: np.unique(row, return_inverse=True))


def _by_rows(weight: np.ndarray, per: str, layout: Layout, cluster: RowFunction) -> Clusters:
    rows = weight.reshape(1, -1) if per == "layer" else rows_of(weight, layout)
    found = [cluster(np.ascontiguousarray(row)) for row in rows]
    codebooks, indices = tuple(codebook for codebook, _ in found), np.stack([places for _, places in found])
    indices = indices.astype(np.min_scalar_type(max(len(codebook) for codebook in codebooks) - 1))
    indices = indices.reshape(weight.shape) if per == "layer" else from_rows(indices, weight.shape, layout)
    return Clusters(codebooks, indices, layout)


def rows_of(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Give one row an output channel, shape (channels, entries).

    Example:
        >>> rows_of(np.array([[1, 2], [3, 4], [5, 6]]), NATURAL).tolist()
        [[1, 3, 5], [2, 4, 6]]
    """
    turned = layout.turn(values)
    return turned.reshape(-1, turned.shape[-1]).T


def from_rows(rows: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """Undo `rows_of`.

    Example:
        >>> from_rows(np.array([[1, 3, 5], [2, 4, 6]]), (3, 2), NATURAL).tolist()
        [[1, 2], [3, 4], [5, 6]]
    """
    return layout.back(rows.T.reshape(layout.turned_shape(shape)), shape)


def _cluster_row(row: np.ndarray, clustering: Clustering, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give the codebook of some values, in ascending order, and the place of each in it."""
    ordered = np.sort(row.astype(np.float64))
    if 1 + np.count_nonzero(np.diff(ordered)) <= clustering.clusters:
        return np.unique(row, return_inverse=True)
    zeros = clustering.preserve_sparsity and not ordered.all()
    values = ordered[ordered != 0] if zeros else ordered
    count = clustering.clusters - zeros
    centroids = lloyd(values, INITS[clustering.init](values, count, rng), clustering.iterations)
    codebook = centroids.astype(row.dtype)
    if clustering.preserve_sparsity and not codebook.all():
        codebook[codebook == 0] = values[np.argmin(np.abs(values))]
    places = np.searchsorted(midpoints(centroids), row, side="left")
    if zeros:
        places = np.where(row == 0, len(codebook), places)
        codebook = np.append(codebook, np.zeros(1, row.dtype))
    codebook, order = np.unique(codebook, return_inverse=True)
    return codebook, order[places]
