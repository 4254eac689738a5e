"""Weight pruning: zeros anywhere in the kernels, while training or at once."""

from kpipe.targets import Skipped, Target, find_targets
from kpipe.unstructured.callback import WeightPruning
from kpipe.unstructured.prune import prune_weights
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.regrowth import Regrowth
from kpipe.unstructured.report import Report, Row
from kpipe.unstructured.rewind import find_ticket
from kpipe.unstructured.summaries import PruningSummaries
from kpipe.unstructured.ticket import Ticket
from kpipe.unstructured.wrapping import prune_low_magnitude, strip_pruning

__all__ = [
    "PruningSummaries",
    "Regrowth",
    "Report",
    "Row",
    "Skipped",
    "Target",
    "Ticket",
    "UpdatePruningStep",
    "WeightPruning",
    "find_targets",
    "find_ticket",
    "prune_low_magnitude",
    "prune_weights",
    "strip_pruning",
]
