"""Better post-training quantization without labels: a quantized model made to answer more like the float one."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from kpipe.quantize.bias import correct_biases
from kpipe.quantize.rounding import adapt_rounding
from kpipe.registry import Registry

Improve = Callable[[keras.Model, Sequence[np.ndarray]], keras.Model]
"""(a quantized model with calibrated ranges, one array for each input) -> the same model, with other weights."""

IMPROVEMENTS: Registry[Improve] = Registry("improvement")
"""Name -> function; `benchmarks/ptq.py` says what each is worth, and what was tried and left out."""

IMPROVEMENTS("adaptive_rounding")(adapt_rounding)
IMPROVEMENTS("bias_correction")(correct_biases)
