"""The ranges of a quantized model, found by running it on samples."""

from collections.abc import Sequence

import keras
import numpy as np

from kpipe.fake_quant import FakeQuant, QuantizedBias
from kpipe.graph import Flow, Site, evaluate, sites
from kpipe.quantize.observers import Observer, observer_of
from kpipe.quantize.seen import Recorder

MINMAX = observer_of("minmax")


def calibrate(
    model: keras.Model, inputs: Sequence[np.ndarray], batch_size: int = 32, observer: Observer = MINMAX
) -> keras.Model:
    """Set each range of a quantized model to what an observer makes of the values seen; ranges fixed by a runtime stay.

    The samples run through rounded weights, unrounded activations and biases, so the order of the ranges plays no part.

    Args:
        model: A model with `FakeQuant` layers; its ranges are set in place.
        inputs: One array for each input of the model, (samples, ...).
        batch_size: Samples that run at once; it changes the result of observers that average over batches alone.
        observer: From what was seen to a range.

    Returns:
        The model.

    Raises:
        KpipeError: When the observer gives no range.
    """
    flow = sites(model)
    seen: dict[str, Recorder] = {}
    for start in range(0, len(inputs[0]), batch_size):
        observe(flow, [array[start : start + batch_size] for array in inputs], seen, observer.values)
    for site in flow.sites:
        layer = site.operation
        if isinstance(layer, FakeQuant) and layer.fixed is None:
            layer.set_range(*observer.range(seen[site.path].seen(), layer.bits, site.path))
    return model


def observe(flow: Flow, inputs: Sequence[np.ndarray], seen: dict[str, Recorder], values: bool = False) -> None:
    """Run one batch and let a recorder look at the argument of every FakeQuant, by its path.

    Args:
        flow: Of a quantized model.
        inputs: One array for each of its inputs.
        seen: Path -> recorder; it is added to.
        values: Whether new recorders count values too.
    """

    def call(site: Site, *args, **kwargs):
        if isinstance(site.operation, QuantizedBias):  # the grid that it looks at is not known yet
            return args[0]
        if not isinstance(site.operation, FakeQuant):
            told = {"training": False} if getattr(site.operation, "_call_has_training_arg", False) else {}
            return site.operation(*args, **{**kwargs, **told})
        if kwargs.get("observe", True) and site.operation.fixed is None:
            recorder = seen.setdefault(site.path, Recorder(values))
            recorder.add(np.asarray(keras.ops.convert_to_numpy(args[0])))
        return args[0]

    evaluate(flow, [keras.ops.convert_to_tensor(array) for array in inputs], call)
