"""Which entries of a weight to keep: patterns say what goes together, scopes how a sparsity is shared out."""

from kpipe.patterns.block import Block
from kpipe.patterns.by_layer import Layer
from kpipe.patterns.by_rank import Global
from kpipe.patterns.by_shape import ErdosRenyiKernel
from kpipe.patterns.n_of_m import NofM
from kpipe.patterns.pattern import PATTERNS, ByFunction, MaskFunction, Pattern, pattern_of
from kpipe.patterns.ranking import drop_count, keep_highest, smallest
from kpipe.patterns.scope import SCOPES, Scope, check_scope, keep_masks, scope_of
from kpipe.patterns.unstructured import Unstructured

__all__ = [
    "PATTERNS",
    "SCOPES",
    "Block",
    "ByFunction",
    "ErdosRenyiKernel",
    "Global",
    "Layer",
    "MaskFunction",
    "NofM",
    "Pattern",
    "Scope",
    "Unstructured",
    "check_scope",
    "drop_count",
    "keep_highest",
    "keep_masks",
    "pattern_of",
    "scope_of",
    "smallest",
]
