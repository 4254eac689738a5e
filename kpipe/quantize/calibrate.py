"""The ranges of a quantized model, found by running it on samples."""

from collections.abc import Sequence

import keras
import numpy as np

from kpipe.fake_quant import FakeQuant
from kpipe.graph import Flow, sites


def calibrate(model: keras.Model, inputs: Sequence[np.ndarray], batch_size: int = 32) -> keras.Model:
    """Set each range of a quantized model to the least and greatest value seen; ranges fixed by a runtime stay.

    The samples run through rounded weights but unrounded activations, so the order of the ranges plays no part.

    Args:
        model: A model with `FakeQuant` layers; its ranges are set in place.
        inputs: One array for each input of the model, (samples, ...).
        batch_size: Samples that run at once; it does not change the result.

    Returns:
        The model.
    """
    flow = sites(model)
    seen: dict[str, list[float]] = {}
    for start in range(0, len(inputs[0]), batch_size):
        observe(flow, [array[start : start + batch_size] for array in inputs], seen)
    for site in flow.sites:
        if isinstance(site.operation, FakeQuant) and site.operation.fixed is None:
            site.operation.set_range(min(seen[site.path]), max(seen[site.path]))
    return model


def observe(flow: Flow, inputs: Sequence[np.ndarray], seen: dict[str, list[float]]) -> None:
    """Run one batch and add the least and greatest argument of every FakeQuant to `seen`, by its path."""
    values = dict(zip(flow.inputs, map(keras.ops.convert_to_tensor, inputs), strict=True))
    for site in flow.sites:
        if site.is_input:
            continue
        args, kwargs = site.rebind(values)
        if isinstance(site.operation, FakeQuant):
            outputs = [args[0]]
            if kwargs.get("observe", True):
                x = np.asarray(keras.ops.convert_to_numpy(args[0]))
                ends = (float(np.min(x)), float(np.max(x)))
                seen.setdefault(site.path, []).extend(ends)
        else:
            told = {"training": False} if getattr(site.operation, "_call_has_training_arg", False) else {}
            outputs = keras.tree.flatten(site.operation(*args, **{**kwargs, **told}))
        values.update(zip(site.outputs, outputs, strict=True))
