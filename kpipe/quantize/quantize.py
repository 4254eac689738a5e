"""Quantize a model in the graph: fake quantization that trains on, or ships as it is."""

from typing import Any

import keras

from kpipe.data import samples
from kpipe.errors import KpipeError
from kpipe.fake_quant import is_quantized
from kpipe.graph import sites
from kpipe.quantize.calibrate import calibrate
from kpipe.quantize.rewrite import rewrite
from kpipe.registry import nearest

SCHEMES = ("int8",)


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    calibration: Any = None,
    *,
    momentum: float = 0.99,
    calibration_samples: int | None = 512,
) -> keras.Model:
    """Make a model compute with the rounding of an int8 runtime.

    Weights are rounded symmetrically per output channel, activations asymmetrically per tensor, with ranges found on
    the calibration data. What comes out is a Keras model: export it as it is (post-training quantization), or compile
    and fit it first (quantization-aware training). Zeros of the kernels stay exact zeros through the training, a saved
    file and the export.

    Covered are Dense, 2-D convolutions (grouped, depthwise and separable too), BatchNormalization, ReLU, LeakyReLU,
    Softmax over the last axis, Rescaling by numbers or one for each channel, the activations linear, relu, relu6,
    leaky_relu, silu, hard_silu, sigmoid, tanh, hard_tanh, softmax and exponential, the merging layers Add, Subtract,
    Multiply, Average, Maximum, Minimum and Concatenate, and 1-D and 2-D pooling, padding, cropping and upsampling (2-D
    by repetition only), Flatten, Reshape, Permute, and what acts in training only. Refused, before anything is
    computed, are 1-D and 3-D convolutions, all that takes more than four axes, ELU and other activations, and every
    layer that kpipe does not know; the message names the layer and says why.

    Args:
        model: A built Functional or Sequential float32 model; it is left untouched.
        scheme: "int8": 8-bit weights and activations.
        calibration: Inputs like those the model will see; anything that `model.fit` takes. Labels are not used.
        momentum: How slowly the activation ranges follow the batches in training, in [0, 1]; 1 keeps them fixed.
        calibration_samples: Most samples to take; None for all.

    Returns:
        A new model with the same inputs and outputs, not compiled.

    Raises:
        KpipeError: When the scheme is unknown, the calibration data is missing, empty, of another shape or not finite,
            or a layer cannot be quantized.
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
    sites(model)
    inputs = samples(calibration, model, limit=calibration_samples, what="calibration")
    return calibrate(rewrite(model, momentum), inputs)
