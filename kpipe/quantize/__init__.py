"""Quantization in the graph: a Keras model that computes as the int8 runtime will."""

from kpipe.fake_quant import bake, is_quantized
from kpipe.quantize.quantize import quantize

__all__ = ["bake", "is_quantized", "quantize"]
