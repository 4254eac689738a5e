"""Every public name of `tfmot.sparsity.keras`, on Keras 3."""

from kpipe.legacy.tfmot.policy import PruneForLatencyOnXNNPack, PruningPolicy
from kpipe.legacy.tfmot.prunable_layer import PrunableLayer
from kpipe.legacy.tfmot.schedules import ConstantSparsity, PolynomialDecay, PruningSchedule
from kpipe.legacy.tfmot.scope import prune_scope
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.summaries import PruningSummaries
from kpipe.unstructured.wrapping import prune_low_magnitude, strip_pruning

__all__ = [
    "ConstantSparsity",
    "PolynomialDecay",
    "PrunableLayer",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "UpdatePruningStep",
    "prune_low_magnitude",
    "prune_scope",
    "strip_pruning",
]
