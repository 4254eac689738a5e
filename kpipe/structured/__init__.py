"""Structured pruning: channels planned, cut, and pruned while training."""

from kpipe.structured.callback import FilterPruning
from kpipe.structured.filters import plan_filters, prune_filters
from kpipe.structured.heads import plan_heads, prune_heads
from kpipe.structured.plan import FilterPlan, GroupPlan

__all__ = ["FilterPlan", "FilterPruning", "GroupPlan", "plan_filters", "plan_heads", "prune_filters", "prune_heads"]
