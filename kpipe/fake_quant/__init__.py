"""Fake quantization: the layers that a quantized model is made of, their arithmetic, and how they are baked."""

from kpipe.fake_quant.bake import bake, is_quantized
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights

__all__ = ["FakeQuant", "QuantizedWeights", "bake", "is_quantized"]
