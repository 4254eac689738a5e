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

CONVERTED: Registry[Scheme] = Registry("precision of a converter")
"""What a format's own converter rounds a float model to; what is not among `SCHEMES`, no model computes as."""
CONVERTED("int8")(SCHEMES["int8"])
CONVERTED("int16x8")(Scheme(8, 16, "Weights of 8 bits, activations of 16; slow, as few runtimes have fast kernels."))


def precisions() -> dict[str, Scheme]:
    """Give all that is rounded, by the name of its precision: by a model that computes so, or by a converter alone.

    Example:
        >>> [name for name in precisions() if name not in SCHEMES]
        ['int16x8']
    """
    return {name: known[name] for known in (SCHEMES, CONVERTED) for name in known}


def activation_bits(precision: str) -> int | None:
    """Give the bits of the whole numbers that flow between the operations of a file; None where floats do.

    Example:
        >>> activation_bits("int16x8"), activation_bits("int8_dynamic"), activation_bits("float32")
        (16, None, None)
    """
    scheme = precisions().get(precision)
    return None if scheme is None else scheme.activations


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


def precision_of(activations: int | None, stored: Collection[str]) -> str:
    """Name the precision of a file: that of the scheme with the fewest bits that it stores a weight in.

    Args:
        activations: The bits of the whole numbers that flow between its operations; None where floats do.
        stored: The types of its weights.

    Example:
        >>> precision_of(8, {"int8", "float32"}), precision_of(None, {"int8"}), precision_of(None, {"float32"})
        ('int8', 'int8_dynamic', 'float32')
        >>> precision_of(16, {"int8"}), precision_of(16, set())
        ('int16x8', 'int16x8')
    """
    alike = {name: one for name, one in precisions().items() if one.activations == activations}
    for name in sorted(alike, key=lambda name: alike[name].weights):
        if alike[name].storage in stored:
            return name
    return "float32" if activations is None else next(name for name, one in alike.items() if one.weights == 8)
