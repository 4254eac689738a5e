"""What kpipe knows of a Keras layer class: one registered rule, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import keras

from kpipe.errors import KpipeError
from kpipe.layers.channel_ids import Ids

Role = Literal["kernel", "recurrent_kernel", "embedding", "depthwise_kernel", "bias", "gamma", "beta", "statistic"]
KERNEL_ROLES: tuple[Role, ...] = ("kernel", "recurrent_kernel", "embedding", "depthwise_kernel")
"""The roles whose weights are multiplied with activations: what MACs count and what quantization stores in int8."""

Quantization = Literal["weights", "same", "fused", "normalise", "output", "split"]
"""How a layer takes part in a fake-quantized graph.

- "weights": its kernels are fake-quantized per channel, its output gets a range of its own;
- "same": values pass unchanged, the input's range holds for the output;
- "fused": the runtime computes it inside its producer;
- "normalise": a batch norm, folded into a preceding convolution or dense layer;
- "output": its output gets a range of its own;
- "split": it must first be written as two layers.
"""


@dataclass(frozen=True)
class Rule:
    """Say how channels pass through one call of a layer.

    Args:
        out: Channel ids of the output.
        axes: Weight name -> axis -> channel ids along that axis, shape (size of the axis,).
        config: Config key -> ids whose number of kept entries is the new value; a tuple may mix ids and plain sizes.
        reuse: How often each kernel entry is used for one sample: the MACs of the layer are `reuse` times its kernel
            entries. None when the input's size is not known.
    """

    out: Ids
    axes: Mapping[str, Mapping[int, Ids]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reuse: int | None = 0


RuleFunction = Callable[..., Rule]
QuantizationFact = Quantization | None | Callable[[keras.Layer], Quantization | None]


@dataclass(frozen=True)
class LayerFacts:
    """Hold what was registered for a layer class."""

    channels: RuleFunction
    roles: Mapping[str, Role]
    quantization: QuantizationFact


RULES: dict[type, LayerFacts] = {}


def rule(
    *classes: type, roles: Mapping[str, Role] | None = None, quantization: QuantizationFact = None
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as what kpipe knows of these layer classes.

    Args:
        *classes: Layer classes, each by its own class: a subclass may compute something else and needs a rule too
            before its channels are cut (its weights are still found for weight pruning).
        roles: Attribute name of each weight -> its role.
        quantization: How the layer takes part in a fake-quantized graph, or a function of the layer that says so.
            None: it cannot.

    Returns:
        A decorator of a function `(layer, ids, *inputs) -> Rule`, where `ids` is a `ChannelIds` that knows the
        shapes at hand and each input is the channel ids of one input tensor.

    Example:
        >>> import keras
        >>> class Scale(keras.layers.Layer):
        ...     "Multiply each channel by a learned factor."
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        ...     def call(self, x):
        ...         return x * self.factor
        >>> @rule(Scale, roles={"factor": "gamma"}, quantization="output")
        ... def scale(layer, ids, x):
        ...     channels = ids.along(x, -1)
        ...     return Rule(ids.spread(channels, -1), axes={"factor": {0: channels}})
        >>> del RULES[Scale]
    """
    roles = dict(roles or {})
    for name, role in roles.items():
        if role not in get_args(Role):
            raise KpipeError(f"Weight {name!r} of {classes}: unknown role {role!r}; known: {get_args(Role)}.")

    def register(function: RuleFunction) -> RuleFunction:
        for cls in classes:
            RULES[cls] = LayerFacts(function, roles, quantization)
        return function

    return register


def facts_of(layer: Any) -> LayerFacts | None:
    """Give the facts of a layer's class or of the nearest class above it; None for an unknown one."""
    return next((RULES[cls] for cls in type(layer).__mro__ if cls in RULES), None)


def quantization_of(layer: Any) -> Quantization | None:
    """Say how a layer takes part in a fake-quantized graph; None when it cannot."""
    facts = RULES.get(type(layer))
    if facts is None:
        return None
    fact = facts.quantization
    return fact(layer) if callable(fact) else fact
