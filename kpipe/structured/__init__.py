"""Structured pruning: channels, heads and layers planned, cut, and pruned while training."""

from kpipe.structured.batch_norm import reestimate_batch_norm
from kpipe.structured.callback import FilterPruning
from kpipe.structured.candidates import Candidate, bypassable
from kpipe.structured.depth import remove_layers
from kpipe.structured.filters import plan_filters, prune_filters
from kpipe.structured.heads import plan_heads, prune_heads
from kpipe.structured.plan import FilterPlan, GroupPlan
from kpipe.structured.scan import Sensitivity
from kpipe.structured.sensitivity import sensitivity

__all__ = [
    "Candidate",
    "FilterPlan",
    "FilterPruning",
    "GroupPlan",
    "Sensitivity",
    "bypassable",
    "plan_filters",
    "plan_heads",
    "prune_filters",
    "prune_heads",
    "reestimate_batch_norm",
    "remove_layers",
    "sensitivity",
]
