"""Quantization in the graph: a Keras model that computes as the int8 runtime will."""

from kpipe.fake_quant import bake, is_quantized
from kpipe.quantize.mixed import plan_quantization
from kpipe.quantize.quantize import quantize
from kpipe.quantize.sensitivity import quantization_sensitivity

__all__ = ["bake", "is_quantized", "plan_quantization", "quantization_sensitivity", "quantize"]
