"""Maps w -> w that hold during training, and the one class that holds them."""

from kpipe.projections.averages import average_of, inner_optimizer
from kpipe.projections.holder import Holder, held_on
from kpipe.projections.host import put, view
from kpipe.projections.mask import Mask, Projection, chain, masked
from kpipe.projections.zeros import first_mask, hold_zeros, kernels, trained_model

__all__ = [
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
