"""What a quantized model decides by comparing numbers: rounding may move them to the other side."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.fake_quant import FakeQuant
from kpipe.graph import Flow, Site, evaluate, sites

MOVED = 0.1
"""Share of the decisions for or against that may be others than without rounding."""
FEW = 2
"""So many may always."""
LOOKED_AT = 256
"""Most samples that are looked at."""


def check_decisions(model: keras.Model, inputs: Sequence[np.ndarray]) -> None:
    """Refuse a quantized model that decides otherwise than without the rounding, as where it looks for padding of -1.

    A number that is looked for need not lie on the grid of what is compared with it; 0 does always.

    Args:
        model: A model with `FakeQuant` layers whose ranges are set.
        inputs: One array for each input of the model, (samples, ...).

    Raises:
        KpipeError: When of what an operation found true or false of numbers more than `MOVED` has changed.
    """
    flow = sites(model)
    deciding = {site.path for site in flow.sites if _decides(site)}
    if not deciding:
        return
    some = [array[:LOOKED_AT] for array in inputs]
    exact, rounded = (_decisions(flow, some, deciding, rounds) for rounds in (False, True))
    for path, before in exact.items():
        for side in (True, False):
            there = before == side
            moved = np.count_nonzero(there & (rounded[path] != side))
            if moved > max(FEW, MOVED * np.count_nonzero(there)):
                raise KpipeError(
                    f"Layer {path!r} cannot be quantized: of the numbers that it finds {str(side).lower()}, rounding "
                    f"changes {moved / np.count_nonzero(there):.0%}. What it compares them with need not lie on their "
                    "grid; 0 always does. Pad with zeros, or let what is decided be an input of its own."
                )


def _decides(site: Site) -> bool:
    """Say whether a call makes truth values of numbers that may be floats: what Keras says of types is not exact."""
    compares = keras.backend.is_float_dtype(site.node.input_tensors[0].dtype) if site.node.input_tensors else False
    return compares and all(tensor.dtype == "bool" for tensor in site.node.outputs)


def _decisions(flow: Flow, inputs: Sequence[np.ndarray], deciding: set[str], rounds: bool) -> dict[str, np.ndarray]:
    """Run a quantized model, its activations rounded or not; give what was decided, by the path of the operation."""
    found: dict[str, np.ndarray] = {}

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        if isinstance(site.operation, FakeQuant) and not rounds:
            return args[0]
        told = {"training": False} if getattr(site.operation, "_call_has_training_arg", False) else {}
        y = site.operation(*args, **{**kwargs, **told})
        if site.path in deciding:
            found[site.path] = np.asarray(keras.ops.convert_to_numpy(y))
        return y

    evaluate(flow, [keras.ops.convert_to_tensor(array) for array in inputs], call)
    return found
