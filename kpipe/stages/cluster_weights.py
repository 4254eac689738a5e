"""Give the entries of each kernel a few values to share: the compressed file is smaller."""

from typing import Annotated, Any, Literal

import keras
from pydantic import AfterValidator, Field

from kpipe.cluster import CLUSTERED_ROLES, INITS, Report, WeightClustering, cluster_weights
from kpipe.cluster.cluster import CLUSTER
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.stages.fields import Expression, Roles
from kpipe.stages.fitting import weight_misfits
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import RetrainingStage, train


def _known(init: str) -> str:
    INITS.facts(init)
    return init


@STAGES("cluster_weights")
class ClusterWeights(RetrainingStage):
    """Give the entries of each kernel a few values to share, and train these; later stages keep the clusters.

    Args:
        clusters: The most distinct values of a kernel, from 2 to 256.
        init: Where the values begin: "kmeans++", "linear", "density" or "random".
        per: "layer" gives a kernel one codebook, "channel" each of its output channels one.
        preserve_sparsity: Zeros of a pruned model stay exact zeros, as one of the clusters.
        layers: A pattern of the paths of the weights to cluster; None for all kernels.
        roles: What a weight has to be; add depthwise_kernel to cluster those too.
        iterations: The most rounds of Lloyd's algorithm.
        gradient: What trains a value: the "sum" of the gradients of its entries, or their "mean".
        epochs: Passes over the training data; 0 to cluster and not train.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too.
    """

    stage: Literal["cluster_weights"] = "cluster_weights"
    leaves_clusters = True
    clusters: Annotated[int, Field(ge=2, le=256)] = 16
    init: Annotated[str, AfterValidator(_known)] = "kmeans++"
    per: Literal["layer", "channel"] = "layer"
    preserve_sparsity: bool = True
    layers: Expression | None = None
    roles: Roles = CLUSTERED_ROLES
    iterations: Annotated[int, Field(ge=0)] = 300
    gradient: Literal["sum", "mean"] = "sum"

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains."""
        return (*super().only_for_training(), "gradient")

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no weight to cluster, beside the features."""
        return [*super().misfits(model), *weight_misfits(model, self.layers, self.roles, CLUSTER)]

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cluster, and train the values."""
        names = ("clusters", "init", "per", "preserve_sparsity", "layers", "roles", "iterations")
        choice: dict[str, Any] = {name: getattr(self, name) for name in names} | {"seed": context.seed}
        clustered = cluster_weights(artifact.model, **choice)
        clustering = WeightClustering(**choice, gradient=self.gradient)
        if self.epochs:
            teacher = teacher_of(self.distill, context, artifact.model)
            clustered = train(self, clustered, context, [clustering], teacher)
        tell_clusters(clustering.report(clustered), context)
        return FloatModel(clustered)


def tell_clusters(report: Report, context: Context) -> None:
    """Put into the record how few bits each weight could be written in, and why others were skipped."""
    names = ("path", "shape", "clusters", "bits", "entropy", "packed_bytes", "huffman_bytes", "codebook_bytes")
    rows = report.to_list()[: len(report.clustered)]
    context.record.details["clusters"] = [{name: row[name] for name in names} for row in rows]
    context.record.note(
        f"Written as a codebook and Huffman-coded indices, the clustered weights would be {report.ratio:.1f} times "
        "smaller. That is computed from how often each index comes; the files store every weight."
    )
    for row in report.skipped:
        context.record.skip(row.path, str(row.reason))
