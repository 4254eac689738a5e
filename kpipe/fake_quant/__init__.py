"""Fake quantization: the layers that a quantized model is made of, their arithmetic, and how they are baked."""

from kpipe.fake_quant.bake import AVERAGE, COPYING, bake, is_quantized, whole_windows
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights

__all__ = ["AVERAGE", "COPYING", "FakeQuant", "QuantizedWeights", "bake", "is_quantized", "whole_windows"]
