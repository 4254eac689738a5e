"""What holds inside the train step: maps w -> w of weights, and what sees or adds to their gradients."""

from kpipe.projections.averages import average_of, inner_optimizer
from kpipe.projections.gradients import GradientPull
from kpipe.projections.holder import Holder, held_on
from kpipe.projections.host import put, view
from kpipe.projections.mask import Mask, Projection, chain, masked
from kpipe.projections.taps import FIELDS, GradientTap
from kpipe.projections.zeros import first_mask, hold_zeros, kernels, trained_model

__all__ = [
    "FIELDS",
    "GradientPull",
    "GradientTap",
    "Holder",
    "Mask",
    "Projection",
    "average_of",
    "chain",
    "first_mask",
    "held_on",
    "hold_zeros",
    "inner_optimizer",
    "kernels",
    "masked",
    "put",
    "trained_model",
    "view",
]
