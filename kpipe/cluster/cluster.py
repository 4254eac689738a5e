"""Cluster the weights of a model at once: a new model."""

import warnings
from collections.abc import Sequence

import keras

from kpipe.cluster.codebooks import Clustering, Clusters, cluster_values
from kpipe.copies import copy_model
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.saliency import generator
from kpipe.targets import PRUNED_ROLES, Aim, LayerFilter, Target, find_targets

CLUSTERED_ROLES = PRUNED_ROLES
"""What is clustered when nothing else is asked for: as in weight pruning, depthwise kernels are left as they are."""

CLUSTER = Aim("cluster", "clustered", "clusterable", "clustered")


def cluster_weights(
    model: keras.Model,
    clusters: int = 16,
    *,
    init: str = "kmeans++",
    per: str = "layer",
    preserve_sparsity: bool = True,
    layers: LayerFilter = None,
    roles: Sequence[str] = CLUSTERED_ROLES,
    iterations: int = 300,
    seed: int = 0,
) -> keras.Model:
    """Give the entries of each kernel a few values to share, at once; the given model stays as it is.

    The values are those of k-means in one dimension: they minimise the sum of (w - c)², as far as Lloyd's algorithm
    goes. With 16 of them an index of 4 bits says what took 32, and a compressed file is as much smaller. To train the
    values afterwards, fit the new model with `kpipe.callbacks.WeightClustering`.

    Args:
        model: A built model.
        clusters: The most distinct values that are left of a kernel, at least 2. A kernel that has no more stays
            exactly as it is.
        init: Where the values begin: "kmeans++", "linear", "density", "random", or what else is registered in
            `kpipe.cluster.INITS`. After all rounds these end within some per cent of one another: on trained nets
            "kmeans++" lost least with 8 values, and none stood out with 16.
        per: "layer": one codebook for a kernel; "channel": one for each of its output channels.
        preserve_sparsity: Exact zeros stay exact zeros, as one of the clusters, and no other entry becomes one.
        layers: None for every layer that kpipe knows, a regular expression searched in the weight's path, a layer class
            or a tuple of them, or a function of the layer.
        roles: What a weight has to be; depthwise kernels are left out unless they are named.
        iterations: The most rounds of Lloyd's algorithm; 0 takes the values where they begin.
        seed: Of what is drawn at random.

    Returns:
        A new model, not compiled. Warns with `NoEffectWarning` when every kernel has few values already.

    Raises:
        KpipeError: For a model, filter or setting that does not fit, or a kernel that is not finite.

    Example:
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")])
        >>> net.set_weights([np.array([[0.0, 1.1, -2.0], [0.9, 0.0, -2.0]]), np.zeros(3)])
        >>> cluster_weights(net, 3).get_weights()[0].round(4).tolist()
        [[0.0, 1.0, -2.0], [1.0, 0.0, -2.0]]

    References:
        Han et al., Deep Compression (2015), https://arxiv.org/abs/1510.00149
    """
    clustering = Clustering(clusters, init, per, preserve_sparsity, iterations)
    targets, _ = find_targets(model, layers, roles, CLUSTER)
    found = [cluster_target(target, clustering, seed) for target in targets]
    clustered = copy_model(model)
    twins = {id(variable): twin for variable, twin in zip(model.weights, clustered.weights, strict=True)}
    changed = False
    for target, one in zip(targets, found, strict=True):
        value = one.weight()
        changed |= bool((value != target.variable.numpy()).any())
        twins[id(target.variable)].assign(value)
    if not changed:
        few = ", ".join(f"{target.path} ({one.unique})" for target, one in zip(targets, found, strict=True))
        warnings.warn(
            f"cluster_weights changed no weight of {model.name!r}: each has no more than clusters={clusters} distinct "
            f"values: {few}.",
            NoEffectWarning,
            stacklevel=2,
        )
    return clustered


def cluster_target(target: Target, clustering: Clustering, seed: int) -> Clusters:
    """Put the entries of a chosen weight into clusters; what is random is seeded by the seed and the weight's path."""
    try:
        return cluster_values(target.variable.numpy(), clustering, target.layout, generator(seed, target.path))
    except KpipeError as error:
        raise KpipeError(f"{target.path}: {error}") from error
