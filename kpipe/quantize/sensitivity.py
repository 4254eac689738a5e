"""How much a model loses when one layer alone is rounded, layer by layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.copies import float32_policy, in_float32
from kpipe.fake_quant import SCHEMES, FakeQuant, QuantizedWeights
from kpipe.graph import Flow, Site, answer_at_rest, evaluate, sites
from kpipe.quantize.damage import LayerDamage, QuantizationSensitivity
from kpipe.quantize.quantize import quantize
from kpipe.quantize.side_by_side import in_float
from kpipe.quantize.split import split
from kpipe.saliency import check_data
from kpipe.saliency.losses import undisturbed
from kpipe.saliency.metrics import Answer, Own, input_batches, metric_of


def quantization_sensitivity(
    model: keras.Model,
    data: Any,
    scheme: str = "int8",
    *,
    metric: str | Own = "distance",
    calibration: Any = None,
    loss: Any = None,
    **settings: Any,
) -> QuantizationSensitivity:
    """Measure how much a model loses when each layer alone is rounded, and all others compute in float.

    Rounded are the layer's weights and, where the scheme says so, what comes out of it. Layers that lose much are worth
    more bits: `kpipe.plan_quantization` finds how many of them.

    Args:
        model: A built Functional or Sequential float model; it is not changed.
        data: What the metric is taken on; what `model.fit` takes. Labels are needed for all metrics but "distance".
        scheme: As in `kpipe.quantize`.
        metric: "distance": the root mean square difference of the outputs from those in float, over the root mean
            square of these; "accuracy"; "loss"; or a function of (labels, outputs) of which higher is better.
        calibration: Inputs to find ranges on; None: those of `data`.
        loss: For "loss": what `compile` takes. None: the one that the model is compiled with.
        **settings: What else `kpipe.quantize` takes, such as `observer` or `exclude`.

    Returns:
        The figures: a table when printed, the worst layer first.

    Raises:
        KpipeError: When the model cannot be quantized, or data or metric do not fit it.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> layers = [keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2, name="b")]
        >>> found = quantization_sensitivity(keras.Sequential(layers), x)
        >>> sorted(row.layer for row in found.layers), all(0 < row.damage < 0.02 for row in found.layers)
        (['a', 'b'], True)
    """
    check_data(data, again="quantization_sensitivity")
    full = in_float32(model, "The quantized model")
    figure = figure_of(metric, full if metric == "distance" else model, data, loss)
    with undisturbed(model):
        ranges = ranges_from(scheme, settings, data if calibration is None else calibration)
        quantized = quantize(full, scheme, ranges, **settings)
        flow = sites(quantized)
        baseline = figure.of(lambda inputs: answer_in_part(flow, inputs, ()))
        rows = []
        with float32_policy():
            origins = split(full).origins
        for path, rounded in parts_of(flow, origins).items():
            value = figure.of(lambda inputs, rounded=rounded: answer_in_part(flow, inputs, rounded))
            layers = {site.path: site.operation for site in rounded if isinstance(site.operation, QuantizedWeights)}
            rows.append(LayerDamage(path, *_size(layers.values()), value, figure.worse(baseline, value)))
    ranked = sorted(rows, key=lambda row: -row.damage)
    return QuantizationSensitivity(figure.name, scheme, baseline, tuple(ranked))


def ranges_from(scheme: str, settings: Mapping[str, Any], data: Any) -> Any:
    """Give the data for `quantize`, None where it would find nothing on them."""
    return data if SCHEMES[scheme].activations is not None or settings.get("improve") is not None else None


@dataclass(frozen=True)
class Figure:
    """A figure of a model's answers on some data.

    Args:
        name: Of the metric.
        higher_is_better: Whether a higher figure is better.
        of: From a function from inputs to outputs to the figure.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Answer], float]

    def worse(self, before: float, after: float) -> float:
        """Say by how much a figure is worse than another."""
        return before - after if self.higher_is_better else after - before


def figure_of(metric: str | Own, model: keras.Model, data: Any, loss: Any = None) -> Figure:
    """Give the figure of a metric on data, "distance" being from the answers of the model itself.

    Raises:
        KpipeError: When there is no such metric, or it does not fit the model or the data.
    """
    if metric == "distance":
        return Figure("distance", False, lambda answer: _distance(answer, model, data))
    found = metric_of(metric, model, data, loss, who="quantization_sensitivity(metric='loss')")
    return Figure(found.name, found.higher_is_better, lambda answer: found.of(answer, model, data))


def _distance(answer: Answer, model: keras.Model, data: Any) -> float:
    away = size = 0.0
    for inputs, *_ in input_batches(model, data, "distance"):
        for exact, found in zip(answer_at_rest(model, inputs), answer(inputs), strict=True):
            expected = np.asarray(exact, np.float64)
            away += float(((expected - np.asarray(found)) ** 2).sum())
            size += float((expected**2).sum())
    return (away / max(size, np.finfo(float).tiny)) ** 0.5


def answer_in_part(flow: Flow, inputs: Sequence[np.ndarray], rounded: Iterable[Site]) -> list[Any]:
    """Compute the outputs of a quantized model with the rounding of some sites alone."""
    meant = {(site.path, site.call) for site in rounded}

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        here = (site.path, site.call) in meant
        return site.operation(*args, **kwargs) if here else in_float(site.operation, *args, **kwargs)

    return evaluate(flow, [keras.ops.convert_to_tensor(array) for array in inputs], call)


def parts_of(flow: Flow, origins: Mapping[str, str]) -> dict[str, list[Site]]:
    """Find what is rounded of each layer: its weights, and the first range behind each of its calls.

    Args:
        flow: Of a quantized model.
        origins: Name of a part -> path of the layer in the model before.

    Returns:
        Path of a layer -> sites.
    """
    found: dict[str, list[Site]] = {}
    for site in flow.sites:
        if isinstance(site.operation, QuantizedWeights):
            found.setdefault(origins[site.operation.name], []).extend([site, *_range_behind(flow, site)])
    return found


def _range_behind(flow: Flow, site: Site) -> list[Site]:
    """Give the range that rounds what comes out of a site, perhaps behind a batch norm or an activation."""
    following = flow.consumers(site)
    while len(following) == 1 and len(following[0].inputs) == 1:
        if isinstance(following[0].operation, FakeQuant):
            return following
        following = flow.consumers(following[0])
    return []


def _size(layers: Iterable[QuantizedWeights]) -> tuple[int, int]:
    """Give the fewest bits of some layers, and the number of their weights."""
    layers = list(layers)
    count = sum(int(np.prod(kernel.variable.shape)) for layer in layers for kernel in layer.kernels())
    return min(layer.bits for layer in layers), count
