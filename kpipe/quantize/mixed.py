"""Mixed precision: the most damaging layers keep more bits until the rest is good enough."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras

from kpipe.checks import is_number
from kpipe.copies import in_float32
from kpipe.errors import KpipeError
from kpipe.fake_quant import SCHEMES
from kpipe.graph import answer_at_rest
from kpipe.quantize.damage import QuantizationSensitivity, table, write_json
from kpipe.quantize.quantize import quantize
from kpipe.quantize.sensitivity import Figure, figure_of, quantization_sensitivity, ranges_from
from kpipe.saliency import check_data
from kpipe.saliency.metrics import Own

SAID = ("computes in float", "keeps weights in float", "keeps weights of 8 bits")
"""What `quantize` warns of; the search says none of it, for whoever quantizes by the plan is told."""


@dataclass(frozen=True)
class QuantizationPlan:
    """Say which layers get other bits than the scheme's, and what that is worth; printed, it tells how it was found.

    Args:
        scheme: The scheme.
        bits: What `kpipe.quantize` takes: an expression -> 8, or None for float, and what it was told from the start.
        metric: What was measured.
        baseline: The metric of the float model.
        value: The metric of the quantized model.
        max_drop: The budget.
        tried: (how many layers had other bits, which: "8" or "float", the metric), in the order of the search.
    """

    scheme: str
    bits: Mapping[str, int | None]
    metric: str
    baseline: float
    value: float
    max_drop: float
    tried: tuple[tuple[int, str, float], ...] = field(default=())

    @property
    def sentence(self) -> str:
        """What was found, in a sentence."""
        kept = ", ".join(f"{path} {width_name(width)}" for path, width in self.bits.items())
        return (
            f"{self.scheme} has {self.metric} {self.value:.5g}, {self.baseline:.5g} in float, and may lose "
            f"{self.max_drop:g}: {f'other bits are needed in {kept}' if kept else 'no layer needs other bits'}."
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            KpipeError: When the file cannot be written.
        """
        write_json(path, asdict(self))

    def __str__(self) -> str:
        rows = [("layers with more", "bits", self.metric)]
        rows += [(str(count), width, f"{value:.5g}") for count, width, value in self.tried]
        return "\n".join([self.sentence, *table(rows)])


def plan_quantization(
    model: keras.Model,
    data: Any,
    scheme: str = "int8",
    max_drop: float = 0.01,
    *,
    metric: str | Own = "accuracy",
    calibration: Any = None,
    loss: Any = None,
    sensitivity: QuantizationSensitivity | None = None,
    **settings: Any,
) -> QuantizationPlan:
    """Find how few layers need more bits than a scheme gives them for a quantized model to lose little.

    Layers are ranked by the damage that each does alone. The most damaging ones get 8 bits where the scheme has fewer,
    and stay in float where that is not enough, or where the scheme has 8: as few of them as hold the budget, found by
    halving, which takes that more of them are never worse. Each figure is that of a whole quantized model, so the plan
    holds the budget on `data` whatever the ranking is worth. One layer at least keeps the bits of the scheme.

    Args:
        model: A built Functional or Sequential float model; it is not changed.
        data: Labelled validation data: what `model.fit` takes.
        scheme: As in `kpipe.quantize`.
        max_drop: How much worse than the float model it may be, in the metric's own unit: 0.01 of accuracy is a point.
        metric: "accuracy", "loss", "distance", or a function of (labels, outputs) of which higher is better.
        calibration: Inputs to find ranges on; None: those of `data`.
        loss: For "loss": what `compile` takes. None: the one that the model is compiled with.
        sensitivity: A scan of the model that is there already; None: one by "distance" is made.
        **settings: What else `kpipe.quantize` takes. Layers that `exclude` or `bits` mean are left as these say.

    Returns:
        The plan; `kpipe.quantize(model, scheme, calibration, bits=plan.bits)` follows it.

    Raises:
        KpipeError: When the budget cannot be held: it says what was reached. When the model cannot be quantized, or
            data or metric do not fit it.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> layers = [keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2, name="b")]
        >>> net = keras.Sequential(layers)
        >>> plan_quantization(net, (x, np.asarray(net(x)).argmax(-1)), max_drop=0.1).bits
        {}
    """
    if not is_number(max_drop) or max_drop < 0:
        raise KpipeError(f"max_drop is {max_drop!r}; expected how much the metric may be worse, from 0 on.")
    check_data(data, again="plan_quantization")
    full = in_float32(model, "The quantized model")
    figure = figure_of(metric, full if metric == "distance" else model, data, loss)
    found = ranges_from(scheme, settings, data if calibration is None else calibration)
    with warnings.catch_warnings():
        for said in SAID:
            warnings.filterwarnings("ignore", f".* {said} in ", UserWarning)
        if sensitivity is None:
            sensitivity = quantization_sensitivity(full, data, scheme, calibration=calibration, **settings)
        search = _Search(full, scheme, figure, found, settings, _ranked(sensitivity, settings))
        return search.plan(max_drop)


def _ranked(sensitivity: QuantizationSensitivity, settings: Mapping[str, Any]) -> list[str]:
    """Give the layers that may get other bits, the most damaging first."""
    told = [re.compile(expression) for expression in settings.get("bits") or ()]
    return [row.layer for row in sensitivity.layers if not any(each.search(row.layer) for each in told)]


def width_name(width: int | None) -> str:
    """Say a width.

    Example:
        >>> width_name(8), width_name(None)
        ('8', 'float')
    """
    return "float" if width is None else str(width)


class _Search:
    """Quantize a model with more and more layers spared, and remember what each was worth."""

    def __init__(
        self,
        model: keras.Model,
        scheme: str,
        figure: Figure,
        calibration: Any,
        settings: Mapping[str, Any],
        ranked: list[str],
    ):
        self.model, self.scheme, self.figure, self.calibration = model, scheme, figure, calibration
        self.settings, self.ranked = dict(settings), ranked
        self.tried: list[tuple[int, str, float]] = []

    def plan(self, max_drop: float) -> QuantizationPlan:
        """Search the widths that are greater than the scheme's, each for the fewest layers."""
        baseline = self.figure.of(lambda inputs: answer_at_rest(self.model, inputs))
        most = max(len(self.ranked) - 1, 0)
        start: dict[str, int | None] = {}
        for width in (8, None) if SCHEMES[self.scheme].weights < 8 else (None,):

            def holds(count: int, width: int | None = width, start: Mapping[str, int | None] = start) -> bool:
                value = self.value(self.bits(count, width, start), count, width)
                return self.figure.worse(baseline, value) <= max_drop

            found = _fewest(most, holds)
            if found is not None:
                bits = self.bits(found, width, start)
                value = self.value(bits, found, width)
                told = {**(self.settings.get("bits") or {}), **bits}
                name, tried = self.figure.name, tuple(self.tried)
                return QuantizationPlan(self.scheme, told, name, baseline, value, max_drop, tried)
            start = self.bits(most, width, start)
        best = min(self.tried, key=lambda one: self.figure.worse(baseline, one[2]))
        with_more = "in float" if best[1] == "float" else f"at {best[1]} bits"
        raise KpipeError(
            f"{self.scheme} of {self.model.name!r} cannot hold a drop of {max_drop:g}: {self.figure.name} is "
            f"{baseline:.5g} in float, and {best[2]:.5g} at best, with {best[0]} of {len(self.ranked)} layers "
            f"{with_more}. Allow a greater drop, take a scheme of more bits, or train on after quantizing."
        )

    def bits(self, count: int, width: int | None, start: Mapping[str, int | None]) -> dict[str, int | None]:
        """Give the widths with so many of the most damaging layers at one of them."""
        return {**start, **{f"^{re.escape(path)}$": width for path in self.ranked[:count]}}

    def value(self, bits: Mapping[str, int | None], count: int, width: int | None) -> float:
        """Measure the model that is quantized so, once."""
        known = {(one, name): value for one, name, value in self.tried}
        if (count, width_name(width)) not in known:
            told = {**(self.settings.get("bits") or {}), **bits}
            given = {**self.settings, **({"bits": told} if told else {})}
            quantized = quantize(self.model, self.scheme, self.calibration, **given)
            value = self.figure.of(lambda inputs: answer_at_rest(quantized, inputs))
            self.tried.append((count, width_name(width), value))
            return value
        return known[count, width_name(width)]


def _fewest(most: int, holds: Any) -> int | None:
    """Give the least count from 0 to `most` that holds, by halving; None when `most` does not.

    Example:
        >>> [_fewest(9, lambda count: count >= least) for least in (0, 4, 9, 10)]
        [0, 4, 9, None]
    """
    if holds(0):
        return 0
    if not holds(most):
        return None
    low, high = 0, most  # low does not hold, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
