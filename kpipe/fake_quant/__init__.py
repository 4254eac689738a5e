"""Fake quantization: the layers that a quantized model is made of, their arithmetic, and how they are baked."""

from kpipe.fake_quant.bake import AVERAGE, COPYING, bake, is_quantized, whole_windows
from kpipe.fake_quant.island import Island
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.fake_quant.support import float_layers, kind_of, refuse_unsupported, rounded_layers, why_float

__all__ = [
    "AVERAGE",
    "COPYING",
    "FakeQuant",
    "Island",
    "QuantizedWeights",
    "bake",
    "float_layers",
    "is_quantized",
    "kind_of",
    "refuse_unsupported",
    "rounded_layers",
    "whole_windows",
    "why_float",
]
