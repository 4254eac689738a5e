"""Observers: from the values that a tensor took on calibration data to the range of its grid."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kpipe.errors import KpipeError
from kpipe.fake_quant.affine import widen
from kpipe.quantize.seen import Seen
from kpipe.registry import Registry

Range = tuple[float, float]
Observe = Callable[[Seen, int], Range]
"""(what was seen, bits of a level's number) -> (low, high)."""

OBSERVERS: Registry[Callable[..., Range]] = Registry("observer")
"""Name -> function of `Observe`, with its arguments by keyword. Facts: `values`, whether it looks at more than the ends
of the batches; `follows`, whether in training the ends of each batch are an estimate of the range that it wants."""


@OBSERVERS("minmax", values=False, follows=True)
def minmax(seen: Seen, bits: int) -> Range:
    """Take the least and greatest value seen: nothing is clipped, and one value far out makes all steps coarse.

    Example:
        >>> minmax(Seen.of(np.array([-1.0, 0.5, 9.0])), 8)
        (-1.0, 9.0)
    """
    return seen.low, seen.high


@OBSERVERS("percentile", values=True, follows=False)
def percentile(seen: Seen, bits: int, *, fraction: float = 0.9999) -> Range:
    """Clip the few values furthest out: that fraction of the values lies below the high end, and above the low one.

    Args:
        seen: What was seen.
        bits: Of a level's number; it plays no part.
        fraction: In (0.5, 1]; 1 is `minmax`.

    Raises:
        KpipeError: When the fraction is out of range.

    Example:
        >>> low, high = percentile(Seen.of(np.arange(-500, 501)), 8, fraction=0.9)
        >>> round(low, -1), round(high, -1)
        (-400.0, 400.0)
    """
    if not 0.5 < fraction <= 1:
        raise KpipeError(f"percentile: fraction is {fraction}; expected a number in (0.5, 1], such as 0.9999.")
    if fraction == 1:
        return seen.low, seen.high
    values, counts = seen.points()
    below = np.cumsum(counts) / counts.sum()
    high = values[np.searchsorted(below, fraction - 1e-12)]
    low = values[np.searchsorted(below, 1 - fraction + 1e-12)]
    return float(low), float(high)


SHARES = np.geomspace(1.0, 0.02, 48)
"""Shares of the greatest magnitude, and of each end, that `mse` tries."""
FINER = np.linspace(0.92, 1.08, 17)
"""Shares of the best end so far that it tries then."""
ROUNDS = 3


@OBSERVERS("mse", values=True, follows=False)
def mse(seen: Seen, bits: int) -> Range:
    """Take the range with the least mean squared rounding error, clipping counted: Σ (x - rounded(x))².

    All is clipped at one magnitude first, then each end is moved alone, in turns: a search by coordinates, which is not
    sure to find the least error of all pairs of ends, but never one greater than that of `minmax`.

    Example:
        >>> values = np.concatenate([np.linspace(-1, 1, 100_000), [50.0]])
        >>> low, high = mse(Seen.of(values), 4)
        >>> -1.1 < low < -0.8 and 0.8 < high < 1.1
        True

    References:
        Nagel et al., A White Paper on Neural Network Quantization (2021), section 3.1, arXiv:2106.08295
    """
    values, counts = seen.points()

    def best(candidates: list[Range]) -> Range:
        return min(candidates, key=lambda ends: squared_error(values, counts, ends, bits))

    most = max(-seen.low, seen.high)
    low, high = best([(max(seen.low, -share * most), min(seen.high, share * most)) for share in SHARES])
    for _ in range(ROUNDS):
        # What lies beyond the ends that were seen holds no value.
        highs = (high, *(seen.high * SHARES), *np.minimum(high * FINER, seen.high))
        low, high = best([(low, float(end)) for end in highs])
        lows = (low, *(seen.low * SHARES), *np.maximum(low * FINER, seen.low))
        low, high = best([(float(end), high) for end in lows])
    return low, high


@OBSERVERS("moving_average", values=False, follows=True)
def moving_average(seen: Seen, bits: int, *, momentum: float = 0.9) -> Range:
    """Average the ends of the batches, later ones more: Σ mⁿ⁻ⁱ eᵢ / Σ mⁿ⁻ⁱ over n batches with ends eᵢ.

    The sum of the weights below the line is what Adam divides by: 1 - mⁿ, over 1 - m. One batch far out counts little;
    the extremes of all other batches but the mean are clipped.

    Args:
        seen: What was seen.
        bits: Of a level's number; it plays no part.
        momentum: m, in [0, 1).

    Raises:
        KpipeError: When the momentum is out of range.

    Example:
        >>> moving_average(Seen.of([0.0, 1.0], [0.0, 4.0]), 8, momentum=0.5)
        (0.0, 3.0)
    """
    if not 0 <= momentum < 1:
        raise KpipeError(f"moving_average: momentum is {momentum}; expected a number in [0, 1).")
    weights = momentum ** np.arange(len(seen.ends))[::-1]
    low, high = (weights[:, None] * seen.ends).sum(0) / weights.sum()
    return float(low), float(high)


def squared_error(values: np.ndarray, counts: np.ndarray, ends: Range, bits: int) -> float:
    """Give Σ count · (x - rounded(x))² for the grid of a range, 0 on it, as the runtimes place it.

    Example:
        >>> squared_error(np.array([0.0, 0.25, 9.0]), np.array([1, 2, 1]), (0.0, 1.0), 1)
        64.125
    """
    low, high = widen(*ends)
    last = 2**bits - 1
    step = (high - low) / last
    zero = np.round(-low / step)
    rounded = (np.clip(np.round(values / step) + zero, 0, last) - zero) * step
    return float((counts * (values - rounded) ** 2).sum())


@dataclass(frozen=True)
class Observer:
    """Hold an observer with its arguments.

    Args:
        name: For messages.
        observe: From what was seen to the range.
        values: Whether it looks at more than the ends of the batches.
        follows: Whether in training the ranges may follow the ends of the batches.
    """

    name: str
    observe: Observe
    values: bool
    follows: bool

    def range(self, seen: Seen, bits: int, where: str) -> Range:
        """Give the range of a tensor.

        Raises:
            KpipeError: When what the observer gives is no range; it names the tensor.
        """
        found = self.observe(seen, bits)
        low, high = (float(end) for end in found)
        if not (np.isfinite((low, high)).all() and low <= high):
            raise KpipeError(
                f"The observer {self.name!r} gives ({low:g}, {high:g}) for {where!r}, which saw values from "
                f"{seen.low:g} to {seen.high:g}; expected two finite numbers, low <= high."
            )
        return low, high


def observer_of(spec: str | Mapping[str, Any] | Observe) -> Observer:
    """Read which observer is meant.

    Args:
        spec: A name, `{name: {argument: value}}`, or a function of (`Seen`, bits) to (low, high).

    Raises:
        KpipeError: When it is none of these, or the arguments are not those of the observer.

    Example:
        >>> observer_of({"percentile": {"fraction": 0.99}}).name, observer_of("minmax").follows
        ('percentile', True)
    """
    if isinstance(spec, str):
        spec = {spec: {}}
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, arguments),) = spec.items()
        function, facts = OBSERVERS[name], OBSERVERS.facts(name)
        known = [
            each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY
        ]
        if not isinstance(arguments or {}, Mapping) or set(arguments or {}) - set(known):
            expected = f"{', '.join(known)} by name" if known else "none"
            raise KpipeError(f"The observer {name!r} received the arguments {arguments!r}; expected {expected}.")
        made = partial(function, **(arguments or {}))
        if arguments:
            made(Seen.of(np.linspace(-1, 1, 8)), 8)  # arguments out of range are refused here, by the observer
        return Observer(name, made, facts["values"], facts["follows"])
    if callable(spec):
        return Observer(getattr(spec, "__name__", type(spec).__name__), spec, values=True, follows=False)
    raise KpipeError(
        f"observer is {spec!r}; expected one of {', '.join(OBSERVERS)}, a mapping such as "
        "{'percentile': {'fraction': 0.999}}, or a function of what was seen and the bits."
    )
