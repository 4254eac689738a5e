"""How many bits the weights of each layer have: what the scheme says, but for layers that were told otherwise."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kpipe.errors import KpipeError
from kpipe.fake_quant import SCHEMES, rounds_weights
from kpipe.fake_quant.affine import HALF
from kpipe.fake_quant.support import TRANSPOSED, WIDER
from kpipe.graph import Flow
from kpipe.quantize.split import Split

CHOICES = (4, 8, None)
"""What the weights of a layer may be told to have; None is float."""


def check_bits(bits: Any, scheme: str | None = None) -> None:
    """Refuse what does not say the bits of layers.

    Args:
        bits: Regular expression -> one of `CHOICES`.
        scheme: The scheme that they are for; None where it does not matter.

    Raises:
        KpipeError: When it is something else.

    Example:
        >>> check_bits({"conv.*": 8, "logits": None})
    """
    if not isinstance(bits, Mapping) or not bits:
        raise KpipeError(f"bits is {bits!r}; expected expressions with 4, 8 or None each, such as {{'logits': 8}}.")
    for expression, width in bits.items():
        _compiled(expression)
        if isinstance(width, bool) or width not in CHOICES:
            raise KpipeError(f"bits of {expression!r} is {width!r}; expected 4, 8 or None, which is float.")
        if width is not None and scheme is not None and SCHEMES[scheme].weights == HALF:
            raise KpipeError(
                f"bits of {expression!r} is {width}; beside {scheme} weights can only stay in float, None."
            )


def bits_of(
    flow: Flow, plain: Split, scheme: str, exclude: str | Sequence[str] | None, bits: Mapping[str, int | None] | None
) -> dict[str, int | None]:
    """Say how many bits the weights of each part have.

    Args:
        flow: Of the model as it came.
        plain: The model that was taken apart.
        scheme: The scheme.
        exclude: Regular expressions searched in the paths of layers, whose weights stay in float.
        bits: Such expressions, with the bits of these layers' weights each.

    Returns:
        Name of a part -> bits; None for float.

    Raises:
        KpipeError: When an expression is none, means no layer whose weights would be rounded, or says of one what
            another contradicts; when there is no kernel for what was asked; or when nothing has the scheme's bits.
    """
    plan = SCHEMES[scheme]
    whole_numbers = plan.activations is not None
    told = told_bits(flow, exclude, bits, scheme)
    kinds = {layer.name: type(layer) for layer in plain.model.layers}
    chosen: dict[str, int | None] = {}
    for name, path in plain.origins.items():
        chosen[name] = told.get(path, plan.weights)
        if whole_numbers and chosen[name] == 4 and issubclass(kinds.get(name, object), TRANSPOSED):
            if path in told:
                raise KpipeError(f"bits of {path!r} is 4; {WIDER.format(4)}. Give it 8.")
            chosen[name] = 8
    rounded = {site.path for site in flow.sites if rounds_weights(site)}
    found = {chosen[name] for name, path in plain.origins.items() if path in rounded}
    if bits is None and plan.weights < 8 and plan.weights not in found:
        raise KpipeError(
            f"No layer would have weights of {plan.weights} bits, as {scheme} says. Choose another scheme."
        )
    return chosen


def told_bits(
    flow: Flow, exclude: str | Sequence[str] | None, bits: Mapping[str, int | None] | None, scheme: str
) -> dict[str, int | None]:
    """Give the bits of the layers that an expression means.

    Args:
        flow: Of the model.
        exclude: Regular expressions searched in the paths of layers, whose weights stay in float.
        bits: Such expressions, with the bits of these layers' weights each.
        scheme: The scheme.

    Returns:
        Path of a layer -> bits; None for float.

    Raises:
        KpipeError: When an expression is none, means no layer whose weights would be rounded, or says of one what
            another contradicts.
    """
    if bits is not None:
        check_bits(bits, scheme)
    if not isinstance(exclude, (str, Iterable, type(None))):
        raise KpipeError(
            f"exclude is {exclude!r}; expected a regular expression searched in the paths of layers, or several."
        )
    excluded = [exclude] if isinstance(exclude, str) else exclude or ()
    said = [("exclude", expression, None) for expression in excluded]
    said += [("bits", expression, width) for expression, width in (bits or {}).items()]
    rounded = sorted({site.path for site in flow.sites if rounds_weights(site)})
    told: dict[str, int | None] = {}
    for argument, expression, width in said:
        meant = [path for path in rounded if _compiled(expression, argument).search(path)]
        if not meant:
            raise KpipeError(
                f"{argument}={expression!r} means no layer whose weights would be rounded; those are: "
                f"{', '.join(rounded)}."
            )
        for path in meant:
            if told.setdefault(path, width) != width:
                raise KpipeError(
                    f"{argument}={expression!r} gives {path!r} {width} bits, and another expression "
                    f"{told[path]}. Let one expression mean a layer."
                )
    return told


def _compiled(expression: Any, argument: str = "bits") -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, TypeError) as error:
        raise KpipeError(f"{argument} is {expression!r}, which is no regular expression: {error}.") from error
