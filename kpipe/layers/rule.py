"""What kpipe knows of a Keras layer class: one registered rule, in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.layout import Layout

Role = Literal["kernel", "recurrent_kernel", "embedding", "depthwise_kernel", "bias", "gamma", "beta", "statistic"]
"""What a weight does.

- "kernel", "recurrent_kernel", "embedding", "depthwise_kernel": multiplied with the input, with the state of a
  recurrent cell, looked up by token, multiplied with each channel alone;
- "bias", "beta": added;
- "gamma": scales what is there already, as in a norm, in attention scores or in PReLU;
- "statistic": set by the layer itself and not learned, as a batch norm's mean.
"""

KERNEL_ROLES: tuple[Role, ...] = ("kernel", "recurrent_kernel", "embedding", "depthwise_kernel")
"""The roles whose weights are multiplied with activations: what MACs count and what quantization stores in int8."""

Quantization = Literal["weights", "same", "fused", "normalise", "output", "split", "float"]
"""How a layer takes part in a fake-quantized graph.

- "weights": its kernels are fake-quantized per channel, its output gets a range of its own;
- "same": values pass unchanged, the input's range holds for the output;
- "fused": the runtime computes it inside its producer;
- "normalise": a batch norm, folded into a preceding convolution or dense layer;
- "output": its output gets a range of its own;
- "split": it must first be written as several layers;
- "float": the runtimes have no integer kernel for it: it computes in float, between rounded tensors.
"""


Kept = Callable[[Ids], np.ndarray]
"""Channel ids -> which of them are kept, bool of the same shape."""


@dataclass(frozen=True)
class Rule:
    """Say how channels pass through one call of a layer or operation.

    A weight is named by the attribute that holds it, a setting by its key in the config; dots lead into what is inside:
    "cell.kernel", "layer.config.units", "cells.0.kernel".

    Args:
        out: Channel ids of the output; of each output where there are several.
        axes: Weight -> axis -> channel ids along that axis, shape (size of the axis,).
        config: Setting -> ids whose number of kept entries is the new value; a tuple may mix ids and plain sizes.
        reuse: How often each kernel entry is used for one sample: the MACs of the layer are `reuse` times its kernel
            entries. A mapping says it of each weight. None when the input's size is not known.
        summed: Weight -> axes along which channels are summed over although they come out too, as the rows of a
            recurrent kernel. Axes whose ids do not come out need not be listed.
        rescale: Weight -> (ids, power): the weight is multiplied by (kept / all) ** power, to make up for a scale that
            the layer takes from the number of channels.
        arguments: Position or name of an argument of the call -> the new value, written like `config`. A slice of ids
            becomes a slice of counts, a `Compressed` array loses entries.
        products: Products of sizes that count MACs beyond those of the weights, as those of an attention's scores: each
            a tuple of ids and plain sizes, None for one that is not known.
        reference: Where the layer computes something over its channels, as a norm its mean: `(kept) -> function` that
            computes the same over those that are kept alone, called like the layer. The check of a removal uses it.
        samples: Entries along the first axis of the output for each along that of the input: more than one where an
            operation counts places as samples, 0 of a constant, None where it is not known. MACs are those of one
            sample of the model.
    """

    out: Ids | tuple[Ids, ...]
    axes: Mapping[str, Mapping[int, Ids]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reuse: int | Mapping[str, int | None] | None = 0
    summed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rescale: Mapping[str, tuple[Ids, float]] = field(default_factory=dict)
    arguments: Mapping[int | str, Any] = field(default_factory=dict)
    products: Sequence[tuple[Any, ...]] = ()
    reference: Callable[[Kept], Callable[..., Any]] | None = None
    samples: Fraction | int | None = 1

    def outputs(self, count: int) -> tuple[Ids, ...]:
        """Give the channel ids of each of `count` outputs: where `out` is one, it is that of all."""
        return self.out if isinstance(self.out, tuple) else (self.out,) * count


RuleFunction = Callable[..., Rule]
QuantizationFact = Quantization | None | Callable[[keras.Layer], Quantization | None]
RoleFact = Mapping[str, Role] | Callable[[keras.Layer], Mapping[str, Role]]
"""Attribute of a layer -> role of the variable that it holds (or of each, where it holds a list)."""
LayoutFact = Mapping[str, Layout] | Callable[[keras.Layer], Mapping[str, Layout]]
"""Attribute of a layer -> layout of the kernel that it holds, for those that differ from what their role says."""


@dataclass(frozen=True)
class LayerFacts:
    """Hold what was registered for a layer class.

    Args:
        channels: How channels pass through a call; None where it is not known: then none are cut around the layer.
        roles: The weights; None where it was not said: then those of the class above hold.
        quantization: How the layer takes part in a fake-quantized graph.
        layouts: The axes of those kernels that differ from what their role says.
        whole: The layers inside are parts of its own making, as the cell of an LSTM; a filter of layers by function is
            asked about the whole.
    """

    channels: RuleFunction | None = None
    roles: RoleFact | None = None
    quantization: QuantizationFact = None
    layouts: LayoutFact = field(default_factory=dict)
    whole: bool = False


RULES: dict[type, LayerFacts] = {}


def rule(
    *classes: type, roles: RoleFact | None = None, quantization: QuantizationFact = None
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as what kpipe knows of these layer classes.

    Args:
        *classes: Layer classes, or operations of `keras.ops`, each by its own class: a subclass may compute something
            else and needs a rule too before its channels are cut (its weights are still found for weight pruning).
        roles: Attribute name of each weight -> its role. None: as said by `register_weights`, or for the class above.
        quantization: How the layer takes part in a fake-quantized graph, or a function of the layer that says so.
            None: as it was said elsewhere; where nothing was said, it computes in float.

    Returns:
        A decorator of a function `(layer, ids, *inputs) -> Rule`, where `ids` is a `ChannelIds` that knows the
        shapes and arguments at hand and each input is the channel ids of one input tensor.

    Example:
        >>> import keras
        >>> class Scale(keras.layers.Layer):
        ...     "Multiply each channel by a learned factor."
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        ...     def call(self, x):
        ...         return x * self.factor
        >>> @rule(Scale, roles={"factor": "gamma"}, quantization="float")
        ... def scale(layer, ids, x):
        ...     channels = ids.along(x, -1)
        ...     return Rule(ids.spread(channels, -1), axes={"factor": {0: channels}})
        >>> del RULES[Scale]
    """
    if roles is not None:
        register_weights(*classes, roles=roles)

    def register(function: RuleFunction) -> RuleFunction:
        for cls in classes:
            facts = RULES.get(cls, LayerFacts())
            RULES[cls] = replace(facts, channels=function, quantization=quantization or facts.quantization)
        return function

    return register


def register_weights(*classes: type, roles: RoleFact, layouts: LayoutFact | None = None, whole: bool = False) -> None:
    """Tell kpipe what the weights of layer classes do, so that its kernels are pruned, counted and held.

    A subclass takes this over. It is all that weight pruning needs; cutting channels needs a `rule`.

    Args:
        *classes: Layer classes, cells of recurrent layers among them.
        roles: Attribute name of each weight -> its role, or a function of the layer that says so. The attribute may
            hold a list of variables.
        layouts: Attribute name -> `Layout` of a kernel whose axes are not (*positions, inputs, outputs), or a function
            of the layer that says so.
        whole: The layers inside are parts of its own making: a filter of layers by function is asked about the whole.

    Raises:
        KpipeError: For what is no layer class, and for an unknown role.

    Example:
        >>> import keras
        >>> from kpipe.layers import weights
        >>> class Bilinear(keras.layers.Layer):
        ...     "Compute x W x for several matrices W."
        ...     def build(self, shape):
        ...         self.forms = self.add_weight(shape=(4, shape[-1], shape[-1]), name="forms")
        >>> register_weights(Bilinear, roles={"forms": "kernel"}, layouts={"forms": Layout((1, 2), (0,))})
        >>> layer = Bilinear()
        >>> layer.build((None, 3))
        >>> [(weight.role, weight.layout.turned_shape(weight.variable.shape)) for weight in weights(layer)]
        [('kernel', (9, 4))]
        >>> del RULES[Bilinear]
    """
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, keras.Layer)):
            raise KpipeError(f"register_weights received {cls!r}; expected layer classes, such as MyLayer.")
    for name, role in ({} if callable(roles) else roles).items():
        if role not in get_args(Role):
            raise KpipeError(f"Weight {name!r} of {classes}: unknown role {role!r}; known: {get_args(Role)}.")
    for cls in classes:
        RULES[cls] = replace(RULES.get(cls, LayerFacts()), roles=roles, layouts=layouts or {}, whole=whole)


def facts_of(layer: Any) -> LayerFacts | None:
    """Give the facts of a layer's class or of the nearest class above it; None for an unknown one."""
    return next((RULES[cls] for cls in type(layer).__mro__ if cls in RULES), None)


def weight_facts_of(layer: Any) -> LayerFacts:
    """Give the facts of the nearest class, its own or above it, for which the roles of weights were said."""
    said = (RULES[cls] for cls in type(layer).__mro__ if cls in RULES and RULES[cls].roles is not None)
    return next(said, LayerFacts(roles={}))


def quantization_of(layer: Any) -> Quantization | None:
    """Say how a layer takes part in a fake-quantized graph; None when it cannot."""
    facts = RULES.get(type(layer))
    if facts is None:
        return None
    fact = facts.quantization
    return fact(layer) if callable(fact) else fact


def inside(layer: keras.Layer, ids: ChannelIds, attribute: str, config: str, *inputs: Ids) -> Rule:
    """Ask the rule of a layer within another one, and name what it says from the outside.

    Args:
        layer: The inner layer.
        ids: They know the shapes that the inner layer sees; see `ChannelIds.within`.
        attribute: Where the outer layer holds it: "layer", "cells.0".
        config: Where the outer layer's config holds its config: "layer.config".
        *inputs: Its inputs.

    Returns:
        Its rule, with the names of weights and settings as the outer layer has them.

    Raises:
        SurgeryError: When nothing is registered for its class.
    """
    facts = RULES.get(type(layer))
    if facts is None or facts.channels is None:
        ids.refuse(f"the class {type(layer).__name__} of {layer.name!r} inside has no rule")
    found = facts.channels(layer, ids, *inputs)
    reuse = found.reuse if isinstance(found.reuse, Mapping) else dict.fromkeys(found.axes, found.reuse)

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{attribute}.{name}": value for name, value in values.items()}

    return replace(
        found,
        axes=named(found.axes),
        config={f"{config}.{key}": value for key, value in found.config.items()},
        reuse=named(reuse),
        summed=named(found.summed),
        rescale=named(found.rescale),
    )
