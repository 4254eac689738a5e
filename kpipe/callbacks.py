"""The callbacks for `model.fit`."""

from kpipe.cluster import WeightClustering
from kpipe.structured.callback import FilterPruning
from kpipe.unstructured import PruningSummaries, UpdatePruningStep, WeightPruning

__all__ = ["FilterPruning", "PruningSummaries", "UpdatePruningStep", "WeightClustering", "WeightPruning"]
