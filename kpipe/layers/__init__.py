"""What kpipe knows of each Keras layer: weight roles, channel axes, config, MACs. A new layer is one function."""

from kpipe.layers import convolution, core, merge, shape
from kpipe.layers.activation import ELEMENTWISE, FUSED
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import DEPTHWISE, NATURAL, Layout
from kpipe.layers.rule import KERNEL_ROLES, RULES, LayerFacts, Rule, facts_of, quantization_of, rule
from kpipe.layers.weights import Weight, known, leaves, weights

__all__ = [
    "DEPTHWISE",
    "ELEMENTWISE",
    "FUSED",
    "KERNEL_ROLES",
    "NATURAL",
    "RULES",
    "ChannelIds",
    "Ids",
    "LayerFacts",
    "Layout",
    "Rule",
    "Weight",
    "convolution",
    "core",
    "facts_of",
    "known",
    "leaves",
    "merge",
    "quantization_of",
    "rule",
    "shape",
    "weights",
]
