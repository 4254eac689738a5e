"""What a plan can aim at: a budget of something that a model costs. A new target is one registered value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras
import numpy as np

from kpipe.checks import is_number
from kpipe.errors import KpipeError
from kpipe.graph import Trace
from kpipe.registry import Registry, nearest
from kpipe.structured import counts

Estimate = Callable[[np.ndarray], float]
"""Which classes of channel ids stay, shape (classes,), bool -> what the smaller model costs."""

Measure = Callable[[keras.Model], float]
"""A model -> what it costs."""


@dataclass(frozen=True)
class Target:
    """How a budget is understood and kept.

    Args:
        value: What its number is: "fraction" of the original that may remain, "absolute", or "either": a fraction below
            1, absolute above.
        estimate: (model, trace) -> what a choice of channels costs.
        measure: From the original to a function that says what a model costs for real; None where the estimate is
            exact.
        unit: In words.
        margin: By how much, in units, what `measure` says of a model may differ from what is made of it in the end.
    """

    value: Literal["fraction", "absolute", "either"]
    estimate: Callable[[keras.Model, Trace], Estimate]
    measure: Callable[[keras.Model], Measure] | None = None
    unit: str = ""
    margin: float = 0.0

    def check(self, kind: str, amount: Any) -> float:
        """Give the amount as a float, or say what is wrong with it.

        Raises:
            KpipeError: When it is no number, or out of range.
        """
        number = is_number(amount)
        if self.value == "fraction" and not (number and 0 < amount < 1):
            raise KpipeError(f"Expected the fraction of {kind} that may remain, in (0, 1). Received: {amount!r}.")
        if self.value == "absolute" and not (number and amount > 0):
            raise KpipeError(f"Expected {kind} as {self.unit}, more than 0. Received: {amount!r}.")
        if self.value == "either" and not (number and amount > 0 and amount != 1):
            raise KpipeError(
                f"Expected {kind} as the fraction that may remain, in (0, 1), or above 1 as {self.unit}. "
                f"Received: {amount!r}."
            )
        return float(amount)

    def budget(self, amount: float, before: float) -> float:
        """Give what may remain, in units, of an original that costs `before`; the margin is taken off."""
        fraction = self.value == "fraction" or (self.value == "either" and amount < 1)
        return (amount * before if fraction else amount) - self.margin

    def measured_by(self, measure: Measure) -> "Target":
        """Give the same target, measured by another function, which is taken at its word."""
        return replace(self, estimate=likely_cost, measure=lambda original: measure, margin=0.0)


TARGETS: Registry[Target] = Registry("target")
"""Name -> target."""


def check_target(target: Any) -> tuple[str, float]:
    """Give a target as its kind and amount.

    Args:
        target: A mapping of one name of `TARGETS` to its amount.

    Raises:
        KpipeError: When it is not.

    Example:
        >>> check_target({"macs": 0.5})
        ('macs', 0.5)
    """
    known = ", ".join(TARGETS)
    if not isinstance(target, Mapping) or len(target) != 1:
        raise KpipeError(f"Expected target as one of {known} with its amount: {{'macs': 0.5}}. Received: {target!r}.")
    ((kind, amount),) = target.items()
    if kind not in TARGETS:
        raise KpipeError(f"Unknown target {kind!r}. Known: {known}.{nearest(str(kind), TARGETS)}")
    return kind, TARGETS[kind].check(kind, amount)


def count_macs(model: keras.Model, trace: Trace) -> Estimate:
    """Count multiply-accumulates for one sample, exactly.

    Raises:
        KpipeError: When they are not known.
    """
    found = counts.macs(trace)
    if found is None:
        raise KpipeError(
            f"The MACs of {model.name!r} are not known: an input size is open, or a layer has no rule (`kpipe show` "
            "names it). Use target={'params': ...}."
        )
    return found


def count_params(model: keras.Model, trace: Trace) -> Estimate:
    """Count parameters, exactly."""
    return counts.params(trace)


def likely_cost(model: keras.Model, trace: Trace) -> Estimate:
    """Count what most costs follow: the MACs, or the parameters where those are not known."""
    return counts.macs(trace) or counts.params(trace)


TARGETS("macs")(Target("fraction", count_macs))
TARGETS("params")(Target("fraction", count_params))
