"""What holds inside the train step: maps w -> w of weights, and what sees or changes their gradients."""

from kpipe.projections.averages import average_of, inner_optimizer
from kpipe.projections.codebook import Codebook, first_codebook, hold_clusters, hold_codebook, hold_codebooks
from kpipe.projections.gradients import GradientMap, GradientPull
from kpipe.projections.holder import Holder, held_on
from kpipe.projections.host import put, view
from kpipe.projections.mask import Mask, Projection, chain, masked
from kpipe.projections.taps import FIELDS, GradientTap
from kpipe.projections.zeros import first_mask, hold_zeros, kernels, trained_model

__all__ = [
    "FIELDS",
    "Codebook",
    "GradientMap",
    "GradientPull",
    "GradientTap",
    "Holder",
    "Mask",
    "Projection",
    "average_of",
    "chain",
    "first_codebook",
    "first_mask",
    "held_on",
    "hold_clusters",
    "hold_codebook",
    "hold_codebooks",
    "hold_zeros",
    "inner_optimizer",
    "kernels",
    "masked",
    "put",
    "trained_model",
    "view",
]
