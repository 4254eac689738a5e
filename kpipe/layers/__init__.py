"""What kpipe knows of each Keras layer: weight roles, channel axes, config, MACs. A new layer is one function."""

from kpipe.layers import attention, convolution, core, merge, recurrent, shape
from kpipe.layers.activation import ELEMENTWISE, FUSED
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import DEPTHWISE, NATURAL, Layout
from kpipe.layers.rule import (
    KERNEL_ROLES,
    RULES,
    LayerFacts,
    Role,
    Rule,
    facts_of,
    quantization_of,
    register_weights,
    rule,
    weight_facts_of,
)
from kpipe.layers.weights import (
    Weight,
    declared,
    known,
    layers_within,
    leaves,
    located,
    own_variables,
    roles_of,
    unique,
    weights,
    weights_within,
)

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
    "Role",
    "Rule",
    "Weight",
    "attention",
    "convolution",
    "core",
    "declared",
    "facts_of",
    "known",
    "layers_within",
    "leaves",
    "located",
    "merge",
    "own_variables",
    "quantization_of",
    "recurrent",
    "register_weights",
    "roles_of",
    "rule",
    "shape",
    "unique",
    "weight_facts_of",
    "weights",
    "weights_within",
]
