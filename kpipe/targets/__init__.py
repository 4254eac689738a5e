"""Which weights of a model are meant: the kernels that kpipe knows, and filters of layers."""

from kpipe.targets.find import (
    NOT_SELECTED,
    PACKED,
    PRUNE,
    PRUNED_ROLES,
    UNBUILT,
    Aim,
    Skipped,
    Target,
    candidates,
    find_targets,
    trainable,
)
from kpipe.targets.selection import LayerFilter, Selector, selector

__all__ = [
    "NOT_SELECTED",
    "PACKED",
    "PRUNE",
    "PRUNED_ROLES",
    "UNBUILT",
    "Aim",
    "LayerFilter",
    "Selector",
    "Skipped",
    "Target",
    "candidates",
    "find_targets",
    "selector",
    "trainable",
]
