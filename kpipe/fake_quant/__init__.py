"""Fake quantization: the layers that a quantized model is made of, their arithmetic, and how they are baked."""

from kpipe.fake_quant.bake import AVERAGE, COPYING, ENDS, bake, is_quantized, takes_norm, whole_windows
from kpipe.fake_quant.bias import RESCALING, ROUNDING, QuantizedBias, grid_before, products_of
from kpipe.fake_quant.island import Island, MaskedSoftmax
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.fake_quant.masking import LOST_MASK, without_masks
from kpipe.fake_quant.model import QuantizedModel, names_behind
from kpipe.fake_quant.schemes import (
    CONVERTED,
    SCHEMES,
    Scheme,
    activation_bits,
    precision_of,
    precisions,
    scheme_of,
)
from kpipe.fake_quant.support import (
    TRANSPOSED,
    float_layers,
    is_linear,
    kind_of,
    reasons_against,
    refuse_unsupported,
    rounded_layers,
    rounds_activations,
    rounds_weights,
    why_float,
    wider_layers,
)

__all__ = [
    "AVERAGE",
    "CONVERTED",
    "COPYING",
    "ENDS",
    "LOST_MASK",
    "RESCALING",
    "ROUNDING",
    "SCHEMES",
    "TRANSPOSED",
    "FakeQuant",
    "Island",
    "MaskedSoftmax",
    "QuantizedBias",
    "QuantizedModel",
    "QuantizedWeights",
    "Scheme",
    "activation_bits",
    "bake",
    "float_layers",
    "grid_before",
    "is_linear",
    "is_quantized",
    "kind_of",
    "names_behind",
    "precision_of",
    "precisions",
    "products_of",
    "reasons_against",
    "refuse_unsupported",
    "rounded_layers",
    "rounds_activations",
    "rounds_weights",
    "scheme_of",
    "takes_norm",
    "whole_windows",
    "why_float",
    "wider_layers",
    "without_masks",
]
