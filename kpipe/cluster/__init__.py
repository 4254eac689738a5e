"""Weight clustering: few distinct values in a kernel, at once or trained."""

from kpipe.cluster.callback import HoldClusters, WeightClustering
from kpipe.cluster.cluster import CLUSTERED_ROLES, cluster_target, cluster_weights
from kpipe.cluster.codebooks import PER, Clustering, Clusters, as_it_is, cluster_values
from kpipe.cluster.inits import INITS
from kpipe.cluster.report import Report, Row, entropy, huffman_bits, make_report

__all__ = [
    "CLUSTERED_ROLES",
    "INITS",
    "PER",
    "Clustering",
    "Clusters",
    "HoldClusters",
    "Report",
    "Row",
    "WeightClustering",
    "as_it_is",
    "cluster_target",
    "cluster_values",
    "cluster_weights",
    "entropy",
    "huffman_bits",
    "make_report",
]
