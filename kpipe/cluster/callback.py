"""Clusters held, and their values trained, during `fit`."""

import warnings
from collections.abc import Mapping, Sequence

import keras

from kpipe.cluster.cluster import CLUSTER, CLUSTERED_ROLES, cluster_target
from kpipe.cluster.codebooks import Clustering, as_it_is
from kpipe.cluster.report import Report, make_report
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.follow import Follower
from kpipe.projections import Holder, first_codebook, hold_codebook, hold_codebooks, trained_model
from kpipe.registry import nearest
from kpipe.targets import LayerFilter, Skipped, Target, find_targets, trainable

GRADIENTS = ("sum", "mean")
"""What each entry of a cluster is given of the gradients of all of them."""

UNTRAINED = "it is nothing but zeros: it has not been trained yet"


class HoldClusters(Follower):
    """Hold the clusters that the kernels of a model have while it trains on: their values move, and no new ones come.

    A kernel of more than 256 distinct values, in the whole and by channels, is left alone.

    Args:
        gradient: "sum": each entry of a cluster is given the sum of its gradients, which is that of the common value;
            "mean": their mean.

    Raises:
        KpipeError: For an argument that does not fit.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> _ = net.layers[0].kernel.assign([[0.5, 0.5], [-1.0, -1.0]])
        >>> net.compile("adam", "mse")
        >>> _ = net.fit(np.ones((8, 2)), np.ones((8, 2)), verbose=0, callbacks=[HoldClusters()])
        >>> len(np.unique(net.layers[0].kernel.numpy()))
        2
    """

    def __init__(self, gradient: str = "sum"):
        super().__init__({})
        if gradient not in GRADIENTS:
            raise KpipeError(
                f"gradient is {gradient!r}; expected one of {', '.join(GRADIENTS)}.{nearest(str(gradient), GRADIENTS)}"
            )
        self.gradient = gradient

    def _begin(self, holder: Holder) -> None:
        hold_codebooks(holder, mean=self.gradient == "mean")

    def _update(self, asked: Mapping[str | None, float]) -> None:
        """Do nothing: no schedule asks."""

    def _gone(self, name: str | None) -> int:
        return 0

    def _lacks(self, name: str | None, sparsity: float) -> bool:
        return False


class WeightClustering(HoldClusters):
    """Give the entries of each kernel a few values to share, and train these; what comes out is a plain model.

    When `fit` begins each kernel is clustered as `kpipe.cluster_weights` does it; one that has few values already, such
    as that of a second `fit`, keeps them. From then on the clusters stay as they are. Every entry of a cluster is given
    the same gradient, the sum of all of them (Han et al., equation 3):

        dL/dc = Σ dL/dw over the entries w of the cluster c,

    in front of the optimizer, before gradients are clipped, so that under any optimizer the values are trained as if
    they were the weights. After every update each entry is set to the mean of its cluster, inside the compiled train
    step and after a constraint of one's own: what an optimizer remembers of each entry from before cannot part them. A
    kernel has no more than `clusters` distinct values after every step, and exact zeros stay exact.

    Prune first, then cluster: zeros that a pruning callback makes in the same `fit` are not known here. A layer that is
    frozen is left as it is; one that is unfrozen is clustered when the next epoch begins.

    Args:
        clusters: The most distinct values of a kernel, at least 2.
        init: Where the values begin: a name of `kpipe.cluster.INITS`.
        per: "layer": one codebook for a kernel; "channel": one for each of its output channels.
        preserve_sparsity: Exact zeros stay exact zeros, as one of the clusters, and no other entry becomes one.
        layers: None for every kernel of the layers that kpipe knows, a regular expression searched in the weight's
            path, a layer class or several, or a function of the layer.
        roles: What a weight has to be; depthwise kernels are left out unless they are named.
        gradient: "sum", or "mean" for the mean of the entries' gradients: smaller steps under plain SGD.
        iterations: The most rounds of Lloyd's algorithm.
        seed: Of what is drawn at random.

    Raises:
        KpipeError: For arguments that do not fit; in `fit`, when nothing is there to cluster.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="d")])
        >>> net.compile("adam", "mse")
        >>> cluster = WeightClustering(clusters=4)
        >>> _ = net.fit(np.ones((8, 4)), np.ones((8, 8)), verbose=0, callbacks=[cluster])
        >>> len(np.unique(net.layers[0].kernel.numpy())), [row.bits for row in cluster.report().clustered]
        (4, [2])

    References:
        Han et al., Deep Compression (2015), https://arxiv.org/abs/1510.00149
    """

    def __init__(
        self,
        clusters: int = 16,
        *,
        init: str = "kmeans++",
        per: str = "layer",
        preserve_sparsity: bool = True,
        layers: LayerFilter = None,
        roles: Sequence[str] = CLUSTERED_ROLES,
        gradient: str = "sum",
        iterations: int = 300,
        seed: int = 0,
    ):
        super().__init__(gradient)
        self.clustering = Clustering(clusters, init, per, preserve_sparsity, iterations)
        self.layers, self.roles, self.seed = layers, roles, seed
        self._targets: list[Target] = []
        self._skipped: list[Skipped] = []
        self._trainable: list[bool] = []

    def report(self, model: keras.Model | None = None) -> Report:
        """Tell of every weight how few bits it could be written in as it is now, or why it was skipped.

        Args:
            model: A model that was clustered, perhaps by `kpipe.cluster_weights`; None: the one that was fit.
        """
        targets, skipped = self._targets, self._skipped
        if model is not None:
            targets, skipped = find_targets(model, self.layers, self.roles, CLUSTER)
        elif not targets:
            raise KpipeError("WeightClustering has no model yet: pass it to model.fit(..., callbacks=[...]) first.")
        found = [(one, as_it_is(one.variable.numpy(), self.clustering.per, one.layout)) for one in targets]
        return make_report(found, skipped)

    def _begin(self, holder: Holder) -> None:
        student = trained_model(self._fit)
        self._trainable = trainable(student, self.roles)
        self._targets = []
        found, self._skipped = find_targets(student, self.layers, self.roles, CLUSTER)
        for target in found:
            if target.variable.numpy().any():
                self._targets.append(target)
                self._cluster(target, holder)
            else:
                self._skipped.append(Skipped(target.path, tuple(target.variable.shape), UNTRAINED))
        if not holder.variables:
            names = [f"{target.path}: no two of its entries are alike" for target in self._targets]
            names += [f"{row.path}: {row.reason}" for row in self._skipped if row.reason == UNTRAINED]
            text = f"WeightClustering holds nothing ({'; '.join(names)}). Give fewer clusters, or other layers."
            warnings.warn(text, NoEffectWarning, stacklevel=5)

    def _cluster(self, target: Target, holder: Holder) -> None:
        value = cluster_target(target, self.clustering, self.seed).weight()
        if (value != target.variable.numpy()).any():
            target.variable.assign(value)
        layout = None if self.clustering.per == "layer" else target.layout
        known = first_codebook(value, self.clustering.clusters, layout, self.clustering.preserve_sparsity)
        if known is not None:
            hold_codebook(holder, target.variable, known, self.gradient == "mean")

    def _look_again(self) -> None:
        """Begin anew when a layer was frozen or unfrozen; what is clustered already keeps its clusters."""
        super()._look_again()
        if self._trainable != trainable(trained_model(self._fit), self.roles):
            self.on_train_begin()
