"""The stages of a recipe: a file each, and the class is its schema. A new stage is a new file and a line here."""

from kpipe.stages.cluster_weights import ClusterWeights
from kpipe.stages.distill import Distill
from kpipe.stages.export import Export
from kpipe.stages.find_ticket import FindTicket
from kpipe.stages.prune_filters import PruneFilters
from kpipe.stages.prune_heads import PruneHeads
from kpipe.stages.prune_weights import PruneWeights
from kpipe.stages.quantize import Quantize
from kpipe.stages.remove_layers import RemoveLayers
from kpipe.stages.train import Train

__all__ = [
    "ClusterWeights",
    "Distill",
    "Export",
    "FindTicket",
    "PruneFilters",
    "PruneHeads",
    "PruneWeights",
    "Quantize",
    "RemoveLayers",
    "Train",
]
