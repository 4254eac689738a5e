"""Copies of models and layers: same architecture, same weights, nothing shared."""

from kpipe.copies.checks import check_built, refuse_keras2
from kpipe.copies.copy import copy_layer, copy_model, copy_operation, make_like
from kpipe.copies.precision import float32_policy, half_policies, in_float32, to_float32, to_float64
from kpipe.copies.reference import by_reference
from kpipe.copies.state import pairs, take_rest, take_weights

__all__ = [
    "by_reference",
    "check_built",
    "copy_layer",
    "copy_model",
    "copy_operation",
    "float32_policy",
    "half_policies",
    "in_float32",
    "make_like",
    "pairs",
    "refuse_keras2",
    "take_rest",
    "take_weights",
    "to_float32",
    "to_float64",
]
