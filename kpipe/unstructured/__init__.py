"""Weight pruning: zeros anywhere in the kernels, while training or at once."""

from kpipe.unstructured.callback import WeightPruning
from kpipe.unstructured.prune import prune_weights
from kpipe.unstructured.report import Report, Row
from kpipe.unstructured.targets import Skipped, Target, find_targets

__all__ = ["Report", "Row", "Skipped", "Target", "WeightPruning", "find_targets", "prune_weights"]
