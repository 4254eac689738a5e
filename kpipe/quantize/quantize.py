"""Quantize a model in the graph: fake quantization that trains on, or ships as it is."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kpipe.checks import broken_in, not_finite
from kpipe.copies import float32_policy, in_float32
from kpipe.data import CALIBRATION_SAMPLES, samples
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.fake_quant import (
    CONVERTED,
    SCHEMES,
    QuantizedWeights,
    Scheme,
    is_quantized,
    reasons_against,
    refuse_unsupported,
    wider_layers,
)
from kpipe.graph import sites
from kpipe.quantize.bits import bits_of, told_bits
from kpipe.quantize.calibrate import calibrate
from kpipe.quantize.decisions import check_decisions
from kpipe.quantize.improve import IMPROVEMENTS
from kpipe.quantize.observers import Observe, observer_of
from kpipe.quantize.rewrite import rewrite
from kpipe.quantize.split import split

ISLANDS = ("warn", "refuse")


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    calibration: Any = None,
    *,
    islands: str = "warn",
    exclude: str | Sequence[str] | None = None,
    bits: Mapping[str, int | None] | None = None,
    observer: str | Mapping[str, Any] | Observe = "minmax",
    momentum: float | None = None,
    improve: str | None = None,
    calibration_samples: int | None = CALIBRATION_SAMPLES,
) -> keras.Model:
    """Make a model compute with the rounding of the file that it will become.

    Weights are rounded symmetrically per output channel. A scheme with whole numbers between the layers ("int8") rounds
    activations too, asymmetrically per tensor, with ranges found on the calibration data. What comes out is a Keras
    model: export it as it is (post-training quantization), or compile and fit it first (quantization-aware training).
    Zeros of the kernels stay exact zeros through the training, a saved file and the export.

    Rounded are dense layers, 1-D and 2-D convolutions (transposed, grouped, depthwise and separable too), EinsumDense,
    Embedding, multi-head attention, batch norms, merging layers, pooling, padding, resizing, PReLU and
    the activations that have integer kernels; `kpipe ls layers` lists them. What the runtimes compute in float (layer
    norms, recurrent layers, 3-D convolutions, ELU, layers of one's own, ...) stays float between rounded tensors, as an
    island: a warning names each with its reason. With `islands="refuse"` they are errors. Of a scheme that leaves
    activations in float, the islands are the layers whose weights stay in float, too.

    Args:
        model: A built Functional or Sequential float model; it is left untouched. One that computes in half precision
            is quantized in float32, as `kpipe.to_float32` copies it, and a warning says so.
        scheme: "int8": weights and activations of 8 bits. "w4a8": weights of 4 bits, activations of 8; transposed
            convolutions keep 8, and are named in a warning. "int8_dynamic", "int4", "float16": weights
            of 8 or 4 bits, or floats of half the size; activations in float.
        calibration: Inputs like those the model will see; anything that `model.fit` takes. Labels are not used. A
            scheme that leaves activations in float needs none, and warns of what it does not use.
        islands: "warn" lets layers without an integer kernel compute in float, and names them; "refuse" raises.
        exclude: Paths of layers whose weights stay in float: a regular expression searched in the path, or several.
        bits: Expressions like those of `exclude`, with the bits of these layers' weights each: 4, 8, or None for float.
            Of several kinds, the fewest bits name the scheme of the model: "int8" with a layer of 4 bits is "w4a8".
        observer: What makes a range of the values that a tensor takes on the calibration data: "minmax", "percentile",
            "mse", "moving_average", with arguments as {"percentile": {"fraction": 0.999}}, or a function of what was
            seen and the bits to (low, high).
        momentum: How slowly the activation ranges follow the least and greatest values of the batches in training, in
            [0, 1]; 1 keeps them fixed. None: 0.99, but 1 for observers that clip on purpose, which the extremes of the
            batches would undo.
        improve: What to do to lose less before any training: "adaptive_rounding" rounds each kernel by what its layer
            answers on the calibration data, and matters with 4 bits; "bias_correction" takes off what rounding adds to
            the mean of each channel, and takes less time. Neither needs labels.
        calibration_samples: Most samples to take; None for all.

    Returns:
        A new model with the same inputs and outputs, not compiled.

    Raises:
        KpipeError: When the scheme is unknown or a converter's alone, the model is quantized already, the calibration
            data is missing, empty, of another shape or not finite, weights are not finite, a layer cannot be quantized,
            what the model decides by comparing numbers would be decided otherwise,
            `exclude` or `bits` mean no layer with weights, the observer or improvement is unknown, an observer gives no
            range, the model computes in half precision and cannot be copied in float32, or there are islands and they
            are refused.
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
    if scheme in CONVERTED and scheme not in SCHEMES:
        raise KpipeError(
            f"No model computes as {scheme} does; a converter rounds a float model so: kpipe.export(model, path, "
            f"{scheme!r}, method='converter', calibration=...)."
        )
    plan = SCHEMES[scheme]
    if is_quantized(model):
        raise KpipeError(f"Model {model.name!r} is quantized already. Train it on, or export it.")
    if islands not in ISLANDS:
        raise KpipeError(f"islands is {islands!r}; expected 'warn' or 'refuse'.")
    watching = observer_of(observer)
    better = None if improve is None else IMPROVEMENTS[improve]
    given = {"calibration": calibration is not None, "observer": observer != "minmax", "momentum": momentum is not None}
    _check_use(scheme, plan, improve, given)
    momentum = (0.99 if watching.follows else 1.0) if momentum is None else momentum
    model = in_float32(model, "The quantized model")
    flow, whole_numbers = sites(model), plan.activations is not None
    refuse_unsupported(flow, whole_numbers)
    left_out = {path for path, width in told_bits(flow, exclude, bits, scheme).items() if width is None}
    with float32_policy():
        plain = split(model, functions=whole_numbers, left_out=left_out)
    found = reasons_against(flow, whole_numbers)
    within = reasons_against(sites(plain.model), whole_numbers)  # of layers that were taken apart, too
    found |= {name: reason for name, reason in within.items() if plain.origins.get(name, name) not in found}
    if found and islands == "refuse":
        raise KpipeError(f"No integer kernels for {_listed(found)} of {model.name!r}.")
    with float32_policy():
        quantized = rewrite(plain, momentum, bits_of(flow, plain, scheme, exclude, bits), whole_numbers)
    _refuse_broken(quantized, model)
    rounds_none = not any(isinstance(layer, QuantizedWeights) for layer in quantized._flatten_layers())
    if rounds_none and not whole_numbers:
        raise KpipeError(f"Model {model.name!r} has no layer whose weights {scheme} could round.")
    if rounds_none and left_out:
        what = f"All layers of {model.name!r} that multiply by weights are left out: {', '.join(sorted(left_out))}"
        warnings.warn(f"{what}. Its file may be no smaller than in float.", NoEffectWarning, stacklevel=2)
    if whole_numbers or better is not None:
        inputs = samples(calibration, model, limit=calibration_samples, what="calibration")
        try:
            calibrate(quantized, inputs, observer=watching)
        except KpipeError as fault:
            if broken := broken_in(model):
                raise KpipeError(broken) from fault
            raise
        if better is not None:
            calibrate(better(quantized, inputs), inputs, observer=watching)
        check_decisions(quantized, inputs)
    if found:
        what = "computes in float" if whole_numbers else "keeps weights in float"
        warnings.warn(f"{model.name!r} {what} in {_listed(found)}.", UserWarning, stacklevel=2)
    if wider := wider_layers(quantized):
        warnings.warn(f"{model.name!r} keeps weights of 8 bits in {_listed(wider)}.", UserWarning, stacklevel=2)
    return quantized


def _refuse_broken(quantized: keras.Model, model: keras.Model) -> None:
    """Refuse kernels that hold NaN or infinity, for which there are no levels."""
    layers = [layer for layer in quantized._flatten_layers() if isinstance(layer, QuantizedWeights)]
    if any(not_finite(kernel.variable) for layer in layers for kernel in layer.kernels()):
        raise KpipeError(broken_in(model) or broken_in(quantized))


def _check_use(scheme: str, plan: Scheme, improve: str | None, given: Mapping[str, bool]) -> None:
    """Ask for calibration data where something is found on them; warn of what does nothing."""
    if improve is not None and plan.weights > 8:
        raise KpipeError(
            f"improve={improve!r} is about levels of weights, and those of {scheme} are floats. Leave it out."
        )
    if not given["calibration"] and (plan.activations is not None or improve is not None):
        raise KpipeError("quantize needs calibration data: some hundred inputs like those the model will see.")
    idle = [name for name, there in given.items() if there and not (name == "calibration" and improve is not None)]
    if plan.activations is None and idle:
        why = f"{scheme} leaves activations in float: there are no ranges to find, so {' and '.join(idle)} did nothing"
        warnings.warn(f"{why}. Leave out what does nothing.", NoEffectWarning, stacklevel=3)


def _listed(found: Mapping[str, str]) -> str:
    return "; ".join(f"{path!r}: {reason}" for path, reason in found.items())
