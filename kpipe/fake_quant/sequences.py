"""Convolutions of sequences written as those of maps of one row, for which the runtimes have integer kernels."""

from typing import Any

import keras
import numpy as np
from keras import layers as L

MAPS = {L.Conv1D: L.Conv2D, L.DepthwiseConv1D: L.DepthwiseConv2D, L.Conv1DTranspose: L.Conv2DTranspose}


class Row:
    """Call a convolution of sequences as one of maps, (batch, steps, c) -> (batch, steps', filters).

    Args:
        layer: A built 1-D convolution of a class in `MAPS`.
        steps: How many steps go in.

    Example:
        >>> layer = L.Conv1D(3, 2, padding="causal", dilation_rate=2)
        >>> x = np.random.default_rng(0).normal(size=(1, 6, 4)).astype("float32")
        >>> expected = layer(x)
        >>> bool(np.allclose(Row(layer, 6)(x), expected, atol=1e-6))
        True
    """

    def __init__(self, layer: Any, steps: int):
        config = dict(layer.get_config())
        for key in ("kernel_size", "strides", "dilation_rate"):
            config[key] = (1, *np.atleast_1d(config[key]).tolist())
        if config.get("output_padding") is not None:
            config["output_padding"] = (0, *np.atleast_1d(config["output_padding"]).tolist())
        self.before = (config["kernel_size"][1] - 1) * config["dilation_rate"][1] if layer.padding == "causal" else 0
        if layer.padding == "causal":
            config["padding"] = "valid"
        self.steps, values = steps, layer.get_weights()
        channels = layer.input_spec.axes[-1]
        self.layer: Any = MAPS[type(layer)].from_config(config)
        self.layer.build((None, 1, steps + self.before, channels))
        self.layer.set_weights([values[0][None], *values[1:]])  # (k, in, out) -> (1, k, in, out)

    def __call__(self, x: Any) -> Any:
        """Convolve."""
        rows = keras.ops.reshape(x, (-1, 1, self.steps, x.shape[-1]))
        if self.before:
            rows = L.ZeroPadding2D(((0, 0), (self.before, 0)))(rows)
        y = self.layer(rows)
        return keras.ops.reshape(y, (-1, *y.shape[2:]))
