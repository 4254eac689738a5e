"""The quantization schemes: what each rounds, and by what a quantized model or a file is known to follow it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.fake_quant.layers import FakeQuant, QuantizedWeights
from kpipe.registry import Registry

STORAGE = {16: "float16", 8: "int8", 4: "int4"}
"""Bits of a kernel -> the type that files store it in."""


@dataclass(frozen=True)
class Scheme:
    """What a quantization scheme rounds; its name is the precision of the files, too.

    Args:
        weights: Bits of the kernels; 16 are floats of half the size, all others whole numbers.
        activations: Bits of what flows between layers; None where it stays in float, so that no ranges are needed.
        what: What it is, in a line.
    """

    weights: int
    activations: int | None
    what: str

    @property
    def storage(self) -> str:
        """The type that files store its kernels in."""
        return STORAGE[self.weights]


SCHEMES: Registry[Scheme] = Registry("scheme")
SCHEMES("int8")(Scheme(8, 8, "Whole numbers of 8 bits, computed with in whole numbers."))
SCHEMES("int8_dynamic")(Scheme(8, None, "Weights of 8 bits; what flows between layers stays in float."))
SCHEMES("float16")(Scheme(16, None, "Weights of half the size, as floats; what flows between layers stays in float."))
SCHEMES("w4a8")(Scheme(4, 8, "Weights of 4 bits, activations of 8, computed with in whole numbers."))
SCHEMES("int4")(Scheme(4, None, "Weights of 4 bits; what flows between layers stays in float."))


def scheme_of(model: Any) -> str | None:
    """Name the scheme of a model: whether its activations are rounded, and the fewest bits of its kernels.

    Args:
        model: Any model; one that was saved and loaded is known as before.

    Returns:
        A name of `SCHEMES`; None when the model is not quantized.

    Raises:
        KpipeError: When it rounds as no scheme does.

    Example:
        >>> x = keras.Input((2,))
        >>> scheme_of(keras.Model(x, FakeQuant()(x))), scheme_of(keras.Model(x, keras.layers.ReLU()(x)))
        ('int8', None)
    """
    layers = list(model._flatten_layers()) if isinstance(model, keras.Model) else []
    rounded = any(isinstance(layer, FakeQuant) for layer in layers)
    bits = [layer.bits for layer in layers if isinstance(layer, QuantizedWeights)]
    if not rounded and not bits:
        return None
    least = min(bits, default=8)
    for name in SCHEMES:
        if (SCHEMES[name].weights, SCHEMES[name].activations is not None) == (least, rounded):
            return name
    raise KpipeError(f"Model {model.name!r} has weights of {least} bits; the schemes have {bits_of_schemes()}.")


def bits_of_schemes() -> str:
    """List the bits that weights may have."""
    return ", ".join(str(bits) for bits in sorted({SCHEMES[name].weights for name in SCHEMES}))


def precision_of(rounded: bool, stored: Collection[str]) -> str:
    """Name the precision of a file: that of the scheme with the fewest bits that it stores a weight in.

    Args:
        rounded: Whether whole numbers flow between its operations.
        stored: The types of its weights.

    Example:
        >>> precision_of(True, {"int8", "float32"}), precision_of(False, {"int8"}), precision_of(False, {"float32"})
        ('int8', 'int8_dynamic', 'float32')
    """
    for name in sorted(SCHEMES, key=lambda name: SCHEMES[name].weights):
        scheme = SCHEMES[name]
        if (scheme.activations is not None) == rounded and scheme.storage in stored:
            return name
    return "int8" if rounded else "float32"
