"""Structured pruning: channels planned, cut, and pruned while training."""

from kpipe.structured.plan import FilterPlan, GroupPlan, plan_filters, prune_filters

__all__ = ["FilterPlan", "GroupPlan", "plan_filters", "prune_filters"]
