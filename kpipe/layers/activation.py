"""Which activation functions act on each value alone, and which of them the runtimes fuse."""

from collections.abc import Callable
from typing import Any

import keras

from kpipe.layers.channel_ids import ChannelIds, Ids

ELEMENTWISE = frozenset(
    getattr(keras.activations, name)
    for name in (
        "linear relu relu6 leaky_relu elu selu celu gelu silu softplus softsign sigmoid hard_sigmoid hard_silu tanh "
        "exponential mish log_sigmoid hard_tanh hard_shrink soft_shrink tanh_shrink threshold squareplus sparse_plus "
        "sparse_sigmoid"
    ).split()
)
FUSED = frozenset({keras.activations.linear, keras.activations.relu, keras.activations.relu6})
"""What both runtimes compute inside the convolution, dense or add before it."""
INTEGER = FUSED | {
    getattr(keras.activations, name) for name in "leaky_relu gelu sigmoid tanh hard_tanh softmax exponential".split()
}
"""What both runtimes compute in whole numbers; all others but `WRITTEN` fall back to float in LiteRT."""
WRITTEN = frozenset({keras.activations.hard_sigmoid, keras.activations.silu, keras.activations.hard_silu})
"""What is written as several layers, which both runtimes compute in the same whole numbers."""


def activate(ids: ChannelIds, out: Ids, activation: Callable[..., Any] | None) -> None:
    """Freeze the channels of an output whose activation mixes them, such as a softmax, or is not known."""
    if activation is not None and activation not in ELEMENTWISE:
        name = getattr(activation, "__name__", str(activation))
        ids.freeze(out, f"the activation {name!r} of {ids.path!r} mixes channels or is not known to kpipe")
