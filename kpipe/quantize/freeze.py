"""Ranges of activations that stay as they are from some step of a training on."""

import warnings
from typing import Any

import keras

from kpipe.checks import is_whole
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.fake_quant import FakeQuant, is_quantized
from kpipe.projections.zeros import trained_model


def freeze_ranges(model: keras.Model, after: int = 0) -> keras.Model:
    """Let the activation ranges of a quantized model follow so many more batches of training, and then no more.

    In the last part of a training the weights settle better where the grids stand still. Each range counts the batches
    inside the train step, so that it is exact under `jit_compile` and `steps_per_execution`, and a saved model goes on.

    Args:
        model: A model made by `kpipe.quantize`; its state is set in place.
        after: How many more batches; 0 freezes at once.

    Returns:
        The model.

    Raises:
        KpipeError: When the model is not quantized, or `after` is no whole number from 0 on.

    Example:
        >>> import numpy as np
        >>> from kpipe.quantize import quantize
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> quantized = freeze_ranges(quantize(net, calibration=np.eye(2, dtype="float32")), after=100)
        >>> float(quantized.layers[1].left)
        100.0
    """
    _check(after)
    if not is_quantized(model):
        raise KpipeError(f"Model {model.name!r} is not quantized. Call kpipe.quantize(model, calibration=...) first.")
    following = [one for one in model._flatten_layers() if isinstance(one, FakeQuant) and one.follows]
    if not following:
        warnings.warn(
            f"No range of {model.name!r} follows the training, so none can be frozen.", NoEffectWarning, stacklevel=2
        )
    for layer in following:
        layer.freeze(after)
    return model


class FreezeRanges(keras.callbacks.Callback):
    """Freeze the activation ranges of a quantized model after so many batches of the `fit` it is given to.

    Args:
        after: How many batches the ranges follow first; 0 keeps them as they were calibrated.

    Raises:
        KpipeError: When `after` is no whole number from 0 on, or the model that is trained is not quantized.
    """

    def __init__(self, after: int):
        super().__init__()
        _check(after)
        self.after = after

    def on_train_begin(self, logs=None):
        """Tell the ranges how many batches they follow."""
        model: Any = self.model
        freeze_ranges(trained_model(model), self.after)


def _check(after: int) -> None:
    if not is_whole(after):
        raise KpipeError(f"after is {after!r}; expected a number of batches, 0 or more.")
