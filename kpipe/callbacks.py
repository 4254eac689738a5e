"""The callbacks for `model.fit`."""

from kpipe.cluster import WeightClustering
from kpipe.quantize.freeze import FreezeRanges
from kpipe.structured.callback import FilterPruning
from kpipe.unstructured import PruningSummaries, UpdatePruningStep, WeightPruning

__all__ = [
    "FilterPruning",
    "FreezeRanges",
    "PruningSummaries",
    "UpdatePruningStep",
    "WeightClustering",
    "WeightPruning",
]
