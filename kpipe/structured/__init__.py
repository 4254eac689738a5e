"""Structured pruning: channels planned, cut, and pruned while training."""

from kpipe.structured.callback import FilterPruning
from kpipe.structured.filters import plan_filters, prune_filters
from kpipe.structured.plan import FilterPlan, GroupPlan

__all__ = ["FilterPlan", "FilterPruning", "GroupPlan", "plan_filters", "prune_filters"]
