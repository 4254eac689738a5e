"""Quantize a model in the graph: fake quantization that trains on, or ships as it is."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kpipe.data import samples
from kpipe.errors import KpipeError
from kpipe.fake_quant import is_quantized, kind_of, refuse_unsupported, why_float
from kpipe.graph import Flow, sites
from kpipe.quantize.calibrate import calibrate
from kpipe.quantize.observers import Observe, observer_of
from kpipe.quantize.rewrite import rewrite
from kpipe.quantize.split import Split, split
from kpipe.registry import nearest

SCHEMES = ("int8",)
ISLANDS = ("warn", "refuse")


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    calibration: Any = None,
    *,
    islands: str = "warn",
    exclude: str | Sequence[str] | None = None,
    observer: str | Mapping[str, Any] | Observe = "minmax",
    momentum: float | None = None,
    calibration_samples: int | None = 512,
) -> keras.Model:
    """Make a model compute with the rounding of an int8 runtime.

    Weights are rounded symmetrically per output channel, activations asymmetrically per tensor, with ranges found on
    the calibration data. What comes out is a Keras model: export it as it is (post-training quantization), or compile
    and fit it first (quantization-aware training). Zeros of the kernels stay exact zeros through the training, a saved
    file and the export.

    Rounded are dense layers, 1-D and 2-D convolutions (transposed, grouped, depthwise and separable too), EinsumDense,
    Embedding, multi-head attention without masks, batch norms, merging layers, pooling, padding, resizing, PReLU and
    the activations that have integer kernels; `kpipe ls layers` lists them. What the runtimes compute in float (layer
    norms, recurrent layers, 3-D convolutions, ELU, layers of one's own, ...) stays float between rounded tensors, as an
    island: a warning names each with its reason. With `islands="refuse"` they are errors.

    Args:
        model: A built Functional or Sequential float32 model; it is left untouched.
        scheme: "int8": 8-bit weights and activations.
        calibration: Inputs like those the model will see; anything that `model.fit` takes. Labels are not used.
        islands: "warn" lets layers without an integer kernel compute in float, and names them; "refuse" raises.
        exclude: Paths of layers whose weights stay in float: a regular expression searched in the path, or several.
        observer: What makes a range of the values that a tensor takes on the calibration data: "minmax", "percentile",
            "mse", "moving_average", with arguments as {"percentile": {"fraction": 0.999}}, or a function of what was
            seen and the bits to (low, high).
        momentum: How slowly the activation ranges follow the least and greatest values of the batches in training, in
            [0, 1]; 1 keeps them fixed. None: 0.99, but 1 for observers that clip on purpose, which the extremes of the
            batches would undo.
        calibration_samples: Most samples to take; None for all.

    Returns:
        A new model with the same inputs and outputs, not compiled.

    Raises:
        KpipeError: When the scheme is unknown, the calibration data is missing, empty, of another shape or not finite,
            a layer cannot be quantized, `exclude` means no layer with weights, the observer is unknown or gives no
            range, or there are islands and they are refused.
        SurgeryError: When the model's graph cannot be read.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax", name="classes")])
        >>> quantized = quantize(model, calibration=np.eye(4, dtype="float32"))
        >>> quantized.output_shape
        (None, 2)

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        CVPR 2018.
    """
    if scheme not in SCHEMES:
        raise KpipeError(f"Unknown scheme {scheme!r}. Known: {', '.join(SCHEMES)}.{nearest(str(scheme), SCHEMES)}")
    if is_quantized(model):
        raise KpipeError(f"Model {model.name!r} is quantized already. Train it on, or export it.")
    if calibration is None:
        raise KpipeError("quantize needs calibration data: some hundred inputs like those the model will see.")
    if islands not in ISLANDS:
        raise KpipeError(f"islands is {islands!r}; expected 'warn' or 'refuse'.")
    watching = observer_of(observer)
    momentum = (0.99 if watching.follows else 1.0) if momentum is None else momentum
    flow = sites(model)
    refuse_unsupported(flow)
    found = {site.path: reason for site in flow.sites if (reason := why_float(site)) is not None}
    if found and islands == "refuse":
        raise KpipeError(f"No integer kernels for {_listed(found)} of {model.name!r}.")
    plain = split(model)
    left_out = excluded(flow, plain, exclude)
    inputs = samples(calibration, model, limit=calibration_samples, what="calibration")
    quantized = calibrate(rewrite(plain, momentum, {}, left_out), inputs, observer=watching)
    if found:
        warnings.warn(f"{model.name!r} computes in float in {_listed(found)}.", UserWarning, stacklevel=2)
    return quantized


def _listed(found: Mapping[str, str]) -> str:
    return "; ".join(f"{path!r}: {reason}" for path, reason in found.items())


def excluded(flow: Flow, plain: Split, exclude: str | Sequence[str] | None) -> set[str]:
    """Name the parts whose weights stay in float.

    Args:
        flow: Of the model as it came.
        plain: The model that was taken apart.
        exclude: Regular expressions searched in the paths of layers.

    Raises:
        KpipeError: When one is no regular expression, or means no layer whose weights would be rounded.
    """
    rounded = {site.path for site in flow.sites if kind_of(site) in ("weights", "split")}
    chosen: set[str] = set()
    for expression in [exclude] if isinstance(exclude, str) else exclude or ():
        try:
            meant = {path for path in rounded if re.search(expression, path)}
        except re.error as error:
            raise KpipeError(f"exclude is {expression!r}, which is no regular expression: {error}.") from error
        if not meant:
            raise KpipeError(
                f"exclude={expression!r} means no layer whose weights would be rounded; those are: "
                f"{', '.join(sorted(rounded))}."
            )
        chosen |= meant
    return {name for name, path in plain.origins.items() if path in chosen}
