"""Let clusters that keep zeros know their zeros again, which TFMOT 0.8.1 does not save.

When it loads such a model, it finds which centroid is the zero, and which weights are held at it, among the weights
that the layers are made with; in the first call it moves centroids and weights by that.
"""

from typing import Any

import numpy as np


def find_zeros(model: Any) -> list[str]:
    """Find the zeros of each layer whose clusters keep them: the weights that were zero when it was saved.

    Args:
        model: A model of tf_keras that has been loaded and not been called.

    Returns:
        What the user is to know: which layers were saved between an update of the optimizer and the next call.
    """
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

    clustered = [layer for layer in model._flatten_layers() if isinstance(layer, ClusterWeights)]
    unsure = [layer.layer.name for layer in clustered if layer.preserve_sparsity and not _find_zeros_of(layer)]
    return [_NOTE.format(", ".join(unsure))] if unsure else []


_NOTE = (
    "{} was saved right after an update of the weights, before the clusters were found anew, and TFMOT does not save "
    "which weights it holds at zero; those that were zero before the update stay zero, though some may have left it"
)


def _find_zeros_of(layer: Any) -> bool:
    """Set which centroid is zero and which weights are held at it; tell whether that is certain."""
    import tensorflow as tf

    certain = True
    for name, variable in layer.original_clusterable_weights.items():
        weights, indices, centroids = (
            one.numpy() for one in (variable, layer.pulling_indices[name], layer.cluster_centroids[name])
        )
        if layer.cluster_per_channel:  # each channel has centroids of its own
            weights, indices = np.moveaxis(weights, -1, 0), np.moveaxis(indices, -1, 0)
        else:
            weights, indices, centroids = weights[None], indices[None], centroids[None]
        zeros = [zero_among(*part) for part in zip(weights, indices, centroids, strict=True)]
        held = [part == zero for part, zero in zip(indices, zeros, strict=True)]
        for number, zero in enumerate(zeros):
            left = nearest(weights[number], _with_zero(centroids[number], zero)) != zero
            certain &= centroids[number][zero] == 0 or not (left & held[number]).any()
        layer.zero_idx[name] = tf.constant(zeros if layer.cluster_per_channel else zeros[0], tf.int64)
        free = ~(np.stack(held, axis=-1) if layer.cluster_per_channel else held[0])
        layer.sparsity_masks[name] = tf.constant(free, variable.dtype)
    return bool(certain)


def zero_among(weights: np.ndarray, indices: np.ndarray, centroids: np.ndarray) -> int:
    """Find which centroid was zero when weights were given the indices of their centroids.

    An update of the optimizer may have moved it since, and others may lie as near to zero. It is the one with which
    most weights would be given the same indices again.

    Example:
        >>> zero_among(np.array([0.0, 0.6, 0.0, 0.7]), np.array([1, 2, 1, 2]), np.array([1e-4, -3e-4, 0.65]))
        1
    """

    def changed(zero: int) -> int:
        held = np.where(indices == zero, 0.0, weights)
        return int(np.count_nonzero(nearest(held, _with_zero(centroids, zero)) != indices))

    return min(np.argsort(np.abs(centroids))[:4].tolist(), key=changed)


def nearest(weights: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Give the index of the centroid that is nearest to each weight.

    Example:
        >>> nearest(np.array([[0.1, 0.9]]), np.array([0.0, 1.0])).tolist()
        [[0, 1]]
    """
    return np.abs(weights[..., None] - centroids).argmin(axis=-1)  # (*weights, centroids) -> weights


def _with_zero(centroids: np.ndarray, zero: int) -> np.ndarray:
    return np.where(np.arange(centroids.size) == zero, 0.0, centroids)
